"""One step of a small app, of which every part but the two machines is plain.

Lives, messages in flight, calls and crashes are the app's; who serves, holds, sends on, hands over and is told what is
decided by the real `Handoff` and `PlacementChange` alone. Messages between two processes arrive in order; calls arrive
in any order. A life that dies takes its memory along, and what was on its way to it.
"""

from dataclasses import replace
from typing import Any

from onelane.core.handoff import (
    HOLD,
    Action,
    Arrived,
    Departed,
    Drop,
    Forget,
    Install,
    Refuse,
    Release,
    ReleaseAll,
    Send,
    SendDone,
)
from onelane.core.placement import Member
from onelane.core.placement_change import Gone, Over, Prepare, Reborn, Tell
from onelane.errors import NotHome

from tests.core.handoff_machines import Machines, Shared
from tests.core.handoff_world import (
    Life,
    Scenario,
    Violated,
    World,
    is_changing,
    may_serve,
    member_of,
    placement_of,
    where,
)


class Step:
    """One step from a world to the next one: a scratch copy that is changed in place."""

    def __init__(self, world: World, scenario: Scenario, machines: Machines) -> None:
        self.world = world
        self.scenario = scenario
        self.machines = machines
        self.lives = {life.member.life: life for life in world.lives}
        """In the order of their numbers, as they start."""
        self.channels = dict(world.channels)
        self.calls = list(world.calls)

    def result(self) -> World:
        for number, life in list(self.lives.items()):
            if life.is_leaving and self._is_unused(life):
                del self.lives[number]
        return self.world._replace(
            lives=tuple(self.lives.values()),
            channels=tuple(sorted(self.channels.items())),
            calls=tuple(sorted(self.calls)),
        )

    def _is_unused(self, life: Life) -> bool:
        calls = life.running or life.waiting or any(call[1] == life.member.socket for call in self.calls)
        messages = any(life.member.life in ends for ends in self.channels)
        is_behind = any(other.placement.value.epoch < life.placement.value.epoch for other in self.lives.values())
        # A life that left in an earlier change may still send calls to this one.
        return not calls and not messages and not is_behind

    def put(self, ends: tuple[Any, ...], message: Any) -> None:
        self.channels[ends] = (*self.channels.get(ends, ()), message)

    def next_message(self, ends: tuple[Any, ...]) -> Any:
        message, *rest = self.channels.pop(ends)
        if rest:
            self.channels[ends] = tuple(rest)
        return message

    def life_at(self, socket: str) -> Life | None:
        return next((life for life in self.lives.values() if life.member.socket == socket), None)

    def change_life(self, number: int, **fields: Any) -> None:
        self.lives[number] = self.lives[number]._replace(**fields)

    # Calls.

    def enter(self, number: int) -> None:
        call = self.world.entered
        self.world = self.world._replace(entered=call + 1)
        self.arrive(number, (call, 0, 0))

    def travel(self, flight: tuple[int, str, int, int]) -> None:
        call, socket, epoch, hops = flight
        self.calls.remove(flight)
        life = self.life_at(socket)
        if life is None:
            self.fail(call)
        else:
            self.arrive(life.member.life, (call, epoch, hops))

    def arrive(self, number: int, waiter: tuple[int, int, int]) -> None:
        call, epoch, hops = waiter
        life = self.lives[number]
        key = self.scenario.calls[call]
        try:
            place = where(self.machines, life, key, epoch)
        except NotHome as error:
            raise Violated("hops", f"call {call} goes round at life {number}") from error
        if isinstance(place, Member):
            if hops >= len(self.scenario.owners):
                raise Violated("hops", f"call {call} has been sent on {hops} times")
            self.calls.append((call, place.socket, life.placement.value.epoch, hops + 1))
            if life.handoff is not None:
                self.event(number, "called", key)
        elif place is HOLD or key in life.stuck or any(key == busy for busy, _ in life.running):
            self.change_life(number, waiting=tuple(sorted((*life.waiting, waiter))))
            if self.scenario.hurries and epoch <= life.placement.value.epoch:
                self.hurry(self.lives[number], key)
        else:
            self.begin_turn(life, key, call)

    def hurry(self, life: Life, key: str) -> None:
        sender = life.handoff.value.sender_of(key) if life.handoff else None
        if sender is not None:
            self.send(life, sender, ("hurry", life.placement.value.epoch, sender.life, key))

    def begin_turn(self, life: Life, key: str, call: int) -> None:
        here = dict(life.memory).get(key, frozenset())
        missing = self.world.must_be_there(self.scenario, key) - here
        if missing:
            raise Violated("no change is lost", f"life {life.member.life} serves {key} without {set(missing)}")
        self.change_life(life.member.life, running=tuple(sorted((*life.running, (key, call)))))

    def end_turn(self, number: int, key: str) -> None:
        life = self.lives[number]
        call = dict(life.running)[key]
        memory = dict(life.memory)
        memory[key] = memory.get(key, frozenset()) | {call}
        running = tuple(turn for turn in life.running if turn[0] != key)
        self.change_life(number, memory=tuple(sorted(memory.items())), running=running)
        self.world = self.world._replace(answered=self.world.answered | {call})
        if life.handoff:
            self.event(number, "quiet", key)
        self.look_again(number, (key,))

    def give_up(self, number: int, key: str) -> None:
        """What a turn does from now on is dropped, its call is answered with an error, and it holds its key still."""
        life = self.lives[number]
        running = dict(life.running)
        if key in running:
            self.fail(running.pop(key))
        self.change_life(number, running=tuple(running.items()), stuck=tuple(sorted({*life.stuck, key})))
        self.world = self.world._replace(give_ups=self.world.give_ups - 1)
        self.event(number, "give_up", key)

    def end_stuck(self, number: int, key: str) -> None:
        life = self.lives[number]
        self.change_life(number, stuck=tuple(other for other in life.stuck if other != key))
        if life.handoff:
            self.event(number, "quiet", key)
        self.look_again(number, (key,))

    def look_again(self, number: int, keys: tuple[str, ...]) -> None:
        waiting = self.lives[number].waiting
        again = [waiter for waiter in waiting if self.scenario.calls[waiter[0]] in keys]
        if not again:
            return
        self.change_life(number, waiting=tuple(waiter for waiter in waiting if waiter not in again))
        for waiter in again:
            self.arrive(number, waiter)

    def fail(self, call: int) -> None:
        self.world = self.world._replace(failed=self.world.failed | {call})

    # The part of a life.

    def event(self, number: int, name: str, *details: Any) -> list[Action]:
        machine = self.lives[number].handoff
        assert machine
        changed, actions = self.machines.step(machine, name, *details)
        if changed is not machine:
            self.change_life(number, handoff=changed)
        for action in actions:
            self.take(number, action)
        return actions

    def take(self, number: int, action: Action) -> None:
        life = self.lives[number]
        epoch = life.placement.value.epoch
        match action:
            case Send(to, keys):
                memory = dict(life.memory)
                state = tuple((key, memory.get(key, frozenset())) for key in keys)
                self.send(life, to, ("moved", epoch, to.life, state))
            case SendDone(to):
                self.send(life, to, ("done", epoch, to.life, ()))
            case Forget(keys) | Drop(keys):
                self.change_life(number, memory=tuple(item for item in life.memory if item[0] not in keys))
            case Release(keys):
                self.look_again(number, keys)
            case ReleaseAll():
                self.look_again(number, self.scenario.keys)
            case Departed() | Arrived():
                self.put(("reports", number), (type(action).__name__.lower(), epoch))
            case Install() | Refuse():
                pass

    def send(self, life: Life, to: Member, message: Any) -> None:
        if self.life_at(to.socket):
            self.put(("moves", life.member.life, to.socket), message)

    def prepare(self, number: int, prepare: Prepare) -> None:
        life = self.lives[number]
        handoff = self.machines.handoff(life.member, prepare.before, prepare.after, prepare.dead)
        unscanned = tuple(key for key, _ in life.memory) if handoff.has_leaving else ()
        self.change_life(
            number,
            placement=self.machines.share(prepare.after),
            handoff=self.machines.share(handoff),
            unscanned=unscanned,
        )
        self.event(number, "begin", (*(key for key, _ in life.running), *life.stuck))
        if handoff.has_leaving and not unscanned:
            self.event(number, "scan_done")
        self.look_again(number, self.scenario.keys)

    def scan(self, number: int) -> None:
        key, *rest = self.lives[number].unscanned
        self.change_life(number, unscanned=tuple(rest))
        if key in dict(self.lives[number].memory):
            self.event(number, "scanned", (key,))
        if not rest:
            self.event(number, "scan_done")

    def receive(self, number: int, sender: int, message: Any) -> None:
        kind, epoch, to_life, state = message
        life = self.lives[number]
        if life.handoff is None or epoch < life.placement.value.epoch:
            return
        if kind == "done":
            self.event(number, "done", sender, to_life)
            return
        if kind == "hurry":
            self.event(number, "called", state)
            return
        keys = tuple(key for key, _ in state)
        for action in self.event(number, "moved", sender, to_life, keys):
            if isinstance(action, Install):
                fresh = tuple(item for item in state if item[0] in action.keys)
                self.change_life(number, installing=(*life.installing, (sender, keys, fresh)))
                if not self.scenario.slow_install:
                    self.install(number)

    def install(self, number: int) -> None:
        life = self.lives[number]
        (sender, keys, state), *rest = life.installing
        memory = dict(life.memory) | dict(state)
        self.change_life(number, memory=tuple(sorted(memory.items())), installing=tuple(rest))
        if life.handoff:  # A batch that was installed before may be repeated as the change ends.
            self.event(number, "installed", tuple(key for key, _ in state))
        if sender in self.lives:
            self.put(("answers", number, sender), ("acknowledged", life.placement.value.epoch, keys))

    def acknowledge(self, number: int, receiver: int, message: Any) -> None:
        _, epoch, keys = message
        if self.lives[number].handoff and epoch == self.lives[number].placement.value.epoch:
            self.event(number, "sent_acknowledged", receiver, keys)

    def order(self, number: int, message: Any) -> None:
        match message:
            case Shared(value=Prepare() as prepare):
                self.prepare(number, prepare)
            case Gone(life):
                self.event(number, "gone", life)
            case Reborn(member):
                self.event(number, "reborn", member)
            case Shared(value=Over(placement, leaving)):
                self.change_life(
                    number,
                    placement=self.machines.share(placement),
                    handoff=None,
                    is_leaving=any(member.life == number for member in leaving),
                )

    # The part of the coordinator.

    def start_change(self) -> None:
        epoch = self.world.epoch + 1
        before = self.world.placement.value
        now = {member.name: member for member in before.members}
        members = []
        for name in self.scenario.names[epoch - 1]:
            if name not in now:
                now[name.lower()] = self.join(name.lower())
            members.append(now[name.lower()])
        after = placement_of(epoch, members, self.scenario)
        self.world = self.world._replace(epoch=epoch, change=self.machines.share(self.machines.change(before, after)))
        for member in self.world.dead:
            self.coordinate("died", member.life)
        self.world = self.world._replace(dead=tuple(member for member in self.world.dead if member in members))
        for member in members:
            self.coordinate("joined", member.life)

    def join(self, name: str) -> Member:
        member = member_of(name, self.world.next_life)
        self.world = self.world._replace(next_life=member.life + 1)
        self.lives[member.life] = Life(member, self.world.placement)
        return member

    def coordinate(self, event: str, *details: Any) -> None:
        assert self.world.change
        change, orders = self.machines.step(self.world.change, event, *details)
        self.world = self.world._replace(change=change)
        for order in orders:
            self.carry_out(order)

    def carry_out(self, order: Tell | Over) -> None:
        match order:
            case Tell(number, Prepare() as prepare) if number in self.lives:
                self.put(("orders", number), self.machines.share(prepare))
            case Tell(number, message) if number in self.lives:
                self.put(("orders", number), message)
            case Over(placement, _):
                self.world = self.world._replace(placement=self.machines.share(placement))
                for number in self.lives:
                    self.put(("orders", number), self.machines.share(order))

    def hear(self, number: int, message: Any) -> None:
        kind, epoch = message
        if kind == "exit":
            member = epoch
            self.world = self.world._replace(dead=(*self.world.dead, member))
            if is_changing(self.world):
                self.coordinate("died", number)
            is_member = number in self.lives_to_have()
            self.world = self.world._replace(dead=self.world.dead if is_member else self.world.dead[:-1])
        elif is_changing(self.world) and epoch == self.world.epoch:
            self.coordinate(kind, number)

    def lives_to_have(self) -> set[int]:
        change = self.world.change
        placement = change.value.after if change and is_changing(self.world) else self.world.placement.value
        return {member.life for member in placement.members}

    def launch(self, dead: Member) -> None:
        member = replace(dead, life=self.world.next_life)
        self.world = self.world._replace(
            next_life=member.life + 1, dead=tuple(other for other in self.world.dead if other != dead)
        )
        placement = self.world.placement.value
        members = tuple(member if other == dead else other for other in placement.members)
        renewed = self.machines.share(replace(placement, members=members))
        self.lives[member.life] = Life(member, renewed)
        if is_changing(self.world):
            self.coordinate("reborn", dead.life, member)
            # The first message, `Prepare`, comes with the setup of the process.
            self.order(member.life, self.next_message(("orders", member.life)))
        else:
            self.world = self.world._replace(placement=renewed)

    # Faults of the world.

    def crash(self, number: int) -> None:
        life = self.lives.pop(number)
        self.world = self.world._replace(
            crashes=self.world.crashes - 1, may_be_lost=self.world.may_be_lost | self.lost_with(life)
        )
        for call in [call for _, call in life.running] + [waiter[0] for waiter in life.waiting]:
            self.fail(call)
        for flight in [flight for flight in self.calls if flight[1] == life.member.socket]:
            self.calls.remove(flight)
            self.fail(flight[0])
        for ends in list(self.channels):
            if (
                ends == ("orders", number)
                or ends[-1] == life.member.socket
                or (ends[0] == "answers" and ends[2] == number)
            ):
                del self.channels[ends]
        self.put(("reports", number), ("exit", life.member))

    def lost_with(self, life: Life) -> frozenset[int]:
        """The changes in the memory of a life, without those that another life serves, or has and is still owed the
        acknowledgement of: these must survive."""
        held = [*life.memory, *(item for _, _, state in life.installing for item in state)]
        lost = {call for _, calls in held for call in calls}
        for other in self.lives.values():
            installing = [item for _, _, state in other.installing for item in state]
            for key, calls in other.memory:
                if may_serve(self.machines, other, key) or not self.is_acknowledged(life, other, key):
                    lost -= calls
            for _, calls in installing:
                lost -= calls
        return frozenset(lost)

    def is_acknowledged(self, life: Life, other: Life, key: str) -> bool:
        return any(
            key in message[2] for message in self.channels.get(("answers", life.member.life, other.member.life), ())
        )

    # Messages.

    def deliver(self, ends: tuple[Any, ...]) -> None:
        self.read(ends, self.next_message(ends))

    def repeat(self, ends: tuple[Any, ...]) -> None:
        """Deliver a message, which comes once more."""
        self.world = self.world._replace(repeats=self.world.repeats - 1)
        self.read(ends, self.channels[ends][0])

    def read(self, ends: tuple[Any, ...], message: Any) -> None:
        match ends:
            case ("orders", number):
                self.order(number, message)
            case ("reports", number):
                self.hear(number, message)
            case ("answers", receiver, number):
                self.acknowledge(number, receiver, message)
            case ("moves", sender, socket):
                life = self.life_at(socket)
                if life:
                    self.receive(life.member.life, sender, message)
