"""The durable dicts of an app, as the code that is about to be deployed declares them: made in this process."""

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import anyio

from onelane.config import Config

if TYPE_CHECKING:
    from onelane.state.declaration import ValueCodec


def declared_dicts(configuration: Config, app: str, *, app_dir: str) -> "Mapping[str, ValueCodec]":
    """Name of each durable dict → the codec of its values. What the services print goes to stderr.

    Raises:
        BadConfig, BadService, ServiceRaised: the services cannot be made.
    """
    # Not before: a command that shows no value starts without all that a shard imports.
    from onelane.shard.trial import durable_dicts
    from onelane.supervisor.trial import setup_of_first

    # As `python -m` does for a shard in a process of its own.
    sys.path.append(os.getcwd())
    with redirect_stdout(sys.stderr):
        return anyio.run(durable_dicts, setup_of_first(app, configuration, app_dir=app_dir))
