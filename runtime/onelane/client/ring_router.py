"""Which shard of an app a call goes to: follows the app's topology, and keeps a channel to each of its shards.

Until an owner's connection stands, and whenever it breaks, calls go to the shared address, where the server forwards
them: routing here only saves the hop. Where the target serves no topology, all calls go to the shared address. Once the
shards are known, one of them stands in for the target while that cannot be reached: they may be on other machines.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from time import monotonic

import grpc
import grpc.aio

from onelane.client.call import ClientCall
from onelane.client.channel import NativeChannel
from onelane.client.dropped_call import WeakCall
from onelane.client.hedging import HedgedCall
from onelane.client.options import Dialling
from onelane.client.outlier import EndpointHealth
from onelane.core.backoff import backoff_s
from onelane.core.placement import Member, Placement
from onelane.v1 import topology_pb2, topology_pb2_grpc

READY, FAILURE = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
REWATCH_S = 0.05
"""The least that lies between two requests for the topology."""
MAX_REWATCH_S = 1.0
LEAVING_S = 86_400.0
"""How long the calls of a shard that has left the app may go on. It ends them sooner, as it stops."""


@dataclass(frozen=True, slots=True)
class ShardEndpoint:
    """One shard of the app, by its own address."""

    channel: NativeChannel
    health: EndpointHealth


@dataclass(frozen=True, slots=True, eq=False)
class _Awaiting:
    epoch: int
    then: Callable[[], None]


class RingRouter:
    """See the module. Owned by the event loop in which it is first used; it may be made before one runs."""

    def __init__(self, target: str, dialling: Dialling) -> None:
        self.shared = NativeChannel(target, dialling)
        """To the app's shared address."""
        self.placement: Placement | None = None
        """None until the topology is known."""
        self.configured_keys: dict[str, str] = {}
        self.once_methods: frozenset[str] = frozenset()
        """`pkg.Service/Method` → its calls run once for each id."""
        self.serves_no_topology = False
        """The target has refused to tell: it is no app of ours."""
        self.endpoints: dict[str, ShardEndpoint] = {}
        """Address → shard, of the newest placement."""
        self._leaving: dict[asyncio.Task[None], NativeChannel] = {}
        """Those to shards that have left, whose calls go on."""
        self.between_attempts: set[ClientCall | HedgedCall | WeakCall] = set()
        """Calls that wait for their next attempt, and streams that are to be opened again: no channel knows of them."""
        self._awaiting: dict[_Awaiting, None] = {}
        self._dialling = dialling
        self._rng = Random()
        self._is_placed = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        """Set once a loop runs."""
        with suppress(RuntimeError):
            self.follow()

    def follow(self) -> None:
        """Begin to follow the topology, unless that is under way.

        Raises:
            RuntimeError: no event loop is running.
        """
        if self._follower is None:
            self._follower = asyncio.get_running_loop().create_task(self._follow())

    def pick(self, key: str | None, attempt: int = 0) -> tuple[NativeChannel, EndpointHealth | None]:
        """The channel of a call: to the owner while its connection stands and it is healthy, else to the shared
        address.

        attempt: those of one call without a key go to one shard after another.
        """
        if self.placement is None:
            self.follow()
            return self.shared, None
        if key is None and not attempt:
            return self._entry()
        if key is None:
            endpoint = list(self.endpoints.values())[attempt % len(self.endpoints)]
        else:
            endpoint = self.endpoints[self.placement.owner_of(key).address]
        if endpoint.channel.get_state(try_to_connect=True) is READY and endpoint.health.allows(monotonic()):
            return endpoint.channel, endpoint.health
        return self._entry()

    def _entry(self) -> tuple[NativeChannel, EndpointHealth | None]:
        """The shared address; while it cannot be reached any shard that can, as each of them sends calls on."""
        if self.shared.get_state(try_to_connect=True) is FAILURE:
            now, endpoints = monotonic(), self.endpoints.values()
            if ready := [each for each in endpoints if each.channel.get_state() is READY and each.health.allows(now)]:
                endpoint = self._rng.choice(ready)
                return endpoint.channel, endpoint.health
        return self.shared, None

    def when_placed(self, epoch: int, then: Callable[[], None], within_s: float) -> None:
        """Call `then` once the placement of an epoch is known, or a later one; at the latest after `within_s`, and now
        where the app has no topology."""
        if self.placement is None or self.placement.epoch >= epoch:
            then()
            return
        awaiting = _Awaiting(epoch, then)
        self._awaiting[awaiting] = None
        asyncio.get_running_loop().call_later(within_s, self._stop_awaiting, awaiting)

    def _stop_awaiting(self, awaiting: "_Awaiting") -> None:
        if awaiting in self._awaiting:
            del self._awaiting[awaiting]
            awaiting.then()

    async def wait_ready(self) -> None:
        """Wait until the topology is known, or refused, and every owner's connection stands."""
        self.follow()
        await self.shared.channel_ready()
        await self._is_placed.wait()
        for endpoint in list(self.endpoints.values()):
            await endpoint.channel.channel_ready()

    def begin_close(self, grace: float | None) -> None:
        """Take no new call; `close` must follow.

        Raises:
            ValueError: grace is negative.
        """
        for channel in self._channels():
            channel.subchannel.begin_close(grace)
        if self._follower is not None:
            # At once: it would make a call when it next runs.
            self._follower.cancel()

    async def close(self, grace: float | None) -> None:
        self.begin_close(grace)
        if self._follower is not None:
            with suppress(asyncio.CancelledError):
                await self._follower
        if grace and self.between_attempts:
            # No channel knows of them: it would close before their next attempt.
            until = monotonic() + grace
            await asyncio.wait([asyncio.ensure_future(c.wait_ended()) for c in self.between_attempts], timeout=grace)
            grace = max(0.0, until - monotonic())
        await asyncio.gather(*(channel.close(grace) for channel in self._channels()), *self._leaving)
        for call in tuple(self.between_attempts):
            call.cancel()

    def _channels(self) -> list[NativeChannel]:
        of_shards = (endpoint.channel for endpoint in self.endpoints.values())
        return [self.shared, *of_shards, *self._leaving.values()]

    async def _follow(self) -> None:
        attempt = 0
        while True:
            watch = topology_pb2_grpc.TopologyStub(self._entry()[0]).Watch
            try:
                # Only for the first of them is there nobody else to ask.
                async for update in watch(topology_pb2.WatchRequest(), wait_for_ready=self.placement is None):
                    attempt = 0
                    await self._place(update)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    self.serves_no_topology = True
                    self._is_placed.set()
                    return
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    # The shard has too many watches. Until it takes this one, calls go to the shared address.
                    self._is_placed.set()
            attempt += 1
            await asyncio.sleep(REWATCH_S + backoff_s(attempt, base_s=REWATCH_S, cap_s=MAX_REWATCH_S, rng=self._rng))

    async def _place(self, update: topology_pb2.Placement) -> None:
        members = tuple(Member(member.name, member.address, "") for member in update.members)
        placement = Placement(update.epoch, members, update.points, dict(update.pins))
        for member in members:
            if member.address not in self.endpoints:
                channel = NativeChannel(member.address, self._dialling)
                channel.subchannel.fallback = self.shared.subchannel
                self.endpoints[member.address] = ShardEndpoint(channel, EndpointHealth())
                channel.get_state(try_to_connect=True)
        self.configured_keys = dict(update.keys)
        self.once_methods = frozenset(update.once_methods)
        self.placement = placement
        self._is_placed.set()
        for address in set(self.endpoints) - {member.address for member in members}:
            self._leave(self.endpoints.pop(address).channel)
        for awaiting in [awaiting for awaiting in self._awaiting if awaiting.epoch <= placement.epoch]:
            self._stop_awaiting(awaiting)

    def _leave(self, channel: NativeChannel) -> None:
        """Close the channel to a shard that has left the app, once its calls have ended: their callers have cancelled
        none of them."""
        channel.subchannel.begin_close(None)
        closing = asyncio.get_running_loop().create_task(channel.close(LEAVING_S))
        self._leaving[closing] = channel
        closing.add_done_callback(self._leaving.pop)
