"""The settings of a machine of a cluster and of its app, and the variables by which `onelane up` takes them."""

import json
from collections.abc import Iterator
from typing import Any

from onelane.config import App
from onelane.core.cluster_settings import ClusterSettings
from onelane.core.validation import checked, to_json

from tests.etcd import EtcdServer

ECHO = {"services": ("tests.echo.service:Echo",), "listen": "127.0.0.1:50051"}


def app_of(**settings: Any) -> App:
    app: App = checked(App, ECHO | settings)
    return app


def settings_of(server: EtcdServer, **settings: Any) -> ClusterSettings:
    """Of the cluster arena, whose machines are on this one."""
    return ClusterSettings(name="arena", etcd=(server.url,), advertise="127.0.0.1", insecure=True, **settings)


def environment_of(settings: ClusterSettings) -> dict[str, str]:
    """What stands for the table [cluster] in the environment."""
    return dict(_variables("ONELANE_CLUSTER", json.loads(to_json(settings))))


def _variables(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _variables(f"{name}__{key.upper()}", part)
    elif isinstance(value, list):
        yield name, ",".join(value)
    elif value not in (None, ""):
        yield name, value if isinstance(value, str) else json.dumps(value)
