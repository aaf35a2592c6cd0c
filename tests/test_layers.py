"""The package is an ordered list: a file imports only what stands above it."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "runtime" / "onelane"
WORDS = ["errors", "clock", "service_config", "config", "settings"]
CORE = ["ring", "placement", "keys", "retry", "buckets", "stats", "totals", "reports", "stalls", "spans", "tail"]
CORE += ["history", "hot_keys", "turns", "overload", "topics", "resilience"]
WIRE = ["wire"]
EDGES = [
    "telemetry",
    "scope",
    "tracing",
    "metering",
    "logs",
    "pulse",
    "recent",
    "lane_context",
    "call",
    "plain",
    "methods",
    "tls",
    "ports",
    "deadlines",
    "eager",
    "subchannel",
    "client_call",
    "hedging",
    "client_interceptors",
    "native_channel",
    "listener",
    "forward",
    "channel",
    "helper",
    "crew",
    "offload",
    "timers",
    "watchdog",
    "sinks",
]
EDGES += ["membership", "control", "plugs"]
PROCESSES = [
    "server_interceptors",
    "handling",
    "outcome",
    "lane",
    "topology",
    "across",
    "shard",
    "life",
    "process",
    "launcher",
    "inline",
]
PROCESSES += [
    "exporter",
    "gathering",
    "keeper",
    "reloading",
    "supervisor",
    "page",
    "systemd",
    "doorkeeper",
    "admin",
    "status",
    "top",
    "proto",
    "cli",
]
ORDER = WORDS + CORE + WIRE + EDGES + PROCESSES
BESIDE = {"v1", "testing", "py", "protos"}
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


def modules() -> list[str]:
    return [name for name in ORDER if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()]


def imports(name: str) -> set[str]:
    """The dotted names that one module (a file, or a folder of files) imports at its top level or anywhere."""
    path = PACKAGE / name
    files = path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_modules_above_it(name: str) -> None:
    ours = {f"{dotted}.".split(".")[1] for dotted in imports(name) if dotted.startswith("onelane.")}
    assert ours <= {name, "v1", *ORDER[: ORDER.index(name)]}


@pytest.mark.parametrize("name", [name for name in modules() if name in CORE + WIRE])
def test_core_and_wire_touch_nothing_outside(name: str) -> None:
    assert not OUTSIDE & {dotted.split(".")[0] for dotted in imports(name)}


def test_every_module_has_its_place() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert found - BESIDE <= set(ORDER)


def test_one_file_imports_ngh2() -> None:
    """So that another binding can take its place."""
    found = [
        file for file in PACKAGE.rglob("*.py") if re.search(r"^(?:from|import) ngh2", file.read_text(), re.MULTILINE)
    ]
    assert found == [PACKAGE / "wire" / "http2.py"]
