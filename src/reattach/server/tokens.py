"""JSON Web Tokens (RFC 7519) as proof of who somebody is: ``--auth jwt``.

The algorithm and the key are the server's settings. What a token says of them is held against
these and never followed (RFC 8725, sections 3.1 and 3.2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm
from starlette.requests import HTTPConnection

from reattach.errors import BadSetting, NotAuthenticated
from reattach.runtime.access import User
from reattach.server.auth import MAX_USER_ID
from reattach.server.jwks import KeySet
from reattach.settings import Settings

__all__ = ["Tokens", "algorithm_of"]

log = structlog.get_logger("reattach.auth")

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
Key: TypeAlias = bytes | PublicKey

_MIN_SECRET: Final = 32
"""Bytes (RFC 7518, section 3.2)."""
_MIN_RSA: Final = 2048
"""Bits (RFC 7518, section 3.3)."""
_MAX_TOKEN: Final = 16 * 1024
"""Characters: what is longer is not even decoded."""

_REFUSED: Final = "expected a valid bearer token: get a fresh one"
"""All that is told of what is wrong with a token: more would help whoever forges it."""

_BROKEN: Final = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)
"""What decoding raises. The signature's part is `PyJWTError`; the others come from headers and
claims of types that no token should have."""


class Keys(Protocol):
    """Where the key of a token is found."""

    async def find(self, kid: str | None) -> Key | None:
        """Return the key that a token names, None where there is none; raises `Unavailable`."""


class _One:
    """One key, whatever the token calls it."""

    def __init__(self, key: Key) -> None:
        self._key = key

    async def find(self, _: str | None) -> Key | None:
        return self._key


class Tokens:
    """An `authenticate` that takes the ``sub`` of a valid token as the user."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys' settings; raises `BadSetting` for what cannot be."""
        self._algorithm, self._keys = _source(settings)
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._leeway_ms = settings.jwt_leeway_ms
        required = [*(("iss",) if self._issuer else ()), *(("aud",) if self._audience else ())]
        self._required = ["sub", *required]

    async def __call__(self, connection: HTTPConnection) -> User:
        """Return who is there; raises `NotAuthenticated`, or `Unavailable` for want of keys."""
        token: str | None = connection.state.token
        if token is None:
            raise NotAuthenticated("expected a bearer token: sign in")
        try:
            return _user(await self._claims(token), self._leeway_ms)
        except _BROKEN as error:
            # Its type alone: its text may quote what came.
            log.debug("a token was refused", reason=type(error).__name__)
            raise NotAuthenticated(_REFUSED) from None

    async def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _MAX_TOKEN:
            raise jwt.DecodeError("too long")
        header = jwt.get_unverified_header(token)
        if header.get("alg") != self._algorithm:
            raise jwt.InvalidAlgorithmError("another algorithm")
        key = await self._keys.find(header.get("kid"))
        if key is None:
            raise jwt.InvalidKeyError("no such key")
        return jwt.decode(
            token,
            key,
            algorithms=[self._algorithm],
            issuer=self._issuer,
            audience=self._audience,
            leeway=self._leeway_ms / 1000,
            # When it was made is no reason to refuse it: that is for `nbf` (section 4.1.6).
            options={"require": self._required, "verify_iat": False},
        )


def _user(claims: dict[str, Any], leeway_ms: int) -> User:
    name = claims["sub"]
    if not 0 < len(name.encode()) <= MAX_USER_ID:  # a lone surrogate is a ValueError, too
        raise ValueError("no user id")
    expires = claims.get("exp")
    return User(name, None if expires is None else int(expires) * 1000 + leeway_ms)


def algorithm_of(key: object) -> str | None:
    """Return the algorithm that a public key is for, None for all others, too weak ones too."""
    if isinstance(key, RSAPublicKey):
        return "RS256" if key.key_size >= _MIN_RSA else None
    if isinstance(key, EllipticCurvePublicKey):
        return "ES256" if isinstance(key.curve, SECP256R1) else None
    return "EdDSA" if isinstance(key, Ed25519PublicKey) else None


def _source(settings: Settings) -> tuple[str, Keys]:
    secret, pem, url = settings.jwt_secret, settings.jwt_public_key, settings.jwt_jwks_url
    if sum(one is not None for one in (secret, pem, url)) != 1:
        raise BadSetting(
            "expected one of REATTACH_JWT_SECRET, REATTACH_JWT_PUBLIC_KEY and"
            " REATTACH_JWT_JWKS_URL for --auth jwt: set the one that tokens are checked with"
        )
    if secret is not None:
        return _same("HS256", settings), _One(_secret(secret.get_secret_value()))
    if pem is not None:
        key = _public_key(pem)
        return _same(algorithm_of(key) or "", settings), _One(key)
    assert url is not None
    algorithm = settings.jwt_algorithm
    if algorithm is None or algorithm == "HS256":
        raise BadSetting(
            "expected REATTACH_JWT_ALGORITHM to be RS256, ES256 or EdDSA, got"
            f" {algorithm or 'nothing'}: say which keys of REATTACH_JWT_JWKS_URL are for tokens"
        )
    return algorithm, KeySet(url, lambda key: algorithm_of(key) == algorithm, algorithm)


def _same(found: str, settings: Settings) -> str:
    said = settings.jwt_algorithm
    if said is not None and said != found:
        raise BadSetting(
            f"expected a key for REATTACH_JWT_ALGORITHM={said}, got one for {found}: set the other"
            " key, or leave the algorithm out"
        )
    return found


def _secret(secret: str) -> bytes:
    raw = secret.encode()
    if len(raw) < _MIN_SECRET:
        raise BadSetting(
            f"expected REATTACH_JWT_SECRET to have at least {_MIN_SECRET} bytes (RFC 7518, section"
            f" 3.2), got {len(raw)}: make one with openssl rand -base64 32"
        )
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(raw)
    except jwt.InvalidKeyError:
        raise BadSetting(
            "expected REATTACH_JWT_SECRET to be a secret, got what looks like a key pair's key:"
            " set REATTACH_JWT_PUBLIC_KEY for that"
        ) from None


def _public_key(value: str) -> PublicKey:
    text = value
    if "-----BEGIN" not in value:
        try:
            text = Path(value).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise BadSetting(
                f"expected REATTACH_JWT_PUBLIC_KEY to be a public key as PEM or the path of its"
                f" file, and the file cannot be read: {reason}"
            ) from None
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise BadSetting(
            "expected REATTACH_JWT_PUBLIC_KEY to be a public key as PEM (-----BEGIN PUBLIC"
            " KEY-----), got something else. A private key stays with whoever signs"
        ) from None
    if not isinstance(key, PublicKey) or algorithm_of(key) is None:
        raise BadSetting(
            f"expected REATTACH_JWT_PUBLIC_KEY to be for RS256 (at least {_MIN_RSA} bits), ES256"
            " (P-256) or EdDSA (Ed25519), got another kind of key"
        )
    return key
