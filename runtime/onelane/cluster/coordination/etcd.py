"""etcd 3.4 and later, by its JSON gateway, which every member serves beside gRPC at its client address.

Why not by gRPC: decision 0031. How requests find a member: `etcd_requests`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from random import Random
from typing import Any

from onelane.cluster.coordination import (
    Condition,
    ConditionFailed,
    CoordinationUnavailable,
    EntryChanges,
    Granted,
    HistoryLost,
    LeaseEnded,
    Snapshot,
    Write,
)
from onelane.cluster.coordination.etcd_errors import QuietWatch
from onelane.cluster.coordination.etcd_json import (
    changes_of,
    range_of,
    revision_of,
    snapshot_of,
    transaction,
    understood,
    watch_request,
)
from onelane.cluster.coordination.etcd_requests import EtcdAddress as EtcdAddress
from onelane.cluster.coordination.etcd_requests import EtcdRequests
from onelane.core.backoff import backoff_s

log = logging.getLogger("onelane.cluster")
LAST_SECOND_S = 0.5
"""What a lease has left in its last second: etcd tells whole ones."""
WATCH_RETRY_S, LONGEST_WATCH_RETRY_S = 0.05, 1.0


class EtcdStore:
    """See `onelane.cluster.coordination.CoordinationStore`. Owned by one event loop."""

    def __init__(self, address: EtcdAddress) -> None:
        self._address = address
        self._requests = EtcdRequests(address)
        self._random = Random()

    @property
    def ahead_s(self) -> float | None:
        """See `CoordinationStore`."""
        return self._requests.ahead_s

    @property
    def answers_in_s(self) -> float | None:
        """See `CoordinationStore`."""
        return self._requests.answers_in_s

    @property
    def requests(self) -> Mapping[str, int]:
        """Requests that were sent, by their path."""
        return self._requests.counts

    @property
    def under_way(self) -> int:
        """Requests that are neither answered nor given up, with or without a caller."""
        return self._requests.under_way

    async def look_around(self) -> None:
        await self._requests.look_around()

    async def grant(self, ttl_s: float) -> Granted:
        answer = await self._requests.ask("lease/grant", {"TTL": str(max(1, round(ttl_s)))})
        with understood():
            return Granted(int(answer["ID"]), float(answer.get("TTL", 0)))

    async def renew(self, lease_id: int) -> float:
        answer = await self._requests.ask("lease/keepalive", {"ID": str(lease_id)}, within_s=self._address.linger_s)
        with understood():
            return max(0.0, float(answer.get("TTL", 0)))

    async def remaining(self, lease_id: int) -> float:
        answer = await self._requests.ask("lease/timetolive", {"ID": str(lease_id)})
        with understood():
            # -1: there is no such lease. One in its last second has 0 left, and has not ended.
            ttl_s = float(answer.get("TTL", 0))
            return 0.0 if ttl_s < 0 else max(ttl_s, LAST_SECOND_S)

    async def revoke(self, lease_id: int) -> None:
        try:
            await self._requests.ask("lease/revoke", {"ID": str(lease_id)})
        except LeaseEnded:
            return

    async def read(self, prefix: str) -> Snapshot:
        answer = await self._requests.ask("kv/range", range_of(prefix))
        with understood():
            return snapshot_of(answer)

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        answer = await self._requests.ask("kv/txn", transaction(conditions, writes))
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
            except QuietWatch:
                attempt = 0
                continue
            except CoordinationUnavailable as error:
                log.debug("etcd.watch_again after=%d error=%s", after, error)
            cap_s = LONGEST_WATCH_RETRY_S
            await asyncio.sleep(backoff_s(attempt, base_s=WATCH_RETRY_S, cap_s=cap_s, rng=self._random))
            attempt += 1

    async def close(self) -> None:
        await self._requests.close()

    async def _watch_once(self, prefix: str, after: int) -> AsyncGenerator[EntryChanges]:
        """Until its connection ends, or was silent for too long."""
        async with aclosing(self._requests.messages("watch", watch_request(prefix, after))) as messages:
            async for message in messages:
                with understood():
                    _check_watch(message, after)
                    changes = changes_of(message) if message.get("events") else None
                if changes is not None:
                    yield changes


def _check_watch(message: Mapping[str, Any], after: int) -> None:
    if int(message.get("compact_revision", 0)) > 0:
        raise HistoryLost(f"revision {after + 1} was compacted; the oldest is {message['compact_revision']}")
    if message.get("canceled"):
        raise CoordinationUnavailable(f"the watch was cancelled: {message.get('cancel_reason', 'no reason')}")
    if message.get("created") and revision_of(message) < after:
        raise HistoryLost(f"the store is at revision {revision_of(message)}, before {after}")
