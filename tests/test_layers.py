"""The package is an ordered list: a file imports only what stands above it."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "runtime" / "onelane"
# One line is one step; the files of one step may import each other.
ORDER = [
    " errors ",
    " core.clock ",
    " core.service_config ",
    " config ",
    " shard.settings ",
    " core.ring ",
    " core.placement ",
    " core.keys ",
    " core.backoff ",
    " telemetry.histogram ",
    " telemetry.stats ",
    " telemetry.collector.totals ",
    " telemetry.collector.sequence ",
    " telemetry.stalls ",
    " telemetry.spans ",
    " telemetry.collector.tail_sampling ",
    " telemetry.collector.history ",
    " telemetry.hot_keys ",
    " core.turns ",
    " lane.admission ",
    " shard.topics ",
    " client.retry ",
    " wire wire.client wire.framing wire.http2 wire.server ",
    " telemetry.tracer ",
    " core.context ",
    " telemetry.otel.tracing ",
    " telemetry.otel.metrics ",
    " telemetry.logs ",
    " telemetry.load ",
    " telemetry.collector.recent_traces ",
    " telemetry.otel.context ",
    " server.call ",
    " server.sync_handler ",
    " server.methods ",
    " server.tls ",
    " server.sockets ",
    " core.deadlines ",
    " server.eager ",
    " client.subchannel ",
    " client.call ",
    " client.hedging ",
    " client.interceptors ",
    " client.channel ",
    " server.listener server.connection server.grpcio_listener server.native_listener server.steering ",
    " lane.forwarder ",
    " client.ring_channel ",
    " shard.offload.thread ",
    " shard.offload.pool ",
    " shard.offload.offload ",
    " shard.timers ",
    " shard.watchdog ",
    " telemetry.sinks telemetry.sinks.otlp.sink telemetry.sinks.otlp.encode "
    "telemetry.sinks.otlp.pipe telemetry.sinks.otlp.target telemetry.sinks.otlp.queue telemetry.sinks.prometheus ",
    " cluster.membership cluster.membership.static cluster.membership.supervised ",
    " cluster.control ",
    " plugins ",
    " server.interceptors ",
    " server.handler ",
    " server.status ",
    " lane.lane ",
    " cluster.topology ",
    " shard.siblings ",
    " shard.shard ",
    " shard.lifecycle ",
    " shard.process ",
    " supervisor.launcher ",
    " supervisor.inline ",
    " telemetry.sinks.otlp.exporter ",
    " telemetry.collector.collector ",
    " supervisor.app ",
    " supervisor.reload ",
    " supervisor.supervisor ",
    " supervisor.admin.page supervisor.admin.view ",
    " supervisor.systemd ",
    " supervisor.admin.auth ",
    " supervisor.admin.server ",
    " cli.status ",
    " cli.top ",
    " cli.protoc ",
    " cli.main ",
    " cli.main ",
]
STEPS = {name: step for step, names in enumerate(ORDER) for name in names.split()}
BESIDE = {"v1", "testing", "protos"}
PURE = " ".join(ORDER[ORDER.index(" core.ring ") : ORDER.index(" telemetry.tracer ")]).split()
OUTSIDE = {
    "asyncio",
    "anyio",
    "grpc",
    "opentelemetry",
    "os",
    "socket",
    "subprocess",
    "threading",
    "time",
}


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(file): file
    for file in PACKAGE.rglob("*.py")
    if (parts := file.relative_to(PACKAGE).parts)[0] not in {*BESIDE, "__init__.py", "__main__.py"}
}


def imports(name: str) -> set[str]:
    """The dotted names that one file imports at its top level or anywhere, and what it may be that it takes of them."""
    nodes = list(ast.walk(ast.parse(FILES[name].read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_file_has_its_step() -> None:
    is_text = {name: FILES[name].read_text().count('"""') == 2 and len(imports(name)) == 0 for name in FILES}
    assert {name for name in FILES if not is_text[name]} <= set(STEPS) <= set(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name in STEPS])
def test_a_file_imports_only_files_above_it(name: str) -> None:
    ours = {dotted.removeprefix("onelane.") for dotted in imports(name) if dotted.startswith("onelane.")}
    assert [other for other in ours if STEPS.get(other, -1) > STEPS[name]] == []


@pytest.mark.parametrize("name", PURE)
def test_core_and_wire_touch_nothing_outside(name: str) -> None:
    assert not OUTSIDE & {dotted.split(".")[0] for dotted in imports(name)}


def test_one_file_imports_ngh2() -> None:
    """So that another binding can take its place."""
    found = [
        file for file in PACKAGE.rglob("*.py") if re.search(r"^(?:from|import) ngh2", file.read_text(), re.MULTILINE)
    ]
    assert found == [PACKAGE / "wire" / "http2.py"]
