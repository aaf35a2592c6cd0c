"""One change of placement, carried out by the real machines of `core/handoff` and `core/placement_change`."""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from onelane.core.handoff import (
    Action,
    Arrived,
    Departed,
    Forget,
    Handoff,
    Install,
    Release,
    ReleaseAll,
    Send,
    SendDone,
)
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Order, Over, PlacementChange, Prepare, Tell
from onelane.shard.handoff import SCAN_KEYS
from onelane.shard.handoff_line import BATCH_KEYS, UNDER_WAY

from tests.simulation import costs
from tests.simulation.network import SimulatedNetwork


def machine_of(member: Member) -> str:
    return member.address.rpartition(":")[0]


@dataclass
class _Line:
    """To one receiver."""

    waiting: deque[str] = field(default_factory=deque)
    under_way: int = 0


@dataclass
class _SimulatedLife:
    member: Member
    keys: Sequence[str]
    """Those with state that leave it."""
    key_count: int
    """All that it looks at."""
    handoff: Handoff | None = None
    stopped_at: float = 0.0
    """When it began to read the new placement: it runs no turn of a key that leaves from then on."""
    lines: dict[int, _Line] = field(default_factory=lambda: defaultdict(_Line))
    early: list[partial[None]] = field(default_factory=list)
    """What came before its `Prepare`."""


@dataclass(frozen=True)
class ChangeOutcome:
    seconds: float
    """From the request to the end."""
    calls: int
    """Between shards; a call and its answer are one."""
    bytes: int
    """Between machines, without etcd's."""
    pauses: Sequence[float]
    """Of each key that moved with state, in order: from the last turn at its old owner to the first one at its new."""
    stall_s: float
    """How long each lane does nothing but read the new placement."""
    etcd_bytes: int
    """The entry of the placement and the change."""


class SimulatedChange:
    """From `before` to `after`; everything happens in `run`."""

    def __init__(
        self,
        before: Placement,
        after: Placement,
        *,
        leaving: Mapping[int, Sequence[str]],
        key_counts: Mapping[int, int],
        seed: int,
        dead: Iterable[int] = (),
    ) -> None:
        """leaving: life → its keys that move. key_counts: life → all its keys. dead: lives that died as it begins."""
        self._network = SimulatedNetwork(seed)
        self._change = PlacementChange(before, after)
        self._dead = sorted(dead)
        members = {member.life: member for member in (*before.members, *after.members)}
        self._lives = {
            life: _SimulatedLife(member, leaving.get(life, ()), key_counts.get(life, 0))
            for life, member in members.items()
        }
        self._stall_s = costs.POINT_S * after.ring_size + costs.MEMBER_S * (len(before.members) + len(after.members))
        self._etcd_bytes = costs.MEMBER_BYTES * (len(before.members) + len(after.members))
        self._given_up_at = self._expiry() if self._dead else 0.0
        self._stopped_at: dict[str, float] = {}
        self._pauses: list[float] = []
        self._over_at = 0.0

    def run(self) -> ChangeOutcome:
        self._network.at(self._given_up_at, self._begin)
        self._network.run()
        assert self._over_at, f"the change waits for {sorted(self._change.waits_for())[:5]}"
        calls = self._network.calls
        pauses = sorted(self._pauses)
        return ChangeOutcome(self._over_at, calls, self._network.bytes, pauses, self._stall_s, self._etcd_bytes)

    def _expiry(self) -> float:
        """When etcd gives up a machine that died at 0: its last renewal was up to a third of its lease ago."""
        random = self._network.random
        return random.uniform(costs.LEASE_S * 2 / 3, costs.LEASE_S) + random.uniform(0, costs.EXPIRY_S)

    # The coordinator

    def _begin(self) -> None:
        for life in self._dead:
            self._order(self._change.died(life))
        self._order(self._change.begin())
        for member in self._change.after.members:
            self._order(self._change.joined(member.life))

    def _order(self, orders: Iterable[Order]) -> None:
        for order in orders:
            if isinstance(order, Over):
                self._over_at = self._network.now + costs.STORE_S + costs.WATCH_S
            elif isinstance(order, Tell) and isinstance(order.message, Prepare):
                read = partial(self._read_placement, self._lives[order.life], order.message)
                self._network.at(self._network.now + costs.STORE_S + costs.WATCH_S, read)

    def _report(self, life: _SimulatedLife, what: Departed | Arrived) -> None:
        """By the life's supervisor, to the coordinator's."""
        event = self._change.departed if isinstance(what, Departed) else self._change.arrived
        number = life.member.life
        self._network.at(self._network.now + 2 * costs.LATENCY_S, lambda: self._order(event(number)))

    # A life

    def _read_placement(self, life: _SimulatedLife, prepare: Prepare) -> None:
        life.stopped_at = self._network.now
        self._network.compute(life.member.life, self._stall_s, partial(self._prepare, life, prepare))

    def _prepare(self, life: _SimulatedLife, prepare: Prepare) -> None:
        life.handoff = Handoff(life.member, prepare.before, prepare.after, prepare.dead)
        self._act(life, life.handoff.begin([]))
        for message in life.early:
            message()
        life.early.clear()
        if life.handoff.has_leaving:
            self._scan(life, 0)

    def _scan(self, life: _SimulatedLife, done: int) -> None:
        """Look at the next piece of all keys; the keys that leave are spread evenly over the pieces."""
        assert life.handoff is not None
        if done >= life.key_count:
            self._act(life, life.handoff.scan_done())
            return
        end = min(done + SCAN_KEYS, life.key_count)
        first, last = (len(life.keys) * part // life.key_count for part in (done, end))
        keys = life.keys[first:last]

        def look() -> None:
            assert life.handoff is not None
            self._stopped_at.update(dict.fromkeys(keys, life.stopped_at))
            self._act(life, life.handoff.scanned(keys))
            self._scan(life, end)

        self._network.compute(life.member.life, 2 * costs.LOOK_UP_S * (end - done), look)

    def _act(self, life: _SimulatedLife, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(to, keys):
                    line = life.lines[to.life]
                    line.waiting.extend(keys)
                    self._send_batches(life, to, line)
                case SendDone(to):
                    arrive = partial(self._done, self._lives[to.life], life.member.life)
                    self._call(life, to, costs.CALL_S, costs.CALL_BYTES, arrive)
                case Departed() | Arrived():
                    self._report(life, action)
                case Forget() | Release() | ReleaseAll():
                    pass
                case _:
                    raise AssertionError(action)

    def _send_batches(self, life: _SimulatedLife, to: Member, line: _Line) -> None:
        while line.waiting and line.under_way < UNDER_WAY:
            keys = tuple(line.waiting.popleft() for _ in range(min(BATCH_KEYS, len(line.waiting))))
            line.under_way += 1
            seconds = costs.CALL_S + costs.SEND_KEY_S * len(keys)
            size = costs.CALL_BYTES + costs.KEY_BYTES * len(keys)
            self._call(life, to, seconds, size, partial(self._moved, self._lives[to.life], life, keys))

    def _call(self, life: _SimulatedLife, to: Member, seconds: float, size: int, arrive: partial[None]) -> None:
        machines = machine_of(life.member), machine_of(to)
        self._network.compute(life.member.life, seconds, lambda: self._network.send(*machines, size, arrive))

    def _moved(self, life: _SimulatedLife, sender: _SimulatedLife, keys: tuple[str, ...]) -> None:
        if life.handoff is None:
            life.early.append(partial(self._moved, life, sender, keys))
            return
        seconds = costs.CALL_S + costs.INSTALL_KEY_S * len(keys)
        self._network.compute(life.member.life, seconds, partial(self._install, life, sender, keys))

    def _install(self, life: _SimulatedLife, sender: _SimulatedLife, keys: tuple[str, ...]) -> None:
        assert life.handoff is not None
        (install,) = life.handoff.moved(sender.member.life, life.member.life, keys)
        assert isinstance(install, Install), install
        self._pauses += [self._network.now - self._stopped_at[key] for key in install.keys]
        self._act(life, life.handoff.installed(install.keys))
        acknowledge = partial(self._acknowledge, sender, life.member, keys)
        self._network.at(self._network.now + costs.LATENCY_S, acknowledge)

    def _acknowledge(self, life: _SimulatedLife, to: Member, keys: tuple[str, ...]) -> None:
        assert life.handoff is not None
        line = life.lines[to.life]
        line.under_way -= 1
        self._act(life, life.handoff.sent_acknowledged(to.life, keys))
        self._send_batches(life, to, line)

    def _done(self, life: _SimulatedLife, sender: int) -> None:
        if life.handoff is None:
            life.early.append(partial(self._done, life, sender))
            return

        def settle() -> None:
            assert life.handoff is not None
            self._act(life, life.handoff.done(sender, life.member.life))

        self._network.compute(life.member.life, costs.CALL_S, settle)
