"""etcd 3.4 and later, by its JSON gateway, which every member serves beside gRPC at its client address.

Why not by gRPC: decision 0031. A request goes to one member, the one that answered last; where that one refuses the
connection, or says that it has no leader, the next one is asked. So no request is carried out twice; one that was not
answered in time may still be. A member that fails in any other way is not asked next.
"""

import asyncio
import json
import logging
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any

import aiohttp

from onelane.cluster.coordination import (
    Condition,
    ConditionFailed,
    CoordinationRefused,
    CoordinationUnavailable,
    EntryChanges,
    Granted,
    HistoryLost,
    LeaseEnded,
    Snapshot,
    Write,
)
from onelane.cluster.coordination.etcd_json import (
    changes_of,
    error_of,
    range_of,
    revision_of,
    snapshot_of,
    store_of,
    transaction,
    understood,
    watch_request,
)
from onelane.core.backoff import backoff_s
from onelane.wire.statuses import PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED

log = logging.getLogger("onelane.cluster")
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of one answer, or one message of a watch: more is no store of placements."""
NOT_FOUND = 5
REFUSALS = {3, NOT_FOUND, PERMISSION_DENIED, 9, 11, UNIMPLEMENTED, UNAUTHENTICATED}
"""gRPC codes of requests that will fail again: a wrong password is INVALID_ARGUMENT (3)."""
OLD_TOKENS = ("invalid auth token", "revision of auth store is old")
NO_LEADER = "etcdserver: no leader"
HINTS = {
    "invalid user ID or password": "expected a user of this etcd, and its password",
    "user name is empty": "this etcd has users: expected one, and its password",
    "authentication is not enabled": "this etcd has no users: expected none",
    "permission denied": "expected a user that may read and write these keys",
}
"""What etcd says → what it takes."""
LAST_SECOND_S = 0.5
"""What a lease has left in its last second: etcd tells whole ones."""
WATCH_RETRY_S, LONGEST_WATCH_RETRY_S = 0.05, 1.0


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
    """The longest that one request may take."""
    quiet_s: float = 5.0
    """How long a watch may be silent before it is opened anew: its connection may be dead."""


class EtcdStore:
    """See `onelane.cluster.coordination.CoordinationStore`. Owned by one event loop."""

    def __init__(self, address: EtcdAddress) -> None:
        self._address = address
        self._members = list(address.endpoints)
        """The first is asked; one that fails goes to the end."""
        self._session: aiohttp.ClientSession | None = None
        self._token = ""
        self._store = ""
        """The number of the etcd cluster that has answered first."""
        self._random = Random()
        self.requests = Counter[str]()
        """Requests that were sent, by their path."""
        self.ahead_s: float | None = None
        """See `CoordinationStore`; by the header `date` of its last answer."""

    async def grant(self, ttl_s: float) -> Granted:
        answer = await self._ask("lease/grant", {"TTL": str(max(1, round(ttl_s)))})
        with understood():
            return Granted(int(answer["ID"]), float(answer.get("TTL", 0)))

    async def renew(self, lease_id: int) -> float:
        answer = await self._ask("lease/keepalive", {"ID": str(lease_id)})
        with understood():
            return max(0.0, float(answer.get("TTL", 0)))

    async def remaining(self, lease_id: int) -> float:
        answer = await self._ask("lease/timetolive", {"ID": str(lease_id)})
        with understood():
            # -1: there is no such lease. One in its last second has 0 left, and has not ended.
            ttl_s = float(answer.get("TTL", 0))
            return 0.0 if ttl_s < 0 else max(ttl_s, LAST_SECOND_S)

    async def revoke(self, lease_id: int) -> None:
        try:
            await self._ask("lease/revoke", {"ID": str(lease_id)})
        except LeaseEnded:
            return

    async def read(self, prefix: str) -> Snapshot:
        answer = await self._ask("kv/range", range_of(prefix))
        with understood():
            return snapshot_of(answer)

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        answer = await self._ask("kv/txn", transaction(conditions, writes))
        if not answer.get("succeeded"):
            raise ConditionFailed(f"not as expected: {', '.join(map(str, conditions))}")
        with understood():
            return revision_of(answer)

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[EntryChanges]:
        attempt = 0
        while True:
            try:
                async with aclosing(self._watch_once(prefix, after)) as news:
                    async for changes in news:
                        attempt, after = 0, changes.revision
                        yield changes
            except _Quiet:
                attempt = 0
                continue
            except CoordinationUnavailable as error:
                log.debug("etcd.watch_again after=%d error=%s", after, error)
            cap_s = LONGEST_WATCH_RETRY_S
            await asyncio.sleep(backoff_s(attempt, base_s=WATCH_RETRY_S, cap_s=cap_s, rng=self._random))
            attempt += 1

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    # One request

    async def _ask(self, path: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        limits = aiohttp.ClientTimeout(total=self._address.timeout_s)
        try:
            return await self._answer(path, request, limits)
        except _OldToken:
            # etcd forgets tokens as it is restarted, and some minutes after their last use.
            self._token = ""
            try:
                return await self._answer(path, request, limits)
            except _OldToken as error:
                raise CoordinationRefused(str(error)) from None

    async def _answer(self, path: str, request: Mapping[str, Any], limits: aiohttp.ClientTimeout) -> Mapping[str, Any]:
        for left in reversed(range(len(self._members))):
            try:
                return await self._answer_once(path, request, limits)
            except _NoLeader:
                if not left:
                    raise
        raise AssertionError("unreachable: what the last member says is raised")

    async def _answer_once(
        self, path: str, request: Mapping[str, Any], limits: aiohttp.ClientTimeout
    ) -> Mapping[str, Any]:
        member, response = await self._post(path, request, limits)
        try:
            body = await _whole(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failed(member, error) from error
        finally:
            response.release()
        if response.status != 200:
            raise self._refused(member, *error_of(body))
        answer = self._message(member, body)
        self._check_store(member, answer)
        self.ahead_s = _ahead_s(response.headers.get("date", ""), time.time())
        return answer

    async def _post(
        self, path: str, request: Mapping[str, Any], limits: aiohttp.ClientTimeout
    ) -> tuple[str, aiohttp.ClientResponse]:
        """Send a request to the first member that takes the connection; it, and the answer."""
        if self._address.user and not self._token and path != "auth/authenticate":
            await self._authenticate()
        headers = {"Grpc-Metadata-hasleader": "true"} | ({"Authorization": self._token} if self._token else {})
        for left in reversed(range(len(self._members))):
            member = self._members[0]
            try:
                return member, await self._post_to(member, path, request, headers, limits)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = self._failed(member, error)
                # Only a request that was not sent may be sent again.
                if not left or not isinstance(error, aiohttp.ClientConnectorError):
                    raise failure from error
        raise AssertionError("unreachable: the last member's failure is raised")

    async def _post_to(
        self,
        member: str,
        path: str,
        request: Mapping[str, Any],
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._address.tls or True))
        if self._session.closed:
            raise CoordinationRefused("the store has been closed")
        url = f"{member.rstrip('/')}/v3/{path}"
        body = json.dumps(request)
        self.requests[path] += 1
        return await self._session.post(url, data=body, headers=headers, timeout=limits, allow_redirects=False)

    async def _authenticate(self) -> None:
        request = {"name": self._address.user, "password": self._address.password}
        answer = await self._answer("auth/authenticate", request, aiohttp.ClientTimeout(self._address.timeout_s))
        self._token = str(answer.get("token", ""))

    def _pass_over(self, member: str) -> None:
        """Ask another member next."""
        # Else another request that has failed there has done so.
        if self._members[0] == member:
            self._members.append(self._members.pop(0))

    def _failed(self, member: str, error: BaseException) -> Exception:
        """The error to raise, which names the member; it is passed over."""
        self._pass_over(member)
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            return CoordinationRefused(f"etcd at {member}: {error}")
        words = str(error) or type(error).__name__
        return CoordinationUnavailable(f"etcd at {member} does not answer: {words}")

    def _refused(self, member: str, code: int, words: str) -> Exception:
        """For an answer of a member that is an error; it is passed over, unless all would say the same."""
        hint = next((f" ({hint})" for text, hint in HINTS.items() if text in words), "")
        error = _error(code, f"etcd at {member}: {words}{hint}")
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

    # A watch

    async def _watch_once(self, prefix: str, after: int) -> AsyncGenerator[EntryChanges]:
        """Until its connection ends, or was silent for too long."""
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=self._address.timeout_s, sock_read=self._address.quiet_s
        )
        member, response = await self._post("watch", watch_request(prefix, after), limits)
        try:
            if response.status != 200:
                raise self._refused(member, *error_of(await _whole(response)))
            async for line in _lines(response):
                message = self._message(member, line)
                self._check_store(member, message)
                with understood():
                    _check_watch(message, after)
                    changes = changes_of(message) if message.get("events") else None
                if changes is not None:
                    yield changes
            # It has ended what has no end.
            self._pass_over(member)
        except _OldToken as error:
            self._token = ""
            raise CoordinationUnavailable(str(error)) from None
        except aiohttp.SocketTimeoutError:
            raise _Quiet from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failed(member, error) from error
        finally:
            response.close()


class _Quiet(Exception):
    """A watch was silent for so long that its connection may be dead."""


class _NoLeader(CoordinationUnavailable):
    """A member has no leader, as it is cut off from the others; it has carried out nothing."""


class _OldToken(CoordinationRefused):
    """The store has forgotten who we are."""


def _ahead_s(date: str, now: float) -> float | None:
    """How far `now` is ahead of a date of HTTP, which has whole seconds. None: it is no date."""
    try:
        return float(round(now - parsedate_to_datetime(date).timestamp()))
    except ValueError:
        return None


def _error(code: int, words: str) -> Exception:
    if any(text in words for text in OLD_TOKENS):
        return _OldToken(words)
    if code == NOT_FOUND and "lease" in words:
        return LeaseEnded(words)
    if code in REFUSALS:
        return CoordinationRefused(words)
    return _NoLeader(words) if NO_LEADER in words else CoordinationUnavailable(words)


def _check_watch(message: Mapping[str, Any], after: int) -> None:
    if int(message.get("compact_revision", 0)) > 0:
        raise HistoryLost(f"revision {after + 1} was compacted; the oldest is {message['compact_revision']}")
    if message.get("canceled"):
        raise CoordinationUnavailable(f"the watch was cancelled: {message.get('cancel_reason', 'no reason')}")
    if message.get("created") and revision_of(message) < after:
        raise HistoryLost(f"the store is at revision {revision_of(message)}, before {after}")


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
