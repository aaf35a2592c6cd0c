"""Keys follow their file or their issuer's url; whatever goes wrong, the keys in use stay, and the lane goes on."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from onelane.core.auth_settings import JwtSettings
from onelane.core.validation import checked
from onelane.errors import BadConfig, NoTokenKeys, Unauthenticated
from onelane.server.token_verifier import JwtVerifier
from onelane.shard import key_source
from onelane.shard.key_source import KeySource, download

from tests.bounds import BOUND_S
from tests.issuer import AUDIENCE, ISSUER, Issuer, KeyServer

OLD, NEW = Issuer("EdDSA"), Issuer("ES256")
PEER = "ipv4:10.0.0.1:1"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_source, "FILE_LOOK_S", 0.005)
    monkeypatch.setattr(key_source, "REFETCH_S", 0.02)
    # A machine that is busy fetches no slower than these tests may take.
    monkeypatch.setattr(key_source, "FETCH_S", BOUND_S)


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with KeyServer(OLD.jwks()) as running:
        yield running


@asynccontextmanager
async def following(**place: str) -> AsyncIterator[JwtVerifier]:
    settings = checked(JwtSettings, {"issuer": ISSUER, "audience": AUDIENCE, **place})
    verifier = JwtVerifier(settings)
    source = KeySource(settings, verifier)
    source.load()
    await source.start()
    try:
        yield verifier
    finally:
        await source.aclose()


def accepts(verifier: JwtVerifier, issuer: Issuer) -> bool:
    # A token and an address of its own: those that were refused are not checked for a while.
    name = os.urandom(8).hex()
    try:
        verifier.verify(issuer.token(jti=name), f"unix:{name}:")
    except (Unauthenticated, NoTokenKeys):
        return False
    return True


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - a task of the source's own makes it true
        await asyncio.sleep(0.005)


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    async with following(keys_file=OLD.write(tmp_path / "keys.json")) as verifier:
        assert accepts(verifier, OLD)
        (tmp_path / "keys.json").write_bytes(NEW.jwks())
        await until(lambda: accepts(verifier, NEW))
        assert not accepts(verifier, OLD)


async def test_a_file_that_breaks_keeps_the_keys_until_it_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.json"
    async with following(keys_file=OLD.write(file)) as verifier:
        for breakage in (lambda: file.write_bytes(OLD.private_pem()), file.unlink):
            caplog.clear()
            breakage()
            await until(lambda: "auth.keys_kept" in caplog.text)
            assert accepts(verifier, OLD)
        NEW.write(file)
        await until(lambda: accepts(verifier, NEW))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"{" * 300_000])
async def test_a_shard_does_not_start_without_a_usable_file(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadConfig, match=r"keys\.json"):
        async with following(keys_file=str(file)):
            pass


async def test_keys_come_from_the_url_at_the_start(server: KeyServer) -> None:
    async with following(jwks_url=server.url) as verifier:
        assert accepts(verifier, OLD)


async def test_an_unknown_key_leads_to_one_fetch_in_a_while(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(jwks_url=server.url) as verifier:
        server.answer = (200, NEW.jwks())
        await until(lambda: accepts(verifier, NEW))
        monkeypatch.setattr(key_source, "REFETCH_S", 60)
        await until(lambda: not accepts(verifier, OLD))
        requests = server.requests
        for _ in range(40):
            accepts(verifier, OLD)
            await asyncio.sleep(0)
        # One wait of the short kind may still have been under way.
        assert server.requests <= requests + 1


FAILURES: dict[str, tuple[int, bytes]] = {
    "an error": (500, b"oops"),
    "a page": (200, b"<html>"),
    "no keys": (200, b'{"keys": []}'),
    "a private key": (200, OLD.private_pem()),
    "a redirect": (302, NEW.jwks()),
    "more than fits": (200, b" " * (key_source.MAX_KEYS_BYTES + 1) + NEW.jwks()),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_fetch_that_fails_keeps_the_keys(
    failure: str, server: KeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(jwks_url=server.url) as verifier:
        server.answer = FAILURES[failure]
        assert not accepts(verifier, NEW)
        await until(lambda: "auth.keys_kept" in caplog.text)
        assert accepts(verifier, OLD)
        assert not accepts(verifier, NEW)
        server.answer = (200, NEW.jwks())
        await until(lambda: accepts(verifier, NEW))


async def test_without_an_answer_from_the_url_a_shard_starts_and_accepts_no_token_until_it_comes(
    server: KeyServer,
) -> None:
    server.answer = (503, b"")
    async with following(jwks_url=server.url) as verifier:
        with pytest.raises(NoTokenKeys):
            verifier.verify(OLD.token(), PEER)
        server.answer = (200, OLD.jwks())
        await until(lambda: accepts(verifier, OLD))


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def url_of(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}/keys"


async def test_a_server_that_does_not_answer_holds_up_no_lane(silent: socket.socket) -> None:
    async def start_and_end() -> None:
        async with following(jwks_url=url_of(silent)) as verifier:
            assert not accepts(verifier, OLD)

    starting = asyncio.create_task(start_and_end())
    connection, _ = await asyncio.to_thread(silent.accept)
    # The thread waits for the answer, and the loop turns meanwhile.
    for _ in range(100):
        await asyncio.sleep(0)
    assert not starting.done()
    connection.close()
    await starting


async def test_a_server_that_does_not_answer_does_not_hold_up_the_start_for_long(
    silent: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(key_source, "FETCH_S", 0.05)
    async with following(jwks_url=url_of(silent)) as verifier:
        assert not accepts(verifier, OLD)
        assert "auth.keys_kept" in caplog.text


def test_a_download_is_bounded_in_size(server: KeyServer) -> None:
    server.answer = FAILURES["more than fits"]
    with pytest.raises(ValueError, match="more than"):
        download(server.url)
