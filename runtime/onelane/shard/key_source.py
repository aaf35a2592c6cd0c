"""Where the keys for tokens come from: a file that is read again when it changes, or an issuer's url.

Promises: nothing is fetched on the lane; a fetch is bounded in time and in size; where reading or fetching fails, the
keys stay as they are, and the log says so. Only loaded where an app has `[apps.NAME.auth.jwt]`.
"""

import asyncio
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from onelane.core.auth_settings import JwtSettings
from onelane.errors import BadConfig
from onelane.server.token_keys import TokenKeys, parse_keys
from onelane.server.token_verifier import JwtVerifier

log = logging.getLogger("onelane.auth")
FILE_LOOK_S = 1.0
"""How often the file is looked at."""
FETCH_S = 5.0
"""How long a fetch may take, at the start too."""
REFETCH_S = 15.0
"""After a fetch that failed; a token with an unknown key leads to the next fetch no sooner either."""
MAX_KEYS_BYTES = 256 * 1024


class KeySource:
    """Gives a verifier its keys, from `start` to `aclose`. Owned by one lane."""

    def __init__(self, settings: JwtSettings, verifier: JwtVerifier) -> None:
        self._settings = settings
        self._verifier = verifier
        self._task: asyncio.Task[None] | None = None
        self._is_asked = asyncio.Event()
        self._fetching: threading.Thread | None = None
        self._file_stamp = (0, 0)
        self._in_use: bytes | None = None
        verifier.key_is_unknown = self._is_asked.set

    def load(self) -> None:
        """See `authenticator.TokenKeysFollower`."""
        if self._settings.keys_file is not None:
            self._file_stamp = _stamp(self._settings.keys_file)
            self._use(read_keys(self._settings), self._settings.keys_file)

    async def start(self) -> None:
        """See `authenticator.TokenKeysFollower`. Without keys from the url it starts all the same; no token is accepted
        until they come."""
        if self._settings.keys_file is not None:
            following = self._follow_file(self._settings.keys_file)
        else:
            assert self._settings.jwks_url is not None
            url = self._settings.jwks_url
            following = self._follow_url(url, is_fresh=await self._fetch(url))
        self._task = asyncio.get_running_loop().create_task(following)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _follow_file(self, file: str) -> None:
        while True:
            await asyncio.sleep(FILE_LOOK_S)
            seen, self._file_stamp = self._file_stamp, _stamp(file)
            if self._file_stamp == seen:
                continue
            try:
                self._use(read_keys(self._settings), file)
            except BadConfig as error:
                log.error("auth.keys_kept the keys that were loaded before stay in use: %s", error)

    async def _follow_url(self, url: str, *, is_fresh: bool) -> None:
        while True:
            await self._wait_for_next(self._settings.refresh_s if is_fresh else REFETCH_S)
            is_fresh = await self._fetch(url)

    async def _wait_for_next(self, pause_s: float) -> None:
        """Wait so long; but where a token has named an unknown key, REFETCH_S alone."""
        await asyncio.sleep(min(pause_s, REFETCH_S))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s - REFETCH_S):
                await self._is_asked.wait()
        self._is_asked.clear()

    async def _fetch(self, url: str) -> bool:
        """Fetch the keys on a thread of its own; whether they came."""
        try:
            async with asyncio.timeout(FETCH_S):
                self._use(await self._in_thread(lambda: parse_keys(download(url), self._settings.algorithms)), url)
        except (OSError, ValueError) as error:
            text = str(error) or f"it took longer than {FETCH_S:g} s"
            log.error("auth.keys_kept the keys that were loaded before stay in use: %s: %.200r", url, text)
            return False
        return True

    def _in_thread(self, work: Callable[[], TokenKeys]) -> "asyncio.Future[TokenKeys]":
        if self._fetching is not None and self._fetching.is_alive():
            raise TimeoutError("the fetch before has not ended")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[TokenKeys] = loop.create_future()

        def run() -> None:
            try:
                outcome: Any = work()
            except Exception as error:
                outcome = error if isinstance(error, OSError | ValueError) else ValueError(repr(error))
            with suppress(RuntimeError):
                # The loop may be closed.
                loop.call_soon_threadsafe(_settle, answer, outcome)

        # A daemon: a shard that ends does not wait for a server that does not answer.
        self._fetching = threading.Thread(target=run, name="onelane-keys", daemon=True)
        self._fetching.start()
        return answer

    def _use(self, keys: TokenKeys, place: str) -> None:
        if keys.text == self._in_use:
            return
        self._in_use = keys.text
        self._verifier.use(keys)
        log.info("auth.keys_loaded keys=%d from=%s", len(keys), place)


def read_keys(settings: JwtSettings) -> TokenKeys:
    """The keys in `keys_file`.

    Raises:
        BadConfig: the file cannot be used.
    """
    file = settings.keys_file
    assert file is not None
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(MAX_KEYS_BYTES + 1)
        if len(text) > MAX_KEYS_BYTES:
            raise ValueError(f"it has more than {MAX_KEYS_BYTES} bytes")
        return parse_keys(text, settings.algorithms)
    except OSError as error:
        raise BadConfig("auth.jwt.keys_file", [f"{file}: {error.strerror or error}"]) from error
    except ValueError as error:
        raise BadConfig("auth.jwt.keys_file", [f"{file}: {error}"]) from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to another scheme or host than the file names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def download(url: str) -> bytes:
    """The body of an answer. Blocks, for as long as the server sends something every FETCH_S.

    Raises:
        OSError: it could not be had.
        ValueError: it is larger than MAX_KEYS_BYTES, or comes too slowly.
    """
    until = monotonic() + FETCH_S
    opener = urllib.request.build_opener(_NoRedirects)
    request = urllib.request.Request(url, headers={"accept": "application/json, application/jwk-set+json"})
    body = b""
    try:
        opened = opener.open(request, timeout=FETCH_S)
    except urllib.error.HTTPError as error:
        # It holds the connection.
        error.close()
        raise
    with opened as answer:
        while part := answer.read1(65536):
            body += part
            if len(body) > MAX_KEYS_BYTES:
                raise ValueError(f"it has more than {MAX_KEYS_BYTES} bytes")
            if monotonic() > until:
                raise ValueError(f"it took longer than {FETCH_S:g} s")
    return body


def _settle(answer: "asyncio.Future[TokenKeys]", outcome: Any) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _stamp(file: str) -> tuple[int, int]:
    try:
        stat = os.stat(file)
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_ino)
