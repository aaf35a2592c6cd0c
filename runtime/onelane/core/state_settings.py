"""`[apps.NAME.state]`: where durable state is kept, and for how long answers are remembered. Pure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from onelane.core.validation import NO_SECRET, Checked, Secret

SQLITE, MEMORY = "sqlite", "memory"


@dataclass(frozen=True, kw_only=True)
class StateSettings(Checked):
    """Where the dicts of `shard.keyed(…, durable=True)` are kept. In the file: `[apps.NAME.state]`."""

    store: str = "sqlite"
    """The store: "sqlite" (one file for each shard), "memory" (ends with the process), or another plugin of the entry
    point group `onelane.stores`."""
    folder: Path = Path("state")
    """The folder of the files, for a store that has files."""
    dsn: Secret = NO_SECRET
    """Address and credentials, for a store that is a server."""
    patience_s: Annotated[float, Gt(0), Le(60)] = 5.0
    """Seconds that one operation waits for a lock, a connection or an answer; then its turns end with UNAVAILABLE."""
    answers_s: Annotated[float, Gt(0)] = 86_400.0
    """Seconds for which the answer of a call with an `idempotency-key` is remembered."""
    max_answers_per_key: Annotated[int, Ge(1)] = 1000
    """Answers remembered for one key; with more, the oldest are forgotten first."""
    reminders: bool = False
    """Open the store for `shard.remind` in an app without a durable dict, too."""
    max_reminders_per_key: Annotated[int, Ge(1)] = 100
    """Reminders that one key may have."""
    max_reminder_runs: Annotated[int, Ge(1)] = 20
    """Runs of one reminder until it is given up, where each has failed."""
