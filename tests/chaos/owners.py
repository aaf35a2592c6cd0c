"""Whether the answers of each key came from its owners one after another: never from two of one epoch, and never from
one of an earlier epoch, or life, than an answer before."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from tests.chaos.clients import Answer


class Ownership(NamedTuple):
    """As answers of the service `Mixed` name it; in the order in which a key's may follow each other."""

    epoch: int
    life: int
    """Grows over all machines."""
    shard: str

    @classmethod
    def of(cls, answer: Answer) -> "Ownership":
        shard, epoch, life = answer.shard.split()
        return cls(int(epoch), int(life), shard)


class TwoOwners(AssertionError):
    """Two processes have answered calls of one key where only one may."""


def check(answers: Iterable[Answer]) -> int:
    """Returns how many owners all keys had.

    Raises:
        TwoOwners: see the module.
    """
    by_key: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_key[answer.key].append(answer)
    return sum(_check_key(answers) for answers in by_key.values())


def _check_key(answers: list[Answer]) -> int:
    owners: set[Ownership] = set()
    ended = sorted(answers, key=lambda answer: answer.answered_at)
    newest, latest = Ownership(0, 0, ""), 0
    for answer in sorted(answers, key=lambda answer: answer.called_at):
        # By all that was answered before this call was made.
        while ended[latest].answered_at < answer.called_at:
            newest = max(newest, Ownership.of(ended[latest]))
            latest += 1
        owner = Ownership.of(answer)
        if owner < newest:
            raise TwoOwners(f"{answer} after an answer of {newest}")
        owners.add(owner)
    shards: dict[int, str] = {}
    for owner in owners:
        if shards.setdefault(owner.epoch, owner.shard) != owner.shard:
            raise TwoOwners(f"{answers[0].key} in epoch {owner.epoch}: {owner.shard} and {shards[owner.epoch]}")
    return len(owners)
