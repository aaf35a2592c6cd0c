"""A real Jaeger for a test, on free ports."""

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests import tools
from tests.ports import reserved

PORTS = ("OTLP_HTTP", "OTLP_GRPC", "QUERY", "QUERY_GRPC", "HEALTH")


class Jaeger:
    """A running Jaeger."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._ports = ports
        self.otlp = f"http://127.0.0.1:{ports['OTLP_HTTP']}"
        self.otlp_grpc = f"http://127.0.0.1:{ports['OTLP_GRPC']}"

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['HEALTH']}/status", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def trace(self, trace_id: str) -> "Trace | None":
        """One trace, as Jaeger's HTTP API gives it; None while it has not come."""
        url = f"http://127.0.0.1:{self._ports['QUERY']}/api/traces/{trace_id}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return Trace(json.load(answer)["data"][0])
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


class Trace:
    """The spans of one trace, as a tree."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.spans: list[dict[str, Any]] = data["spans"]
        self._processes = data["processes"]
        self.warnings = [warning for span in self.spans for warning in span["warnings"] or ()]

    def service(self, span: dict[str, Any]) -> str:
        return str(self._processes[span["processID"]]["serviceName"])

    def resource(self, span: dict[str, Any]) -> dict[str, Any]:
        """The attributes of the process that has recorded it."""
        return {tag["key"]: tag["value"] for tag in self._processes[span["processID"]]["tags"]}

    def tags(self, span: dict[str, Any]) -> dict[str, Any]:
        return {tag["key"]: tag["value"] for tag in span["tags"]}

    def children(self, parent_id: str) -> list[dict[str, Any]]:
        return [s for s in self.spans if [r["spanID"] for r in s["references"]] == [parent_id]]

    def tree_of_roots(self) -> list[Any]:
        """As `tree`, of the spans without a parent."""
        roots = [span for span in self.spans if not span["references"]]
        return [[self.service(s), self.tags(s)["span.kind"], s["operationName"], self.tree(s["spanID"])] for s in roots]

    def tree(self, parent_id: str) -> list[Any]:
        """[service, kind, name, [children]] of every span below `parent_id`, sorted."""
        spans = [
            [self.service(s), self.tags(s)["span.kind"], s["operationName"], self.tree(s["spanID"])]
            for s in self.children(parent_id)
        ]
        return sorted(spans)


@contextmanager
def jaeger() -> Iterator[Jaeger]:
    """Jaeger on free ports, ready; stopped by its pid at the end."""
    command = [tools.jaeger(), "--config", str(Path(__file__).with_name("config.yaml"))]
    with ExitStack() as stack:
        ports = {name: stack.enter_context(reserved()) for name in PORTS}
        environment = os.environ | {f"JAEGER_{name}_PORT": str(port) for name, port in ports.items()}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            yield Jaeger(ports)
        finally:
            process.terminate()
            process.wait(30)
