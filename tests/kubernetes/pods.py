"""What kubelet does with one pod, by a process: environment, files, probes, preStop, TERM and KILL by the manifest.

A pod has a loopback address of its own in place of a network of its own: all that listens on all addresses listens on
that. Its clock of probes and of `sleep` is SPEED times as fast; the grace period and what onelane itself does are not.
Its container is a fork of `tests/warm_command.py`; what preStop runs are fresh processes.
"""

import asyncio
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests import warm_command
from tests.kubernetes.manifests import PodTemplate
from tests.running_app import ROOT, descendants

SPEED = 5.0
AT_LEAST_S = 2.0
"""Between TERM and KILL where preStop has used up the grace period, as kubelet grants it."""
SECRETS = {("onelane-admin", "token"): "a-token-of-the-tests"}
_numbers = itertools.count(10)


def new_address() -> str:
    """A loopback address that no pod before has had, and no other process of the tests has."""
    pid, number = os.getpid(), next(_numbers)
    return f"127.{1 + pid // 250 % 250}.{1 + pid % 250}.{number}"


class Pod:
    """One pod, from its start until it is deleted. `run` it as a task; `delete` it, and await `ended`."""

    def __init__(self, name: str, template: PodTemplate) -> None:
        self.name = name
        self.template = template
        self.ip = new_address()
        self.is_ready = False
        self.is_terminating = False
        self.restarts = 0
        self.events: list[str] = []
        """What has happened to it, in order."""
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()
        self.process: warm_command.WarmCommand | None = None
        # Short: sockets are below it.
        self._folder = Path(tempfile.mkdtemp(prefix="pod-"))
        self._deleted = asyncio.Event()
        self._environment = self._lay_out()

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    async def run(self) -> None:
        """Start the container, again each time it ends, until the pod is deleted."""
        try:
            while not self._deleted.is_set():
                await self._run_container()
                if not self._deleted.is_set():
                    self.restarts += 1
                    self._tell("restart")
        finally:
            self._kill()
            self.ended.set()

    async def delete(self) -> None:
        """preStop, then TERM, then KILL; returns once it is gone."""
        self.is_terminating = True
        self._tell("delete")
        self._deleted.set()
        await self.ended.wait()

    def remove(self) -> None:
        """Its files; after it has ended."""
        shutil.rmtree(self._folder)

    # The container

    async def _run_container(self) -> None:
        with (self._folder / "log").open("a") as log:
            program, *arguments = self.template.container["command"]
            assert program == "onelane"
            self.process = warm_command.start(
                [self._inside(argument) for argument in arguments],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                environment=self._environment,
            )
        self.process.stdout.close()
        self._tell("start")
        ended, deleted = _end(self.process), self._deleted.wait()
        probed = self._probe_until_it_fails()
        tasks = [asyncio.ensure_future(work) for work in (ended, deleted, probed)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.is_ready = self.is_ready and self._deleted.is_set()
            if self.process.poll() is None:
                await self._stop_container()
            self._tell(f"end {self.process.poll()}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_container(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + self.template.grace_s
        await self._prestop(deadline)
        self.is_ready = False
        if self.process.poll() is None:
            self._tell("TERM")
            self.process.terminate()
        try:
            async with asyncio.timeout(max(AT_LEAST_S, deadline - time.monotonic())):
                await _end(self.process)
        except TimeoutError:
            self._tell("KILL")
            self._kill()
            await _end(self.process)

    async def _prestop(self, deadline: float) -> None:
        hook = await asyncio.create_subprocess_exec(
            *map(self._inside, self.template.prestop), env=self._environment, cwd=self._folder
        )
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                self._tell(f"preStop {await hook.wait()}")
        except TimeoutError:
            self._tell("preStop cut off")
            _kill_all(hook.pid)
            await hook.wait()

    def _kill(self) -> None:
        """All processes of the container, as its end does."""
        if self.process is not None and self.process.poll() is None:
            _kill_all(self.process.pid)

    # Probes

    async def _probe_until_it_fails(self) -> None:
        """Returns where the container is to be restarted."""
        container = self.template.container
        if not await self._probe(container["startupProbe"], until=True):
            self._tell("startup failed")
            return
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self._follow_readiness(container["readinessProbe"]))
            await self._probe(container["livenessProbe"], until=False)
            if not self.is_terminating:
                # Else nobody would restart it.
                self._tell("liveness failed")
                following.cancel()

    async def _follow_readiness(self, probe: Mapping[str, Any]) -> None:
        while True:
            is_ready = await self._probe(probe, until=not self.is_ready)
            if is_ready != self.is_ready:
                self.is_ready = is_ready
                self._tell("ready" if is_ready else "not ready")

    async def _probe(self, probe: Mapping[str, Any], *, until: bool) -> bool:
        """Probe until it has passed once, or (`until` is false) has failed too often; whether it passes now."""
        failures = 0
        while True:
            passes = await self._passes(probe)
            failures = 0 if passes else failures + 1
            if failures >= probe.get("failureThreshold", 3):
                return False
            if passes and until:
                return True
            await asyncio.sleep(probe.get("periodSeconds", 10) / SPEED)

    async def _passes(self, probe: Mapping[str, Any]) -> bool:
        timeout_s = float(probe.get("timeoutSeconds", 1))
        if "grpc" in probe:
            return await self._serves(
                self.template.port(probe["grpc"]["port"]), probe["grpc"].get("service", ""), timeout_s
            )
        get = probe["httpGet"]
        url = f"http://{self.ip}:{self.template.port(get['port'])}{get['path']}"
        return await asyncio.to_thread(_is_ok, url, timeout_s)

    async def _serves(self, port: int, service: str, timeout_s: float) -> bool:
        async with grpc.aio.insecure_channel(f"{self.ip}:{port}") as channel:
            try:
                stub: Any = HealthStub(channel)
                answer = await stub.Check(HealthCheckRequest(service=service), timeout=timeout_s)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == HealthCheckResponse.SERVING)

    # What is in it

    def _lay_out(self) -> dict[str, str]:
        """Its files and programs; the environment of its processes."""
        for mount in self.template.container["volumeMounts"]:
            place = self._folder / mount["mountPath"].lstrip("/")
            place.mkdir(parents=True)
            for name, text in self.template.files.get(mount["name"], {}).items():
                (place / name).write_text(self._in_its_network(text))
        programs = self._folder / "programs"
        programs.mkdir()
        _script(programs / "onelane", f'exec "{sys.executable}" -m onelane "$@"')
        _script(programs / "sleep", f'exec {shutil.which("sleep")} "$(echo "$1 {SPEED}" | awk \'{{print $1 / $2}}\')"')
        fields = {"status.podIP": self.ip, "metadata.name": self.name}
        variables = self.template.environment(fields, SECRETS)
        own = {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(self._folder / "tmp")}
        own |= warm_command.of_imports(os.environ)
        return own | {name: self._mounted(self._in_its_network(text)) for name, text in variables.items()}

    def _in_its_network(self, text: str) -> str:
        return text.replace("0.0.0.0", self.ip)

    def _inside(self, argument: str) -> str:
        """A path of the image or of a mount, where that is here."""
        if argument == self.template.container["command"][0]:
            return str(self._folder / "programs" / argument)
        return str(ROOT) if argument == "/app" else self._mounted(argument)

    def _mounted(self, text: str) -> str:
        mounts = [mount["mountPath"] for mount in self.template.container["volumeMounts"]]
        return f"{self._folder}{text}" if any(text.startswith(f"{mount}/") for mount in mounts) else text

    def _tell(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()
        self.changed = asyncio.Event()


async def _end(process: warm_command.WarmCommand) -> None:
    """Wait for it; several tasks may, on descriptors of their own."""
    loop, ended, descriptor = asyncio.get_running_loop(), asyncio.Event(), os.dup(process.fileno())
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _kill_all(pid: int) -> None:
    for process in descendants(pid) | {pid}:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def _is_ok(url: str, timeout_s: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return bool(200 <= answer.status < 400)
    except (urllib.error.URLError, OSError):
        return False
