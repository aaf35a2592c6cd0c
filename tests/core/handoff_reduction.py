"""Which moves from a state need to be followed, because every other order of them ends in the same states.

A partial-order reduction, for at most one crash, no two calls of a key, and no two keys that one life hands to another
one in the same change. It begins with the crash: before it each message races with the death of its receiver, and all
orders count. After it nothing dies any more, and these moves come first, alone, because each order of them and of any
other moves has the same end:
- an acknowledgement, or a batch, between two lives that live, while the change waits for its receiver: what it changes
  is asked for by its own key alone, and a call that waits for that key begins as one would that comes later;
- a message that its receiver refuses or ignores: it will do so later, too;
- the report of the death, while the coordinator waits for a word of that life: the change cannot be over before it;
- another report, while the change waits for a life that lives, after it too: only which report is the last one can be
  seen, and another one may be the last in its place. Nor can the order in which one life sends its two reports;
- the word that a life is dead or has a next one, where nothing of the dead one is on its way to the life that hears it,
  and no key is to leave for it. Where something is, that and the word race, but with nothing else;
- once the death is told: the scan, every report, and the end of the change.

None of them takes from a life what it may serve, so two lives that serve a key are seen in the reduced order, too.
What cannot be proved so short is compared: `test_handoff_reduction` explores smaller scopes both ways.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from onelane.core.handoff import Refuse
from onelane.core.placement_change import Gone, Over, Reborn

from tests.core.handoff_machines import Machines, Shared
from tests.core.handoff_step import Step
from tests.core.handoff_world import Life, Scenario, World, is_changing

Move = tuple[Callable[..., None], tuple[Any, ...]]
"""A method of `Step`, and its arguments."""
Ends = tuple[Any, ...]


def suits(scenario: Scenario) -> bool:
    """Whether the reduction is exact for a scenario."""
    if scenario.repeats or scenario.give_ups or scenario.slow_install or scenario.crashes > 1:
        return False
    for before, after in pairwise(scenario.owners):
        moves = [(before[key], after[key]) for key in scenario.keys]
        if len(set(moves)) < len(moves):
            return False
    return len(set(scenario.calls)) == len(scenario.calls)


def tells_of_a_death(channel: tuple[Ends, tuple[Any, ...]]) -> bool:
    ends, messages = channel
    if ends[0] == "reports":
        return any(kind == "exit" for kind, _ in messages)
    return ends[0] == "orders" and any(isinstance(message, Gone | Reborn) for message in messages)


def needed_moves(world: World, machines: Machines) -> list[Move]:
    """The moves to follow; none where all of them are needed."""
    return [] if world.crashes else _Reduction(world, machines).moves()


class _Reduction:
    def __init__(self, world: World, machines: Machines) -> None:
        self._world = world
        self._machines = machines
        self._lives = {life.member.life: life for life in world.lives}
        self._at = {life.member.socket: life for life in world.lives}
        self._is_told = not world.dead and not any(map(tells_of_a_death, world.channels))

    def moves(self) -> list[Move]:
        for ends, messages in self._world.channels:
            if self._comes_first(ends, messages[0]):
                return [(Step.deliver, (ends,))]
        if self._is_told:
            for life in self._world.lives:
                if life.unscanned:
                    return [(Step.scan, (life.member.life,))]
        return next(self._races(), [])

    def _comes_first(self, ends: Ends, message: Any) -> bool:
        match ends:
            case ("answers", receiver, number):
                return self._answer_comes_first(receiver, self._lives.get(number), message)
            case ("moves", sender, socket):
                return self._batch_comes_first(sender, self._at.get(socket), message)
            case ("orders", number):
                return self._order_comes_first(self._lives[number], message)
        return self._report_comes_first(ends[1], message)

    def _answer_comes_first(self, receiver: int, sender: Life | None, message: Any) -> bool:
        if receiver in self._lives or sender is None or sender.handoff is None:
            return True
        return self._is_ignored(sender.handoff, "sent_acknowledged", receiver, message[2])

    def _batch_comes_first(self, sender: int, receiver: Life | None, message: Any) -> bool:
        if receiver is None:
            return True
        kind, epoch, to_life, state = message
        if receiver.handoff is None or epoch != receiver.placement.value.epoch:
            return bool(epoch <= receiver.placement.value.epoch)
        if sender in self._lives and to_life == receiver.member.life:
            return self._is_waited_for(receiver.member.life)
        keys = () if kind == "done" else (tuple(key for key, _ in state),)
        return self._is_ignored(receiver.handoff, kind, sender, to_life, *keys)

    def _is_waited_for(self, life: int) -> bool:
        """Whether the change goes on until a life has said that everything has arrived, also once a death is told."""
        change = self._world.change
        if change is None:
            return False
        reports = [(ends[1], messages) for ends, messages in self._world.channels if ends[0] == "reports"]
        dead = [number for number, messages in reports if any(kind == "exit" for kind, _ in messages)]
        later = [self._machines.step(change, "died", number)[0] for number in dead]
        return all(life in after.value.waits_for() for after in (change, *later))

    def _is_ignored(self, machine: Shared, event: str, *details: Any) -> bool:
        changed, actions = self._machines.step(machine, event, *details)
        return changed is machine and all(isinstance(action, Refuse) for action in actions)

    def _report_comes_first(self, number: int, message: Any) -> bool:
        change = self._world.change
        kind, _ = message
        if change is None or not is_changing(self._world):
            return bool(kind != "exit")
        if kind == "exit":
            return number in change.value.waits_for()
        if self._is_told or number not in self._lives:
            return self._is_told
        changed, _ = self._machines.step(change, kind, number)
        return not self._lives.keys().isdisjoint(changed.value.waits_for())

    def _order_comes_first(self, life: Life, message: Any) -> bool:
        if isinstance(message, Gone | Reborn):
            return (
                life.handoff is not None
                and not self._leaves_to_the_dead(life, message)
                and not self._from_the_dead(life)
            )
        is_over = isinstance(message, Shared) and isinstance(message.value, Over)
        return is_over and self._is_told and all(member.life != life.member.life for member in message.value.leaving)

    def _leaves_to_the_dead(self, life: Life, message: Gone | Reborn) -> bool:
        """Whether a key is still to be sent to the shard that a message is about."""
        assert life.handoff
        change = life.handoff.value
        names = {member.life: member.name for member in (*change.before.members, *change.after.members)}
        name = names.get(message.life) if isinstance(message, Gone) else message.member.name
        keys = [*(key for key, _ in life.running), *life.stuck, *life.unscanned]
        return any(
            change.before.owner_of(key).life == life.member.life and change.after.owner_of(key).name == name
            for key in keys
        )

    def _from_the_dead(self, life: Life) -> list[Ends]:
        """What dead lives have sent to a life that lives."""
        return [
            ends
            for ends, _ in self._world.channels
            if (ends[0] == "moves" and ends[2] == life.member.socket and ends[1] not in self._lives)
            or (ends[0] == "answers" and ends[2] == life.member.life and ends[1] not in self._lives)
        ]

    def _races(self) -> Iterator[list[Move]]:
        for ends, messages in self._world.channels:
            message = messages[0]
            if ends[0] == "orders" and isinstance(message, Gone):
                life = self._lives[ends[1]]
                if life.handoff is None:
                    continue
                rivals = self._from_the_dead(life)
                if not self._leaves_to_the_dead(life, message) and all(rival[1] == message.life for rival in rivals):
                    yield [(Step.deliver, (channel,)) for channel in (ends, *rivals)]
