"""Who signs tokens in tests: keys, tokens good and bad, and a server of public keys."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET = "a secret of tests that is long enough"
ISSUER = "https://issuer.example.org"
AUDIENCE = "reattach"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def private_key(algorithm: str, name: str = "first") -> PrivateKey:
    """A key for an algorithm; another name, another key."""
    del name
    if algorithm == "RS256":
        return rsa.generate_private_key(65_537, 2048)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: PrivateKey) -> str:
    spki = PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(Encoding.PEM, spki).decode()


def private_pem(key: PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def jwk(key: PrivateKey, **members: Any) -> dict[str, Any]:
    """A public key as it stands in a JWK Set."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        data = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        data = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        data = OKPAlgorithm.to_jwk(public, as_dict=True)
    # As publishers write it: "sign" and "verify" are said of one key by `use`.
    return {name: value for name, value in data.items() if name != "key_ops"} | members


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def claims(**changed: Any) -> dict[str, Any]:
    """Those of a good token for an hour; a claim that is set to None is left out."""
    now = int(time.time())
    good = {"sub": "ada", "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 3600}
    return {name: value for name, value in (good | changed).items() if value is not None}


def signed(key: PrivateKey, algorithm: str, kid: str | None = None, **changed: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changed), key, algorithm, headers=headers)


def by_hand(header: object, payload: object, sign: Callable[[bytes], bytes] = lambda _: b"") -> str:
    """A token that no library would make."""
    head = ".".join(
        _b64(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    )
    return f"{head}.{_b64(sign(head.encode()))}"


def hs256(secret: str) -> Callable[[bytes], bytes]:
    return lambda text: hmac.digest(secret.encode(), text, hashlib.sha256)


def bad_tokens(key: PrivateKey, algorithm: str) -> dict[str, str]:
    """Every way in which a token for a server with one RSA key is bad."""
    good = signed(key, algorithm)
    head, payload, signature = good.split(".")
    header = {"alg": algorithm, "typ": "JWT"}
    forged = json.loads(base64.urlsafe_b64decode(payload + "=="))
    now = int(time.time())

    def with_claims(**changed: Any) -> str:
        return signed(key, algorithm, **changed)

    def raw(payload: bytes, **more: Any) -> str:
        """Signed by the right key, whatever it says."""
        assert isinstance(key, rsa.RSAPrivateKey)
        rs256 = RSAAlgorithm(RSAAlgorithm.SHA256)
        return by_hand(header | more, payload, lambda text: rs256.sign(text, key))

    everything = json.dumps(claims()).encode()
    return {
        "empty parts": "..",
        "no token at all": "token",
        "two parts": f"{head}.{payload}",
        "not ASCII": good + "é",
        "signature cut": good[:-6],
        "no signature": f"{head}.{payload}.",
        "signature of another": f"{head}.{payload}.{with_claims(sub='bob').split('.')[2]}",
        "forged": ".".join((head, _b64(json.dumps(forged | {"sub": "bob"}).encode()), signature)),
        "alg none": by_hand({"alg": "none"}, claims()),
        "alg None": by_hand({"alg": "None"}, claims()),
        "alg none, signed": by_hand({"alg": "none"}, forged, lambda _: b"signature"),
        "alg missing": by_hand({"typ": "JWT"}, claims()),
        "alg a list": by_hand({"alg": [algorithm]}, claims()),
        "HS256 with the public key": by_hand({"alg": "HS256"}, claims(), hs256(public_pem(key))),
        "HS256 with nothing": by_hand({"alg": "HS256"}, claims(), hs256("")),
        "RS512 of the key": jwt.encode(claims(), key, "RS512"),
        "PS256 of the key": jwt.encode(claims(), key, "PS256"),
        "another key's": signed(private_key(algorithm, "another"), algorithm),
        "another kind of key's": signed(private_key("ES256"), "ES256"),
        "its own key in its header": jwt.encode(
            claims(),
            private_key(algorithm, "another"),
            algorithm,
            headers={"jwk": jwk(private_key(algorithm, "another"))},
        ),
        "an unknown critical header": raw(everything, crit=["exp2"], exp2=1),
        "kid a number": raw(everything, kid=7),
        "expired": with_claims(exp=now - 1),
        "expired just now": with_claims(exp=now),
        "not yet valid": with_claims(nbf=now + 86_400),
        "exp a word": with_claims(exp="soon"),
        "exp infinite": raw(json.dumps(claims() | {"exp": float("inf")}).encode()),
        "exp null": raw(json.dumps(claims() | {"exp": None}).encode()),
        "exp a list": raw(json.dumps(claims() | {"exp": []}).encode()),
        "no sub": with_claims(sub=None),
        "empty sub": with_claims(sub=""),
        "sub a number": raw(json.dumps(claims() | {"sub": 7}).encode()),
        "sub null": raw(json.dumps(claims() | {"sub": None}).encode()),
        "over-long sub": with_claims(sub="x" * 256),
        "over-long sub in bytes": with_claims(sub="é" * 128),
        "half a character as sub": raw(everything.replace(b'"ada"', b'"\\ud800"')),
        "no issuer": with_claims(iss=None),
        "another issuer": with_claims(iss=f"{ISSUER}.evil.example"),
        "no audience": with_claims(aud=None),
        "another audience": with_claims(aud=["others"]),
        "claims no object": raw(b"[]"),
        "claims no JSON": raw(b"{"),
        "deep": by_hand(b"[" * 8000, b"[" * 2000),
        "long": with_claims(padding="x" * 20_000),
    }


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class KeyServer:
    """An HTTP server of a JWK Set, as good or as bad as a test wants it."""

    def __init__(self) -> None:
        self.url = ""
        self.body = b""
        self.head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        self.chunked = False
        self.asked = 0
        self.answering = asyncio.Event()
        """Cleared, it takes questions and says nothing."""
        self.answering.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            await self.answering.wait()
            size = len(self.body)
            if self.chunked:
                writer.write(self.head + b"Transfer-Encoding: chunked\r\n\r\n")
                writer.write(f"{size:x}\r\n".encode() + self.body + b"\r\n0\r\n\r\n")
            else:
                writer.write(self.head + f"Content-Length: {size}\r\n\r\n".encode() + self.body)
            await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[KeyServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys?v=1"
        try:
            yield self
        finally:
            self.answering.set()
            server.close()
            await server.wait_closed()
