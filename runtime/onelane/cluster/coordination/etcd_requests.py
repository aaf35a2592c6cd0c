"""Requests to the members of an etcd, by its JSON gateway: to which of them, until when, and what comes of it.

A request goes to one member, the one that answered last; where that one refuses the connection, or says that it has no
leader, the next one is asked. So no request is carried out twice; one that was not answered in time may still be. A
member that fails in any other way is not asked next.

A request that is late goes on without its caller for a while (`EtcdAddress.linger_s`): its connection, which takes
three ways there and back, is there for the next one then. Meanwhile other requests go to other members.
"""

import asyncio
import json
import logging
import ssl
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from onelane.cluster.coordination import CoordinationRefused, CoordinationUnavailable
from onelane.cluster.coordination.etcd_errors import NoLeader, OldToken, QuietWatch, error_said
from onelane.cluster.coordination.etcd_json import error_of, store_of, understood
from onelane.cluster.coordination.members import agreed_ahead_s, ahead_of_date_s, apart_members, next_member

_T = TypeVar("_T")
log = logging.getLogger("onelane.cluster")
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of one answer, or one message of a watch: more is no store of placements."""
CONNECTION_KEPT = 6
"""How many times `quiet_s` a connection that nobody uses is kept: until after the next look around."""
REMEMBERED_ANSWERS = 8
"""Of which the quickest says how far away etcd is: the first one has its connection in it."""


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """How a store is reached."""

    endpoints: tuple[str, ...]
    """URLs of its members."""
    user: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None
    """For URLs of https; None: the system's authorities."""
    timeout_s: float = 1.5
    """How long a caller waits for the answer to its request; not that of a renewal."""
    linger_s: float = 4.5
    """How long a request goes on in all, `timeout_s` at least: the caller of a renewal waits for so long."""
    late_s: float = 0.75
    """How long a member may owe an answer before other requests go to another one."""
    quiet_s: float = 5.0
    """How long a watch may be silent before it is opened anew: its connection may be dead."""


class EtcdRequests:
    """See the module. Owned by one event loop."""

    def __init__(self, address: EtcdAddress) -> None:
        self._address = address
        self._linger_s = max(address.linger_s, address.timeout_s)
        self._members = list(address.endpoints)
        """By `next_member`; one that fails goes to the end."""
        self._unanswered: set[_Sent] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        """Of requests, until they are answered or given up."""
        self._answered_in_s: deque[float] = deque(maxlen=REMEMBERED_ANSWERS)
        self._session: aiohttp.ClientSession | None = None
        self._token = ""
        self._store = ""
        """The number of the etcd cluster that has answered first."""
        self.counts = Counter[str]()
        """Requests that were sent, by their path."""
        self.ahead_s: float | None = None
        """See `CoordinationStore`; by the header `date` of its members' answers."""
        self._apart: tuple[str, ...] = ()
        """Members whose clocks are far from the others', as of the last look."""

    @property
    def answers_in_s(self) -> float | None:
        """See `CoordinationStore`."""
        return min(self._answered_in_s, default=None)

    @property
    def under_way(self) -> int:
        """Requests that are neither answered nor given up, with or without a caller."""
        return len(self._tasks)

    async def look_around(self) -> None:
        asked = [self._kept(self._look_at(member)) for member in self._members]
        ahead: dict[str, float | None] = dict.fromkeys(self._members)
        for count, answer in enumerate(asyncio.as_completed(asked), 1):
            member, ahead[member] = await answer
            self.ahead_s = agreed_ahead_s([*ahead.values()])
            # The others are left to answer, or not: a member that is cut off takes `linger_s`.
            if self.ahead_s is not None and 2 * count > len(asked):
                break
        self._kept(self._tell_of_clocks(asked))

    async def _look_at(self, member: str) -> tuple[str, float | None]:
        """How far this machine's clock is ahead of the member's; None: it does not answer. Its connection stays."""
        url, limits = f"{member.rstrip('/')}/version", aiohttp.ClientTimeout(total=self._linger_s)
        self.counts["version"] += 1
        try:
            async with self._opened().get(url, timeout=limits, allow_redirects=False) as response:
                await _whole(response)
                return member, ahead_of_date_s(response.headers.get("date", ""), time.time())
        except (aiohttp.ClientError, TimeoutError, OSError, CoordinationRefused):
            return member, None

    async def _tell_of_clocks(self, looks: Sequence[asyncio.Task[tuple[str, float | None]]]) -> None:
        """Which members' are wrong: once, as long as they are the same."""
        apart = apart_members(dict(await asyncio.gather(*looks)))
        if apart != self._apart and apart:
            words = "set the wrong ones, as by NTP: clocks of machines are compared with that of most members"
            log.warning("etcd.clocks_differ members=%s %s", ",".join(apart), words)
        self._apart = apart

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._session is not None:
            await self._session.close()

    async def ask(self, path: str, request: Mapping[str, Any], *, within_s: float | None = None) -> Mapping[str, Any]:
        """One request, and its answer. within_s: how long it is waited for; by default `timeout_s`.

        Raises:
            CoordinationUnavailable, CoordinationRefused, LeaseEnded: see the seam.
        """
        within_s = self._address.timeout_s if within_s is None else within_s
        sent = _Sent()
        answering = self._kept(self._answer_with_token(path, request, sent))
        try:
            await asyncio.wait([answering], timeout=within_s)
        except asyncio.CancelledError:
            answering.cancel()
            raise
        if answering.done():
            return answering.result()
        self._pass_over(sent.member)
        raise CoordinationUnavailable(f"etcd at {sent.member} does not answer within {within_s:.2g} s")

    def _kept(self, request: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """A task that `close` ends, if it is not over by itself, and whose error may stay unread."""
        task = asyncio.ensure_future(request)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Read, as its caller may have gone.
            task.exception()

    async def _answer_with_token(self, path: str, request: Mapping[str, Any], sent: "_Sent") -> Mapping[str, Any]:
        limits = aiohttp.ClientTimeout(total=self._linger_s)
        try:
            return await self._answer(path, request, limits, sent)
        except OldToken:
            # etcd forgets tokens as it is restarted, and some minutes after their last use.
            self._token = ""
            try:
                return await self._answer(path, request, limits, sent)
            except OldToken as error:
                raise CoordinationRefused(str(error)) from None

    async def _answer(
        self, path: str, request: Mapping[str, Any], limits: aiohttp.ClientTimeout, sent: "_Sent"
    ) -> Mapping[str, Any]:
        for left in reversed(range(len(self._members))):
            try:
                return await self._answer_once(path, request, limits, sent)
            except NoLeader:
                if not left:
                    raise
        raise AssertionError("unreachable: what the last member says is raised")

    async def _answer_once(
        self, path: str, request: Mapping[str, Any], limits: aiohttp.ClientTimeout, sent: "_Sent"
    ) -> Mapping[str, Any]:
        response = await self._post(path, request, limits, sent)
        try:
            body = await _whole(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failed(sent.member, error) from error
        finally:
            response.release()
        self._answered_in_s.append(time.monotonic() - sent.at)
        if response.status != 200:
            raise self._refused(sent.member, *error_of(body))
        answer = self._message(sent.member, body)
        self._check_store(sent.member, answer)
        return answer

    async def _post(
        self, path: str, request: Mapping[str, Any], limits: aiohttp.ClientTimeout, sent: "_Sent"
    ) -> aiohttp.ClientResponse:
        """Send a request to the first member that takes the connection, and note which."""
        if self._address.user and not self._token and path != "auth/authenticate":
            await self._authenticate(sent)
        headers = {"Grpc-Metadata-hasleader": "true"} | ({"Authorization": self._token} if self._token else {})
        for left in reversed(range(len(self._members))):
            try:
                return await self._post_once(path, request, headers, limits, sent)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = self._failed(sent.member, error)
                # Only a request that was not sent may be sent again.
                if not left or not isinstance(error, aiohttp.ClientConnectorError):
                    raise failure from error
        raise AssertionError("unreachable: the last member's failure is raised")

    async def _post_once(
        self,
        path: str,
        request: Mapping[str, Any],
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        sent: "_Sent",
    ) -> aiohttp.ClientResponse:
        session, now = self._opened(), time.monotonic()
        owed = [(other.member, other.at) for other in self._unanswered]
        sent.member, sent.at = next_member(self._members, owed, now=now, late_s=self._address.late_s), now
        url = f"{sent.member.rstrip('/')}/v3/{path}"
        self.counts[path] += 1
        self._unanswered.add(sent)
        try:
            return await session.post(
                url, data=json.dumps(request), headers=headers, timeout=limits, allow_redirects=False
            )
        finally:
            self._unanswered.discard(sent)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            kept_s = CONNECTION_KEPT * self._address.quiet_s
            connector = aiohttp.TCPConnector(ssl=self._address.tls or True, keepalive_timeout=kept_s)
            self._session = aiohttp.ClientSession(connector=connector)
        if self._session.closed:
            raise CoordinationRefused("the store has been closed")
        return self._session

    async def _authenticate(self, sent: "_Sent") -> None:
        request = {"name": self._address.user, "password": self._address.password}
        limits = aiohttp.ClientTimeout(total=self._linger_s)
        answer = await self._answer("auth/authenticate", request, limits, sent)
        self._token = str(answer.get("token", ""))

    def _pass_over(self, member: str) -> None:
        """Ask it after all others. Requests that fail there together pass over it alone."""
        if member in self._members:
            self._members.remove(member)
            self._members.append(member)

    def _failed(self, member: str, error: BaseException) -> Exception:
        """The error to raise, which names the member; it is passed over."""
        self._pass_over(member)
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            return CoordinationRefused(f"etcd at {member}: {error}")
        words = str(error) or type(error).__name__
        return CoordinationUnavailable(f"etcd at {member} does not answer: {words}")

    def _refused(self, member: str, code: int, words: str) -> Exception:
        """For an answer of a member that is an error; it is passed over, unless all would say the same."""
        error = error_said(member, code, words)
        if isinstance(error, CoordinationUnavailable):
            self._pass_over(member)
        return error

    def _message(self, member: str, line: bytes) -> Mapping[str, Any]:
        """An answer, or one message of a stream of them.

        Raises:
            CoordinationRefused: it is not etcd's.
            CoordinationError: it is an error.
        """
        try:
            answer = json.loads(line)
            error = answer.get("error")
        except (ValueError, AttributeError):
            raise CoordinationRefused(f"this is no etcd: it answers {line[:80]!r}") from None
        if error:
            raise self._refused(member, *error_of(line))
        result: Mapping[str, Any] = answer.get("result", answer)
        return result

    def _check_store(self, member: str, answer: Mapping[str, Any]) -> None:
        with understood():
            store = store_of(answer)
        self._store = self._store or store
        if store and store != self._store:
            raise CoordinationRefused(f"another etcd answers at {member}: cluster {store}, not {self._store}")

    # What has no end

    async def messages(self, path: str, request: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any]]:
        """The messages that answer a request, until its connection ends.

        Raises:
            QuietWatch: there was none for `quiet_s`.
            CoordinationUnavailable, CoordinationRefused: see the seam.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._linger_s / 2, sock_read=self._address.quiet_s)
        response = await self._post(path, request, limits, sent := _Sent())
        try:
            if response.status != 200:
                raise self._refused(sent.member, *error_of(await _whole(response)))
            async for line in _lines(response):
                message = self._message(sent.member, line)
                self._check_store(sent.member, message)
                yield message
            # It has ended what has no end.
            self._pass_over(sent.member)
        except OldToken as error:
            self._token = ""
            raise CoordinationUnavailable(str(error)) from None
        except aiohttp.SocketTimeoutError:
            raise QuietWatch from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failed(sent.member, error) from error
        finally:
            response.close()


@dataclass(slots=True, eq=False)
class _Sent:
    """A request."""

    member: str = ""
    """That it was sent to last."""
    at: float = 0.0
    """When; monotonic seconds."""


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    body = await response.content.read(MAX_ANSWER_BYTES)
    while chunk := await response.content.read(MAX_ANSWER_BYTES):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise CoordinationRefused(f"an answer of etcd has more than {MAX_ANSWER_BYTES} bytes")
    return body


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_ANSWER_BYTES:
            raise CoordinationRefused(f"a message of etcd has more than {MAX_ANSWER_BYTES} bytes")
        for line in lines:
            if line.strip():
                yield line
