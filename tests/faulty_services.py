"""Services that cannot be made, each by a fault that a file or its code may have. See `tests.broken` for exceptions."""

import os

import onelane

from tests.echo.service import Echo


class AsksForMore(Echo):
    def __init__(self, shard: onelane.Shard, database: str) -> None:
        super().__init__(shard)


class CallsNobody(Echo):
    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard)
        shard.stub(lambda channel: channel, to="nobody")


class OffloadsBadly(Echo):
    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard)
        shard.offload(dict, name="cache", capacity=0)


class Leaves(Echo):
    def __init__(self) -> None:
        raise SystemExit("set DATABASE_URL first")


class Dies(Echo):
    def __init__(self) -> None:
        os._exit(7)


class OpensNothing(Echo):
    """Its resource can be opened in production alone."""

    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard)
        shard.offload(self._open, name="database")

    def _open(self) -> dict[str, str]:
        raise OSError("no database here")
