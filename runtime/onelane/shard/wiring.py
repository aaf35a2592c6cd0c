"""The wiring of one shard: the parts that it is made of, and what each of them is given.

Making the parts starts nothing: no part listens, sends or runs a task before `ShardLifecycle` starts it.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn

from onelane.client.options import APP_DIALLING, Dialling
from onelane.cluster.control import Control, fence_from_proto, links_from_proto, placement_from_proto
from onelane.cluster.membership import Membership
from onelane.cluster.topology import Topology
from onelane.config import App
from onelane.core.clock import Clock, SystemClock
from onelane.core.context import ShardBinding
from onelane.core.placement import Placement
from onelane.core.state_settings import SQLITE
from onelane.core.turns import Turns
from onelane.core.validation import from_json
from onelane.errors import BadConfig, located
from onelane.lane.admission import Admission, Rates
from onelane.lane.forwarder import Forwarder, NativeForwarder, Reach
from onelane.lane.lane import Lane
from onelane.lane.remembered import once_methods
from onelane.lane.routing import Router
from onelane.lane.turn_queue import TurnQueue
from onelane.plugins import make_plugin
from onelane.server.call import Call
from onelane.server.listener import Listener
from onelane.shard.access import Access, build_access
from onelane.shard.assertions import Assertions
from onelane.shard.durable_state import MakeStore
from onelane.shard.handoff import HandoffCarrier
from onelane.shard.held_turns import HeldTurns
from onelane.shard.pubsub import PubSub
from onelane.shard.reminders import Reminders
from onelane.shard.reporter import TICK_S, Reporter
from onelane.shard.services import Services
from onelane.shard.serving import LaneServing
from onelane.shard.settings_vote import SettingsVote
from onelane.shard.shard import Shard
from onelane.shard.sibling_service import SiblingService
from onelane.shard.siblings import SiblingCalls, SiblingChannels
from onelane.shard.status_query import StatusQuery
from onelane.shard.timers import Alarms, LoopAlarms
from onelane.state.store import StoreOptions
from onelane.telemetry.load import LoadMonitor
from onelane.telemetry.logs import LogBuffer
from onelane.telemetry.otel.metrics import Bridge
from onelane.telemetry.sampling import NEVER, named_sampler
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer
from onelane.v1 import control_pb2

if TYPE_CHECKING:
    from onelane.server.machine_link_tls import MachineLinkTls


@dataclass(frozen=True, slots=True)
class Environment:
    """The clock, the alarms and the network of a shard: this machine's, or those of a test."""

    clock: Clock = field(default_factory=SystemClock)
    alarms: Alarms = field(default_factory=LoopAlarms)
    dialling: Dialling = APP_DIALLING
    """How the channels of its stubs connect."""
    make_store: MakeStore | None = None
    """Makes the store of durable state; None for the one that the settings name."""
    opens_resources: bool = True
    """Whether worker threads make their resources; not where a shard is built only to check its services."""


MACHINE = Environment()
WAITING_SHARE, MIN_WAITING = 2, 1024
"""Of the calls that a shard may have in progress, one in so many may wait until it is connected to one sibling, or
MIN_WAITING of them. As many as go to it where a burst fills a shard before its first connection, and there are two
shards; were it all, a shard that is down would in time stop the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardParts:
    """The parts of one shard. All belong to its lane."""

    settings: App
    binding: ShardBinding
    """Binds code that runs for the shard to it."""
    shard: Shard
    services: Services
    lane: Lane
    access: Access
    serving: LaneServing
    listener: Listener
    membership: Membership
    forwarder: Forwarder
    links: "MachineLinkTls | None"
    """Of the links to other machines; None on a machine by itself."""
    sibling_channels: SiblingChannels
    pubsub: PubSub
    reminders: Reminders
    handoff: HandoffCarrier
    load: LoadMonitor
    held_turns: HeldTurns
    logs: LogBuffer | None
    """None where no sink asks for log records."""
    reporter: Reporter
    settings_vote: SettingsVote
    status_query: StatusQuery


def build_parts(setup: control_pb2.Setup, control: Control, environment: Environment = MACHINE) -> ShardParts:
    """Make all parts of the shard that `setup` describes.

    control: the line to its supervisor.

    Raises:
        BadConfig: the settings of the services do not fit, or a plug is unknown.
    """
    settings = from_json(App, setup.settings)
    clock = environment.clock
    stats = Stats()
    tracer = _tracer(setup, settings, clock)
    assertions = Assertions(setup.app, setup.asserts_to, setup.identity_key)
    shard = Shard(
        app=setup.app,
        name=setup.name,
        index=setup.index,
        life=setup.life,
        settings=settings,
        peers=dict(setup.peers),
        stats=stats,
        tracer=tracer,
        alarms=environment.alarms,
        dialling=environment.dialling,
        opens_resources=environment.opens_resources,
        assertions=assertions,
        make_store=environment.make_store or _store_of_machines(setup, settings),
    )
    placement = placement_from_proto(setup.placement)
    with located(f"apps.{setup.app}.membership"):
        membership = make_plugin("onelane.memberships", settings.membership, placement)
    with located(f"apps.{setup.app}.listener"):
        listener = make_plugin("onelane.listeners", settings.listener)
    links, reach_remote = _links(setup, listener)
    forwarder = NativeForwarder(
        max_waiting=max(MIN_WAITING, settings.max_in_flight // WAITING_SHARE), reach_remote=reach_remote
    )
    lane = _lane(setup, settings, placement, forwarder=forwarder, stats=stats, tracer=tracer)
    access = build_access(setup, settings, lane)
    load = LoadMonitor(
        stats, clock, lane.hot_keys, tick_s=TICK_S, salt=None if settings.show_keys else setup.identity_key
    )
    sibling_channels = SiblingChannels(reach_remote)
    sibling_calls = SiblingCalls(
        lane, sibling_channels, tracer=tracer, deadline_s=settings.deadline_s, assertions=assertions
    )
    pubsub = PubSub(
        lane,
        sibling_channels,
        stats=stats,
        tracer=tracer,
        incarnation=secrets.randbits(64),
        max_lag=settings.max_lag,
        max_published=settings.max_published,
    )
    reminders = Reminders(
        lane,
        sibling_calls,
        stats=stats,
        tracer=tracer,
        clock=clock,
        alarms=environment.alarms,
        settings=settings.state,
        deadline_s=settings.deadline_s,
    )
    shard.join(lane, sibling_calls, pubsub, reminders)
    handoff = HandoffCarrier(
        lane,
        shard.keyed_dicts,
        sibling_channels,
        control,
        under_way=lambda: [*_under_way(listener), *sibling_calls.to_self],
        drop_foreign=shard.drop_foreign,
        drain_s=settings.drain_s,
        stats=stats,
        tracer=tracer,
    )
    sibling_service = SiblingService(pubsub.receive, handoff.hand_over, handoff.hurry, reminders.serve)
    logs = LogBuffer(setup.name) if setup.logs else None
    status_query = StatusQuery(control)
    topology = Topology(
        membership,
        app=setup.app,
        listen=settings.listen,
        keys=settings.keys,
        once_methods=lambda: once_methods(lane.entries.values()) if lane.kept is not None else (),
        status=status_query.ask,
        is_status_open=settings.open_status,
        refused=lane.refusals.add,
    )
    return ShardParts(
        settings=settings,
        binding=ShardBinding(setup.name, tracer, Bridge(stats, clock.now)),
        shard=shard,
        services=Services(lane, shard, settings, builtin=[topology, sibling_service]),
        lane=lane,
        access=access,
        serving=LaneServing(lane, stats, access.gate),
        listener=listener,
        membership=membership,
        forwarder=forwarder,
        links=links,
        sibling_channels=sibling_channels,
        pubsub=pubsub,
        reminders=reminders,
        handoff=handoff,
        load=load,
        held_turns=HeldTurns(
            lane.queue,
            control,
            under_way=lambda: [*_under_way(listener), *sibling_calls.to_self],
            packages=frozenset(name.partition(":")[0].partition(".")[0] for name in settings.services),
            shown=load.shown,
        ),
        logs=logs,
        reporter=Reporter(control, stats=stats, tracer=tracer, load=load, logs=logs, keyed_counts=shard.keyed_counts),
        settings_vote=SettingsVote(control, shard, settings),
        status_query=status_query,
    )


def _tracer(setup: control_pb2.Setup, settings: App, clock: Clock) -> Tracer:
    return Tracer(
        shard=setup.name,
        sampler=named_sampler(setup.sampler, setup.sampler_arg) if setup.tracing else NEVER,
        clock=clock,
        rng=Random(),
        records_all=setup.tracing and settings.tail is not None,
        remote_per_s=settings.max_remote_sampled_per_s,
    )


def _links(setup: control_pb2.Setup, listener: Listener) -> "tuple[MachineLinkTls | None, Reach | None]":
    """The links to other machines, and how these are reached by them.

    Raises:
        BadConfig: they cannot be secured, or the listener has none.
    """
    if not setup.HasField("links"):
        return None, None
    # Only with a cluster.
    from onelane.lane.machine_link_dialling import MachineLinkDialling
    from onelane.server.machine_link_tls import MachineLinkTls
    from onelane.server.native_listener import NativeListener

    if not isinstance(listener, NativeListener):
        expected = f'expected "native" with [cluster], not {type(listener).__name__}: others have no links to machines'
        raise BadConfig(f"apps.{setup.app}", [f"listener: {expected}"])
    links = MachineLinkTls(links_from_proto(setup.links))
    return links, MachineLinkDialling(links)


def _store_of_machines(setup: control_pb2.Setup, settings: App) -> MakeStore | None:
    """Refuses a store of files, which another machine would not find, once a service has something to keep."""
    if not setup.HasField("links") or settings.state.store != SQLITE:
        return None

    def refuse(_: StoreOptions) -> NoReturn:
        fault = 'state.store: "sqlite" has its files on one machine, and keys go to others: expected "postgresql"'
        raise BadConfig(f"apps.{setup.app}", [f"{fault} with [cluster]"])

    return refuse


def _under_way(listener: Listener) -> Sequence[Call]:
    """The calls of a listener that tells them."""
    list_calls = getattr(listener, "under_way", None)
    return () if list_calls is None else list_calls()


def _lane(
    setup: control_pb2.Setup,
    settings: App,
    placement: Placement,
    *,
    forwarder: Forwarder,
    stats: Stats,
    tracer: Tracer,
) -> Lane:
    name = setup.name
    router = Router(name, placement, life=setup.life, max_key_bytes=settings.max_key_bytes, follow=tracer.follow)
    turns = Turns(
        name,
        draw=lambda: secrets.randbits(64),
        per_key=settings.max_waiting_per_key,
        in_all=settings.max_in_flight,
    )
    rate = settings.max_rate_per_key
    admission = Admission(
        name,
        max_in_flight=settings.max_in_flight,
        max_late_s=settings.max_late_s,
        max_watches=settings.max_watches,
        rates=Rates(rate, max(1.0, rate)) if rate else None,
    )
    parts: dict[str, Any] = {
        "router": router,
        "queue": TurnQueue(turns, router),
        "admission": admission,
        "forwarder": forwarder,
        "stats": stats,
        "tracer": tracer,
        "shows_runtime_calls": settings.show_runtime_calls,
    }
    if not setup.HasField("fence"):
        return Lane(**parts)
    # Only with a cluster.
    from onelane.lane.fence import LaneFence
    from onelane.lane.fenced_lane import FencedLane

    lane = FencedLane(**parts)
    lane.put_behind(LaneFence(name, fence_from_proto(setup.fence)))
    return lane
