"""One life's part in one change of placement: which calls it serves, holds or sends on, and what it hands over. Pure.

Ownership of a key passes by one message from its old owner to its new owner, or by proof that the old owner is dead;
never by time. Two parts run side by side, each for itself.

The leaving part, one line per new owner of keys that leave this life:

    SCANNING ──scan_done──▶ HANDING OVER ──last acknowledgement──▶ DONE
                                 ▲                                   │
                                 └─────────────reborn(owner)─────────┘  `SendDone` goes to its next life too

A key that leaves is BUSY (its calls end here), then SENT (here still, and not yet acknowledged), then LEFT. From the
start of the change its calls, also those that wait for its turn, are sent on: no new turn begins here. A call that does
not end is given up, and the key is SENT as it is: a stuck handler costs its own call, and not its life.

The arriving part, one line per old owner of keys that arrive, and per such key:

    AWAITED ──done(owner) or gone(owner)──▶ SETTLED    its keys that have not been handed over have no state
    HELD ──moved──▶ INSTALLING ──installed──▶ SERVED   a key whose old owner is settled is SERVED too, unless INSTALLING

Each event may be repeated and then changes nothing. What an owner that is dead has sent is refused, unless it was
INSTALLING before the death was known. `placement_change` is the coordinator's part; the tests explore both together.

Leaves out: calls of an epoch newer than `after` (the lane holds them until it knows that placement), and messages of
another epoch than `after`: one that is newer waits for its change, one that is older is refused by the caller.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from onelane.core.placement import Member, Placement
from onelane.core.ring import hash_of
from onelane.errors import NotHome


class Here(Enum):
    """A call stays on this life."""

    SERVE = auto()
    HOLD = auto()
    """Until a `Release` of its key, or a `ReleaseAll`; then ask `where` again."""


SERVE, HOLD = Here


@dataclass(frozen=True, slots=True)
class Send:
    """Hand over the state of these keys. It stays here until the answer, which is `sent_acknowledged`.

    A batch that fails is sent again, until `gone` names the receiver: then drop it. Its next life gets another.
    """

    to: Member
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SendDone:
    """Tell the receiver, which has acknowledged all that was sent, that no other key comes. Repeated as a `Send` is."""

    to: Member


@dataclass(frozen=True, slots=True)
class Install:
    """Make the received state of these keys this life's own, call `installed`, and only then acknowledge the batch.

    Keys of the batch that are not named were installed before: their state here is newer, and is not overwritten. Nor
    is the row of a durable key that has the epoch of `after` already: the last life of this member wrote it, and died.
    An `Install` always ends with `installed`, also if its sender dies or the RPC is cancelled meanwhile; a store that
    fails is tried again.
    """

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the state of these keys: their new owner has it."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop the state of these keys, which is nobody's: this life owns them neither before nor after."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Ask `where` again for the calls that are held for these keys."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReleaseAll:
    """Ask `where` again for every call that is held."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer the message with an error; nothing has changed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Departed:
    """Tell the coordinator that every key that leaves has been acknowledged by its new owner."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Tell the coordinator that every key that arrives is here."""


Action = Send | SendDone | Install | Forget | Drop | Release | ReleaseAll | Refuse | Departed | Arrived


@dataclass(slots=True)
class _Receiver:
    """A member of `after` to which keys leave from this life."""

    member: Member
    """Its life now."""
    is_alive: bool
    busy: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    """Not acknowledged."""
    is_done: bool = False
    """`SendDone` has been issued for its life now."""


class Handoff:
    """The part of the life `me` in the change from `before` to `after`. Each event is a method that returns actions.

    Costs: `where` two ring look-ups at most, and one once everything has arrived; an event O(keys that it names);
    `reborn` O(keys that are not acknowledged).
    """

    def __init__(self, me: Member, before: Placement, after: Placement, dead: Collection[int] = ()) -> None:
        """before: the lives as of the decision. after: the lives of now, also those that were started meanwhile.

        dead: the lives of either that are known to be dead.
        """
        self.me = me
        self.before = before
        self.after = after
        self._dead = set(dead)
        self._lives = {member.name: member for member in after.members}
        self._is_old = any(member.life == me.life for member in before.members)
        self._is_new = any(member.life == me.life for member in after.members)
        receivers = _partners(me, before, after, after.members) if self._is_old else []
        senders = _partners(me, before, after, before.members) if self._is_new else []
        self._receivers = {member.name: _Receiver(member, member.life not in self._dead) for member in receivers}
        self._senders = frozenset(member.life for member in senders)
        self._awaited = {life for life in self._senders if life not in self._dead}
        self._is_scanned = not self._receivers
        self._left: set[str] = set()
        self._installing: set[str] = set()
        self._installed: set[str] = set()
        self._has_departed = False
        self._has_arrived = False

    # What the lane asks.

    def where(self, key: str, epoch: int) -> Here | Member:
        """Where a call for `key` (canonical text) goes on, of the epoch by which it was sent (0: by a client).

        SERVE, HOLD, or the life to send it on to, with the epoch of `after`.

        Raises:
            NotHome: a life that has `after` already has sent it, and this life is not the owner by `after`.
        """
        owner = self._lives[self.after.owner_of(key).name]
        if owner.life != self.me.life:
            if epoch >= self.after.epoch:
                raise NotHome(epoch=self.after.epoch)
            return owner
        if not self._awaited and not self._installing:
            return SERVE
        return HOLD if self._is_coming(key) else SERVE

    def _is_coming(self, key: str) -> bool:
        if key in self._installed:
            return False
        return key in self._installing or self.before.owner_of(key).life in self._awaited

    @property
    def has_arriving(self) -> bool:
        """Whether keys may still arrive here."""
        return bool(self._awaited)

    def sender_of(self, key: str) -> Member | None:
        """The life that has still to hand over this key, whose calls are held; None where nothing of it is awaited."""
        if key in self._installed or key in self._installing:
            return None
        member = self.before.owner_of(key)
        return member if member.life in self._awaited else None

    def is_busy(self, key: str) -> bool:
        """Whether a key leaves, and calls of it have not ended here."""
        receiver = self._receiver_of(key)
        return receiver is not None and key in receiver.busy

    @property
    def has_leaving(self) -> bool:
        """Whether keys may leave this life; if not, there is nothing to scan."""
        return bool(self._receivers)

    @property
    def keys_to_leave(self) -> int:
        """Keys that are known to leave, and have not been acknowledged."""
        return sum(len(receiver.busy) + len(receiver.sent) for receiver in self._receivers.values())

    @property
    def keys_left(self) -> int:
        """Keys that have been acknowledged by their new owners."""
        return len(self._left)

    def waits_for(self) -> frozenset[int]:
        """The lives whose step is missing, as far as this life can tell; itself among them where the step is its own.

        Empty: nothing is missing here. What it has sent may be on its way still.
        """
        lives = set(self._awaited)
        is_own = bool(self._installing) or (self.has_leaving and not self._is_scanned)
        for receiver in self._receivers.values():
            is_own = is_own or bool(receiver.busy)
            if receiver.sent and receiver.is_alive:
                lives.add(receiver.member.life)
        return frozenset(lives | {self.me.life} if is_own else lives)

    # Events of this life.

    def begin(self, busy: Iterable[str]) -> list[Action]:
        """The change begins: once, before any other event.

        busy: the keys that have a running turn or other calls under way. `quiet` follows for each of them that leaves.
        """
        for key in busy:
            receiver = self._receiver_of(key)
            if receiver:
                receiver.busy.add(key)
        return self._departed() + self._arrived()

    def quiet(self, key: str, *, has_state: bool = True) -> list[Action]:
        """The last call of a busy key has ended. Keys that do not leave are ignored."""
        receiver = self._receiver_of(key)
        if receiver is None or key not in receiver.busy:
            return []
        receiver.busy.discard(key)
        return (self._send(receiver, [key]) if has_state else []) + self._finish([receiver])

    def give_up(self, key: str) -> list[Action]:
        """The last call of a busy key does not end: its state leaves as it is now.

        From now on nothing counts that this call does: it is answered with an error, and what it changes is dropped.
        `quiet` may still follow, and changes nothing.
        """
        return self.quiet(key)

    def scanned(self, keys: Iterable[str]) -> list[Action]:
        """These keys have state here: a piece of all such keys, as large as is convenient.

        Keys that stay, arrive, are busy, or have been sent, are ignored.
        """
        leaving: dict[str, list[str]] = {}
        foreign: list[str] = []
        me, receivers, left = self.me.life, self._receivers, self._left
        before, after = self.before.owner_of_hash, self.after.owner_of_hash
        for key in keys:
            # Of a large change half of the work was to ask the rings, each with a hash of its own.
            position = hash_of(key.encode())
            name = after(position, key).name
            if before(position, key).life != me:
                if self._lives[name].life != me:
                    foreign.append(key)
                continue
            receiver = receivers.get(name)
            if receiver and key not in receiver.busy and key not in receiver.sent and key not in left:
                leaving.setdefault(name, []).append(key)
        drop: list[Action] = [Drop(tuple(foreign))] if foreign else []
        return drop + [action for name, batch in leaving.items() for action in self._send(receivers[name], batch)]

    def called(self, key: str) -> list[Action]:
        """The next owner of a key holds a call of it until the key is there: a key that leaves and was not sent yet is
        sent now. Keys without state as well: else their calls are held until all is sent.
        """
        receiver = None if self._has_departed else self._receiver_of(key)
        if receiver is None or receiver.is_done or key in receiver.busy or key in receiver.sent or key in self._left:
            return []
        return self._send(receiver, [key])

    def scan_done(self) -> list[Action]:
        """Each key that has had state since `begin`, and was not busy then, has been named to `scanned`."""
        self._is_scanned = True
        return self._finish(self._receivers.values())

    # Events from the new owners of keys that leave.

    def sent_acknowledged(self, to_life: int, keys: Iterable[str]) -> list[Action]:
        """The receiver `to_life` has these keys. Ignored if that life is dead: its next life gets them."""
        for receiver in self._receivers.values():
            if receiver.member.life == to_life and receiver.is_alive:
                acknowledged = tuple(key for key in keys if key in receiver.sent)
                receiver.sent.difference_update(acknowledged)
                self._left.update(acknowledged)
                forget: list[Action] = [Forget(acknowledged)] if acknowledged else []
                return forget + self._finish([receiver])
        return []

    # Events from the old owners of keys that arrive.

    def moved(self, from_life: int, to_life: int, keys: Iterable[str]) -> list[Action]:
        """The state of these keys has come. `Refuse`, or one `Install` (of no key, where all were installed before).

        Several batches of a sender are under way at once, and come in any order, also twice: each key is in one of
        them. One batch is installed, up to its `installed`, before `moved` is called for the next one.
        """
        refusal = self._refusal(from_life, to_life)
        if refusal:
            return [refusal]
        fresh = tuple(key for key in keys if key not in self._installed)
        for key in fresh:
            if not self._is_expected(key, from_life):
                return [Refuse(f"key {key!r} does not move from life {from_life} to life {self.me.life}")]
        self._installing.update(fresh)
        return [Install(fresh)]

    def installed(self, keys: Iterable[str]) -> list[Action]:
        """The state of these keys is this life's own; acknowledge after it."""
        fresh = tuple(key for key in keys if key in self._installing)
        self._installing.difference_update(fresh)
        self._installed.update(fresh)
        release: list[Action] = [Release(fresh)] if fresh else []
        return release + self._arrived()

    def done(self, from_life: int, to_life: int) -> list[Action]:
        """The old owner has handed over all that it had for this life. Acknowledge, unless this returns a `Refuse`."""
        refusal = self._refusal(from_life, to_life)
        return [refusal] if refusal else self._settle(from_life)

    # Events from the coordinator.

    def gone(self, life: int) -> list[Action]:
        """This life is dead. What it has not handed over is lost; what is owed to it waits for its next life."""
        self._dead.add(life)
        for receiver in self._receivers.values():
            if receiver.member.life == life:
                receiver.is_alive = False
        return self._settle(life)

    def reborn(self, member: Member) -> list[Action]:
        """The next life of a member of `after`, whose last one is dead. It is sent all that was not acknowledged."""
        last = self._lives.get(member.name)
        if last is None or last.life >= member.life:
            return []
        settled = self.gone(last.life)
        self._lives[member.name] = member
        receiver = self._receivers.get(member.name)
        if receiver is None:
            return settled
        receiver.member, receiver.is_alive, receiver.is_done = member, True, False
        again: list[Action] = [Send(member, tuple(sorted(receiver.sent)))] if receiver.sent else []
        return settled + again + self._finish([receiver])

    def standing(self) -> list[Action]:
        """What this life has told the coordinator, for another coordinator that takes over."""
        departed: list[Action] = [Departed()] if self._has_departed else []
        arrived: list[Action] = [Arrived()] if self._has_arrived else []
        return departed + arrived

    # Steps.

    def _receiver_of(self, key: str) -> _Receiver | None:
        """None also for a key that this life does not own by `before`: what it has of such a key is nobody's state."""
        if not self._receivers or self.before.owner_of(key).life != self.me.life:
            return None
        return self._receivers.get(self.after.owner_of(key).name)

    def _send(self, receiver: _Receiver, keys: list[str]) -> list[Action]:
        receiver.sent.update(keys)
        return [Send(receiver.member, tuple(keys))] if receiver.is_alive else []

    def _finish(self, receivers: Iterable[_Receiver]) -> list[Action]:
        """Tell those that have everything, and the coordinator if all have."""
        actions: list[Action] = []
        for receiver in receivers:
            if self._has_everything(receiver) and receiver.is_alive and not receiver.is_done:
                receiver.is_done = True
                actions.append(SendDone(receiver.member))
        return actions + self._departed()

    def _has_everything(self, receiver: _Receiver) -> bool:
        return self._is_scanned and not receiver.busy and not receiver.sent

    def _departed(self) -> list[Action]:
        if self._has_departed or not self._is_old or not all(map(self._has_everything, self._receivers.values())):
            return []
        self._has_departed = True
        return [Departed()]

    def _refusal(self, from_life: int, to_life: int) -> Refuse | None:
        if to_life != self.me.life:
            return Refuse(f"this is life {self.me.life}, not {to_life}")
        if from_life in self._dead:
            return Refuse(f"life {from_life} is dead")
        if from_life not in self._senders:
            return Refuse(f"life {from_life} hands nothing over to life {to_life}")
        return None

    def _is_expected(self, key: str, from_life: int) -> bool:
        if from_life not in self._awaited:
            return False
        position = hash_of(key.encode())
        is_mine = self._lives[self.after.owner_of_hash(position, key).name].life == self.me.life
        return is_mine and self.before.owner_of_hash(position, key).life == from_life

    def _settle(self, life: int) -> list[Action]:
        if life not in self._awaited:
            return []
        self._awaited.discard(life)
        return [ReleaseAll(), *self._arrived()]

    def _arrived(self) -> list[Action]:
        if self._has_arrived or not self._is_new or self._awaited or self._installing:
            return []
        self._has_arrived = True
        return [Arrived()]


def _partners(me: Member, before: Placement, after: Placement, members: Iterable[Member]) -> list[Member]:
    """The members of other lives that may give keys to `me`, or get them: by the same ring and pins, its namesake."""
    is_same = _places(before) == _places(after)
    return [member for member in members if member.life != me.life and (not is_same or member.name == me.name)]


def _places(placement: Placement) -> tuple[object, ...]:
    places = {(member.name, member.address) for member in placement.members}
    return places, placement.points, dict(placement.pins)
