"""`[apps.NAME.state]`: where durable state is kept, and for how long answers are remembered. Pure."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer

SQLITE, MEMORY = "sqlite", "memory"


class StateSettings(BaseModel):
    """Where the dicts of `shard.keyed(…, durable=True)` are kept. In the file: `[apps.NAME.state]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = "sqlite"
    """The store: "sqlite" (one file for each shard), "memory" (ends with the process), or another plugin of the entry
    point group `onelane.stores`."""
    folder: Path = Path("state")
    """The folder of the files, for a store that has files."""
    dsn: SecretStr = SecretStr("")
    """Address and credentials, for a store that is a server."""
    patience_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Seconds that one operation waits for a lock, a connection or an answer; then its turns end with UNAVAILABLE."""
    answers_s: Annotated[float, Field(gt=0)] = 86_400.0
    """Seconds for which the answer of a call with an `idempotency-key` is remembered."""
    max_answers_per_key: Annotated[int, Field(ge=1)] = 1000
    """Answers remembered for one key; with more, the oldest are forgotten first."""
    reminders: bool = False
    """Open the store for `shard.remind` in an app without a durable dict, too."""
    max_reminders_per_key: Annotated[int, Field(ge=1)] = 100
    """Reminders that one key may have."""
    max_reminder_runs: Annotated[int, Field(ge=1)] = 20
    """Runs of one reminder until it is given up, where each has failed."""

    @field_serializer("dsn", when_used="json")
    def _dsn_for_shards(self, dsn: SecretStr) -> str:
        """Settings become JSON on the control line alone, for the shards, which need the address itself."""
        return dsn.get_secret_value()
