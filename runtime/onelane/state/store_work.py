"""What a journal has its store do, on the thread of the store."""

from collections.abc import Sequence

from onelane.errors import Fenced
from onelane.state.store import KeyState, KeyWrite, Store


def load(keys: Sequence[str], epoch: int, at: float, store: Store) -> dict[str, KeyState]:
    """Load the keys, without those that another life has claimed."""
    while keys:
        try:
            return store.load(keys, epoch=epoch, at=at)
        except Fenced as fenced:
            keys = _without(keys, fenced)
    return {}


def commit(writes: Sequence[KeyWrite], at: float, store: Store) -> tuple[str, ...]:
    """Write all but the keys that another life has claimed; returns these."""
    lost: tuple[str, ...] = ()
    while writes:
        try:
            store.commit(writes, at=at)
            break
        except Fenced as fenced:
            left = set(_without([write.key for write in writes], fenced))
            writes = [write for write in writes if write.key in left]
            lost += fenced.keys
    return lost


def _without(keys: Sequence[str], fenced: Fenced) -> list[str]:
    left = [key for key in keys if key not in set(fenced.keys)]
    if len(left) == len(keys):
        # It names none of them: to try again would never end.
        raise fenced
    return left
