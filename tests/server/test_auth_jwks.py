"""The keys at a JWKS URL, from a real server of them: rotated, withdrawn, down, slow, wrong.

Rule A10. The pauses are short here, but in the test that goes through HTTP.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from reattach import Reattach
from reattach.errors import BadSetting, Unavailable
from reattach.server.jwks import KeySet
from reattach.server.tokens import algorithm_of
from reattach.settings import Settings
from tests.server.tokens import KeyServer, jwk, jwks, private_key, public_pem, signed
from tests.support.waiting import until

OLD = private_key("ES256", "old")
NEW = private_key("ES256", "new")


def key_set(url: str, *, max_age: float = 600, pause: float = 0) -> KeySet:
    return KeySet(
        url, lambda key: algorithm_of(key) == "ES256", "ES256", max_age=max_age, pause=pause
    )


async def test_a_rotated_key_is_found_over_http(tmp_path: Path) -> None:
    # Rule A10
    async with KeyServer().listening() as publisher:
        publisher.body = jwks(jwk(OLD, kid="old"))
        settings = Settings.model_validate(
            {
                "auth": "jwt",
                "jwt_jwks_url": publisher.url,
                "jwt_algorithm": "ES256",
                "jwt_audience": "reattach",
            }
        )
        reattach = Reattach(database=f"sqlite:///{tmp_path / 'k.db'}", settings=settings)
        transport = httpx.ASGITransport(reattach)
        async with (
            reattach,
            httpx.AsyncClient(transport=transport, base_url="http://example.org") as api,
        ):

            async def status(token: str) -> int:
                headers = {"Authorization": f"Bearer {token}"}
                return (await api.get("/api/v0/session", headers=headers)).status_code

            old, new = signed(OLD, "ES256", "old"), signed(NEW, "ES256", "new")
            assert [await status(old) for _ in range(20)] == [200] * 20
            assert publisher.asked == 1
            publisher.body = jwks(jwk(NEW, kid="new"))

            async def rotated() -> bool:
                return await status(new) == 200

            await until(rotated, within=10, what="the new key", every=0.1)
            assert await status(old) == 401
            # Whatever comes, the publisher is asked every five seconds at most.
            bad = [signed(NEW, "ES256", f"kid{n}") for n in range(50)]
            assert {await status(token) for token in bad} == {401}
            assert publisher.asked <= 3


async def test_many_tokens_at_once_ask_once() -> None:
    # Rule A10
    async with KeyServer().listening() as publisher:
        publisher.body = jwks(jwk(OLD, kid="old"))
        keys = key_set(publisher.url, pause=60)
        found = await asyncio.gather(*(keys.find("old") for _ in range(20)))
        assert None not in found
        assert await asyncio.gather(*(keys.find(f"{n}") for n in range(20))) == [None] * 20
        assert publisher.asked == 1


async def test_a_withdrawn_key_ends() -> None:
    async with KeyServer().listening() as publisher:
        publisher.body = jwks(jwk(OLD, kid="old"), jwk(NEW, kid="new"))
        keys = key_set(publisher.url, max_age=0.05)
        assert await keys.find("old") is not None
        publisher.body = jwks(jwk(NEW, kid="new"))

        async def gone() -> bool:
            return await keys.find("old") is None

        await until(gone, within=5, what="the old key to end")
        assert await keys.find("new") is not None


async def test_a_token_without_kid_has_the_only_key() -> None:
    async with KeyServer().listening() as publisher:
        publisher.body = jwks(jwk(OLD))
        assert await key_set(publisher.url).find(None) is not None
        publisher.body = jwks(jwk(OLD, kid="old"), jwk(NEW, kid="new"))
        assert await key_set(publisher.url).find(None) is None


async def test_while_nobody_answers_known_keys_go_on() -> None:
    # Rule A10
    publisher = KeyServer()
    async with publisher.listening():
        publisher.body = jwks(jwk(OLD, kid="old"))
        keys = key_set(publisher.url, max_age=0)
        assert await keys.find("old") is not None
    for _ in range(3):
        assert await keys.find("new") is None
        assert await keys.find("old") is not None


async def test_without_any_keys_a_token_is_not_refused_but_told_to_wait(tmp_path: Path) -> None:
    # Rule A10
    publisher = KeyServer()
    async with publisher.listening():
        port = int(publisher.url.split(":")[2].partition("/")[0])
    settings = Settings.model_validate(
        {"auth": "jwt", "jwt_jwks_url": publisher.url, "jwt_algorithm": "ES256"}
    )
    reattach = Reattach(database=f"sqlite:///{tmp_path / 'k.db'}", settings=settings)
    transport = httpx.ASGITransport(reattach)
    async with (
        reattach,
        httpx.AsyncClient(transport=transport, base_url="http://example.org") as api,
    ):
        headers = {"Authorization": f"Bearer {signed(OLD, 'ES256', 'old')}"}
        answer = await api.get("/api/v0/session", headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        # What is wrong without any key is refused without one.
        bad = {"Authorization": f"Bearer {signed(private_key('RS256'), 'RS256')}"}
        assert (await api.get("/api/v0/session", headers=bad)).status_code == 401
    keys = key_set(publisher.url)
    with pytest.raises(Unavailable):
        await keys.find("old")
    async with publisher.listening(port):
        publisher.body = jwks(jwk(OLD, kid="old"))
        assert await keys.find("old") is not None


async def test_who_does_not_answer_is_left_after_three_seconds() -> None:
    async with KeyServer().listening() as publisher:
        publisher.body = jwks(jwk(OLD, kid="old"))
        publisher.answering.clear()
        keys = key_set(publisher.url, pause=60)
        begun = time.monotonic()
        answers = await asyncio.gather(
            *(keys.find("old") for _ in range(20)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {Unavailable}
        assert 2.5 < time.monotonic() - begun < 5
        assert publisher.asked == 1


BAD_ANSWERS = {
    "garbage": b"\x00 not json",
    "another JSON": b'{"keys": 7}',
    "a list": b"[]",
    "deep": b'{"keys": [{"kid": ' + b"[" * 100_000,
    "no key": jwks(),
    "keys of other kinds only": jwks(
        jwk(private_key("RS256")),
        jwk(private_key("EdDSA")),
        {"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "old"},
        {"kty": "EC", "crv": "P-256", "x": "?", "y": "?", "kid": "old"},
        {"kty": ["EC"], "kid": "old"},
        {},
    ),
    "for encryption": jwks(jwk(OLD, kid="old", use="enc")),
    "for another algorithm": jwks(jwk(OLD, kid="old", alg="ES512")),
    "a private key": jwks(jwk(OLD, kid="old", d="AAAA")),
    "kid a number": jwks(jwk(OLD, kid=7)),
    "a PEM": public_pem(OLD).encode(),
    "too large": b" " * 300_000 + jwks(jwk(OLD, kid="old")),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
async def test_an_answer_without_keys_changes_none(kind: str) -> None:
    # Rule A10
    async with KeyServer().listening() as publisher:
        publisher.body = BAD_ANSWERS[kind]
        keys = key_set(publisher.url)
        with pytest.raises(Unavailable):
            await keys.find("old")
        publisher.body = jwks(jwk(OLD, kid="old", use="sig", alg="ES256"))
        assert await keys.find("old") is not None
        publisher.body = BAD_ANSWERS[kind]
        assert await keys.find("new") is None
        assert await keys.find("old") is not None


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 500 Internal Server Error\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ],
    ids=["500", "a redirect", "no HTTP"],
)
async def test_only_200_is_an_answer(head: bytes) -> None:
    async with KeyServer().listening() as publisher:
        publisher.body, publisher.head = jwks(jwk(OLD, kid="old")), head
        with pytest.raises(Unavailable):
            await key_set(publisher.url).find("old")


async def test_an_answer_in_chunks_is_one() -> None:
    async with KeyServer().listening() as publisher:
        publisher.body, publisher.chunked = jwks(jwk(OLD, kid="old")), True
        assert await key_set(publisher.url).find("old") is not None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/keys",
        "http://127.0.0.1.example.org/keys",
        "http://localhost@example.org/keys",
        "file:///etc/keys",
        "https://user:secret@example.org/keys",
        "https://example.org:99999/keys",
        "https:///keys",
        "keys",
    ],
)
def test_an_address_that_cannot_be_trusted_is_told(url: str) -> None:
    with pytest.raises(BadSetting, match="to be an https URL") as caught:
        key_set(url)
    assert "secret" not in caught.value.message
