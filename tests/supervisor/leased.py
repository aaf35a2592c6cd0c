"""`onelane` on a machine of a cluster, which the environment describes: `python -m tests.supervisor.leased up FILE`."""

import os
from typing import Any

from onelane.cli.entry import main
from onelane.config import Config
from onelane.core.cluster_settings import ClusterSettings
from onelane.core.validation import from_json, to_json
from onelane.supervisor import supervisor

from tests.etcd import EtcdServer
from tests.running_app import ROOT

SETTINGS = "TEST_CLUSTER"
"""The variable that has the settings of the cluster, as JSON."""
MODULE = "tests.supervisor.leased"


def settings_of(server: EtcdServer, **settings: Any) -> ClusterSettings:
    """Of the cluster arena, whose machines are on this one."""
    return ClusterSettings(name="arena", etcd=(server.url,), advertise="127.0.0.1", insecure=True, **settings)


def environment_of(settings: ClusterSettings) -> dict[str, str]:
    """The environment in which MODULE joins the cluster."""
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    return {SETTINGS: to_json(settings), "PYTHONPATH": path}


class LeasedSupervisor(supervisor.Supervisor):
    """Joins the cluster."""

    def __init__(self, config: Config, *arguments: Any, **options: Any) -> None:
        settings = from_json(ClusterSettings, os.environ[SETTINGS])
        super().__init__(config, *arguments, **options | {"cluster": settings})


if __name__ == "__main__":
    supervisor.Supervisor = LeasedSupervisor  # type: ignore[misc]
    main()
