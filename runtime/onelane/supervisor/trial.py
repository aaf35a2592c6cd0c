"""The faults that would end `onelane up`: a shard of each app is built in a process of its own, and starts nothing.

Promises: a fault has the text that `up` would end with, because both run the same code; no address is bound, no
resource of a worker thread is made, and code of the services runs in no process but those.
"""

import sys
from collections.abc import Mapping

import anyio

from onelane.config import Config
from onelane.core import addresses
from onelane.core.placement import Member, Placement
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.launcher import Launcher, ProcessLauncher
from onelane.supervisor.placing import Start
from onelane.supervisor.shared_resources import SharedResources, TelemetryOptions
from onelane.telemetry.collector.collector import Collector
from onelane.v1 import control_pb2

TRIAL_S = 60.0
"""Seconds in which the services of an app must have been made."""


async def faults_at_start(
    config: Config, *, app_dir: str, telemetry: TelemetryOptions, answer_s: float = TRIAL_S
) -> list[str]:
    """The faults of every app's services, keys, settings, plugins and files, in the order of the file."""
    launcher = ProcessLauncher("onelane.shard.trial", stdout=sys.stderr.fileno())
    shared = _resources(config, launcher, app_dir, telemetry)
    reasons: dict[str, str] = {}

    async def try_out(name: str) -> None:
        reasons[name] = await _reason_against(name, config, shared, answer_s)

    async with anyio.create_task_group() as tasks:
        for name in config.apps:
            tasks.start_soon(try_out, name)
    return [reasons[name] for name in config.apps if reasons[name]]


def setup_of_first(name: str, config: Config, *, app_dir: str) -> control_pb2.Setup:
    """The setup of the first shard of an app, as `onelane up` would send it."""
    shared = _resources(config, ProcessLauncher(), app_dir, TelemetryOptions(traces=False))
    app = AppSupervisor(name, config.apps[name], _placement(name, config), shared)
    return app.setup_of(app.shards[0], Start(app.placement))


def _resources(config: Config, launcher: Launcher, app_dir: str, telemetry: TelemetryOptions) -> SharedResources:
    listen = {name: addresses.reachable(app.listen) for name, app in config.apps.items()}
    return SharedResources(
        launcher=launcher,
        app_dir=app_dir,
        telemetry=telemetry,
        collector=Collector(config, []),
        peers=dict(config.peers) | listen,
        accepting=config.accepting,
        answer_status=lambda *_: None,
        start_soon=lambda *_: None,
        start_shard=lambda *_: None,
    )


async def _reason_against(name: str, config: Config, shared: SharedResources, answer_s: float) -> str:
    """Why the first shard of an app would not start; "" where nothing is known against it."""
    app = AppSupervisor(name, config.apps[name], _placement(name, config), shared)
    running = await shared.launcher.launch(())
    try:
        with anyio.fail_after(answer_s):
            await running.control.send(control_pb2.ToShard(setup=app.setup_of(app.shards[0], Start(app.placement))))
            answer = await running.control.receive()
            if answer is None:
                return f"apps.{name}: its process has ended while its services were made: {await running.wait()}"
    except TimeoutError:
        return f"apps.{name}: its services have not been made in {answer_s:g} s"
    finally:
        running.kill()
        with anyio.CancelScope(shield=True):
            await running.wait()
    reason: str = answer.failed.reason
    return reason.rstrip()


def _placement(name: str, config: Config) -> Placement:
    """As `up` would have it, with made-up ports where the system would choose them."""
    app = config.apps[name]
    host = app.advertise or addresses.split(app.listen)[0]
    members = tuple(
        Member(f"{name}-{index}", addresses.join(host, app.own_port_of(index) or 1 + index), "")
        for index in range(app.shard_count)
    )
    pins: Mapping[str, str] = {key: members[index].name for key, index in app.pins.items()}
    return Placement(1, members, app.points, pins)
