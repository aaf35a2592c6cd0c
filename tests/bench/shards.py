"""Onelane under measurement: a running app with all that a user gets, traces exported and 1 % of them sampled."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from onelane.config import App
from onelane.core.placement import Member

from tests.bench.interpreted import Sources, require_interpreted
from tests.bench.load import Target
from tests.running_app import RunningApp, descendants, running
from tests.servers import Files

BIG_MESSAGES = 8 * 1024 * 1024


class Shards:
    """A running app `echo`, and where a key lives in it. Its cost includes its supervisor's."""

    def __init__(self, cluster: RunningApp) -> None:
        self.placement = cluster.placement()
        self.members = self.placement.members
        self.listen = cluster.listen["echo"]
        self.shard_pids = [shard["pid"] for shard in cluster.shards()]
        self.cluster = cluster
        self._supervisor = cluster.process.pid

    @property
    def pids(self) -> list[int]:
        """The supervisor, and all that it has started: shards, what forks them, and what exports."""
        return [self._supervisor, *sorted(descendants(self._supervisor))]

    def key_of(self, member: Member) -> str:
        return next(k for k in map(str, range(10_000)) if self.placement.owner_of(k) == member)

    def at_home(self, scheme: str = "http") -> list[Target]:
        return [Target(member.address, self.key_of(member), scheme) for member in self.members]

    def away(self) -> list[Target]:
        here, other = self.members
        return [Target(here.address, self.key_of(other))]


def telemetry(otlp: str, ratio: float) -> dict[str, str]:
    """The variables that have this share of calls sampled and exported; the same for whoever reads them."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio" if ratio else "always_off",
        "OTEL_TRACES_SAMPLER_ARG": str(ratio),
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
    }


def toml_of(
    count: int,
    listener: str = "native",
    service: str = "tests.echo.service:Echo",
    tls: Files | None = None,
    max_late_s: float = App.max_late_s,
) -> str:
    """The file of an app `echo`. max_late_s: as a user has it, where nothing else is given; an app of the tests refuses
    nothing for its lateness."""
    toml = [
        *("[apps.echo]", f'services = ["{service}"]', 'listen = "127.0.0.1:0"', f"shards = {count}"),
        *(f'listener = "{listener}"', f"max_message_bytes = {BIG_MESSAGES}"),
        f"max_late_s = {max_late_s}",
    ]
    if tls is not None:
        toml.append(f'tls = {{ cert = "{tls.path("server.pem")}", key = "{tls.path("server.key")}" }}')
    return "\n".join(toml)


@contextmanager
def shards(
    folder: Path,
    count: int,
    listener: str,
    otlp: str,
    service: str = "tests.echo.service:Echo",
    ratio: float = 0.01,
    tls: Files | None = None,
    sources: Sources | None = None,
) -> Iterator[Shards]:
    """`count` shards of `service`. otlp: where the traces and metrics go. ratio: of calls that are sampled. tls: the
    certificate that they serve. sources: what they run, interpreted; else onelane as it is installed here.

    Raises:
        RuntimeError: something else runs than `sources`.
    """
    folder = Path(mkdtemp(dir=folder))
    toml = toml_of(count, listener, service, tls)
    if sources is None:
        with running(folder, toml, python=sys.executable, **telemetry(otlp, ratio)) as cluster:
            yield Shards(cluster)
        return
    # The last --app-dir counts.
    arguments, environment = ("--app-dir", str(sources.root)), sources.environment | telemetry(otlp, ratio)
    with running(folder, toml, *arguments, python=sources.python, **environment) as cluster:
        app = Shards(cluster)
        require_interpreted(sources, app.pids)
        yield app
