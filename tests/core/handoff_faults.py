"""Faults for the exploration to find: each a small mistake in one of the two machines."""

from collections.abc import Iterable
from typing import Any

from onelane.core.handoff import SERVE, Action, Forget, Handoff, Here, Install, Refuse, ReleaseAll, Send
from onelane.core.placement import Member
from onelane.core.placement_change import Order, Phase, PlacementChange, Prepare, Tell


class ServesWhatLeaves(Handoff):
    def where(self, key: str, epoch: int) -> Here | Member:
        return SERVE if self.before.owner_of(key) == self.me else super().where(key, epoch)


class ServesBeforeArrival(Handoff):
    def _is_coming(self, key: str) -> bool:
        return False


class SendsOnToTheOldOwner(Handoff):
    def where(self, key: str, epoch: int) -> Here | Member:
        owner = self.before.owner_of(key)
        return super().where(key, epoch) if self.me in (owner, self.after.owner_of(key)) else owner


class IsDoneBeforeTheLastTurn(Handoff):
    def _has_everything(self, receiver: Any) -> bool:
        return self._is_scanned and not receiver.sent


class DepartsBeforeTheAcknowledgement(Handoff):
    def _has_everything(self, receiver: Any) -> bool:
        return self._is_scanned and not receiver.busy


class SendsWhatIsCalledBeforeItsLastTurn(Handoff):
    def called(self, key: str) -> list[Action]:
        receiver = None if self._is_scanned else self._receiver_of(key)
        return [] if receiver is None else self._send(receiver, [key])


class SendsWhatIsCalledAfterItIsDone(Handoff):
    def called(self, key: str) -> list[Action]:
        receiver = self._receiver_of(key)
        if receiver is None or key in receiver.busy or key in receiver.sent or key in self._left:
            return []
        return self._send(receiver, [key])


class ForgetsBeforeTheAcknowledgement(Handoff):
    def _send(self, receiver: Any, keys: list[str]) -> list[Action]:
        return [*super()._send(receiver, keys), Forget(tuple(keys))]


class GivesUpTheState(Handoff):
    def give_up(self, key: str) -> list[Action]:
        return self.quiet(key, has_state=False)


class ForgetsWhomItGivesUp(Handoff):
    def give_up(self, key: str) -> list[Action]:
        for receiver in self._receivers.values():
            receiver.busy.discard(key)
        return []


class HandsOverWhatIsNotItsOwn(Handoff):
    def _receiver_of(self, key: str) -> Any:
        return self._receivers.get(self.after.owner_of(key).name)


class NeverForgets(Handoff):
    def sent_acknowledged(self, to_life: int, keys: Iterable[str]) -> list[Action]:
        return [action for action in super().sent_acknowledged(to_life, keys) if not isinstance(action, Forget)]


class DoesNotSendAgain(Handoff):
    def reborn(self, member: Member) -> list[Action]:
        for receiver in self._receivers.values():
            if receiver.member.name == member.name:
                receiver.sent.clear()
        return super().reborn(member)


class SendsAgainToTheDead(Handoff):
    def reborn(self, member: Member) -> list[Action]:
        return [action for action in super().reborn(member) if not isinstance(action, Send)]


class IsNotDoneAgain(Handoff):
    def reborn(self, member: Member) -> list[Action]:
        return self.gone(self._lives[member.name].life)


class BelievesTheDead(Handoff):
    def _refusal(self, from_life: int, to_life: int) -> Refuse | None:
        return None

    def _is_expected(self, key: str, from_life: int) -> bool:
        return True


class InstallsAgain(Handoff):
    def moved(self, from_life: int, to_life: int, keys: Iterable[str]) -> list[Action]:
        self._installed.difference_update(keys)
        return super().moved(from_life, to_life, keys)

    def _is_expected(self, key: str, from_life: int) -> bool:
        return True


class ServesWhatIsBeingInstalled(Handoff):
    def moved(self, from_life: int, to_life: int, keys: Iterable[str]) -> list[Action]:
        actions = super().moved(from_life, to_life, keys)
        for action in actions:
            if isinstance(action, Install):
                self._installed.update(action.keys)
        return actions


class NeverReleases(Handoff):
    def _settle(self, life: int) -> list[Action]:
        return [action for action in super()._settle(life) if not isinstance(action, ReleaseAll)]


class WaitsForTheDead(Handoff):
    def gone(self, life: int) -> list[Action]:
        self._dead.add(life)
        return []


class EndsWithTheFirstDeath(PlacementChange):
    def died(self, life: int) -> list[Order]:
        if self.phase is Phase.MOVING:
            self._departed |= {member.life for member in self.before.members}
            self._arrived |= {member.life for member in self.after.members}
        return super().died(life)


class KeepsTheDeathToItself(PlacementChange):
    def died(self, life: int) -> list[Order]:
        return [order for order in super().died(life) if not isinstance(order, Tell)]


class KeepsTheNextLifeToItself(PlacementChange):
    def reborn(self, dead_life: int, member: Member) -> list[Order]:
        return super().reborn(dead_life, member)[:1]


class StartsTheNextLifeAsIfAllHadArrived(PlacementChange):
    def _prepare(self) -> Prepare:
        dead = self._dead | {member.life for member in self.before.members} if self._dead else self._dead
        return Prepare(self.before, self.after, frozenset(dead))


class IsOverWithTheFirstReport(PlacementChange):
    def waits_for(self) -> frozenset[int]:
        return frozenset() if self._departed or self._arrived else super().waits_for()


class BlamesTheOthersAlone(Handoff):
    def waits_for(self) -> frozenset[int]:
        return super().waits_for() - {self.me.life}


class BlamesItselfWhileItWaits(Handoff):
    def waits_for(self) -> frozenset[int]:
        lives = super().waits_for()
        return lives | {self.me.life} if lives else lives


class BlamesThoseThatAreDone(Handoff):
    def waits_for(self) -> frozenset[int]:
        return super().waits_for() | self._senders
