"""`onelane status`: fetches the state of all shards from a supervisor or from any shard, and prints it."""

import asyncio
import json
import os
import urllib.error
import urllib.request
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from onelane.config import ADMIN_TOKEN
from onelane.core.placement import STOCK_RING_CAP
from onelane.errors import Transient

TIMEOUT_S = 3.0
COMMAND_S = 600.0
"""A restart waits for the calls of one shard after another."""


def fetch(target: str) -> dict[str, Any]:
    """The status of every app of a supervisor. target: its admin address, or any gRPC address of one of its apps.

    Raises:
        Transient: no supervisor or shard of onelane answers there, or it refuses.
    """
    address = target.removeprefix("http://").rstrip("/")
    status = _from_admin(address)
    return status if status is not None else asyncio.run(_from_shard(address))


def headers() -> dict[str, str]:
    """The headers that authorize a request: the token of `ONELANE_ADMIN_TOKEN`, where it is set."""
    token = os.environ.get(ADMIN_TOKEN)
    return {"Authorization": f"Bearer {token}"} if token else {}


def send(request: urllib.request.Request, timeout_s: float) -> Any:
    """The response of an admin address, a context manager; sent directly, even if an HTTP proxy is configured."""
    return _WITHOUT_PROXY.open(request, timeout=timeout_s)


_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _from_admin(address: str) -> dict[str, Any] | None:
    """None where it is no admin address."""
    request = urllib.request.Request(f"http://{address}/status", headers=headers())
    try:
        with send(request, TIMEOUT_S) as response:
            status: dict[str, Any] = json.load(response)
            return status
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise Transient(f"{address} refuses: {error.read().decode().strip()}") from error
        return None
    except (urllib.error.URLError, OSError, ValueError):
        return None
    except Exception:
        # A gRPC port answers no HTTP/1.1, and http.client has errors of its own for that.
        return None


async def _from_shard(address: str) -> dict[str, Any]:
    import grpc.aio

    from onelane.v1 import topology_pb2, topology_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        try:
            stub = topology_pb2_grpc.TopologyStub(channel)
            reply = await stub.Status(topology_pb2.StatusRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise Transient(f"{address} does not answer as onelane does: {error.details()}") from error
        status: dict[str, Any] = json.loads(reply.json)
        return status


def command(target: str, path: str) -> dict[str, Any]:
    """Send a command to the supervisor at an admin address; its response.

    Raises:
        Transient: no supervisor answers there, or it refuses.
    """
    address = target.removeprefix("http://").rstrip("/")
    request = urllib.request.Request(f"http://{address}{path}", method="POST", headers={"X-Onelane": "1", **headers()})
    try:
        with send(request, COMMAND_S) as response:
            outcome: dict[str, Any] = json.load(response)
            return outcome
    except urllib.error.HTTPError as error:
        raise Transient(f"{address} refuses: {error.read().decode().strip()}") from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Transient(f"{address} does not answer as an admin address does: {error}") from error


def documented(status: dict[str, Any]) -> dict[str, Any]:
    """The documented fields of a status and no other, which `--json` prints."""
    apps = {}
    for name, app in status["apps"].items():
        shards = [{field: shard[field] for field in shard if field != "keyed"} for shard in app["shards"]]
        apps[name] = app | {"shards": shards}
    return {"apps": apps}


def show(status: dict[str, Any], console: Console) -> None:
    for name, app in status["apps"].items():
        config = json.dumps(app["service_config"])
        table = Table(title=f"{name} · {app['listen']} · epoch {app['epoch']}", title_justify="left")
        for column in ("shard", "state", "pid", "address", "restarts", "calls", "forwarded", "stalls", "keys"):
            right = column in ("pid", "restarts", "calls", "forwarded", "stalls")
            table.add_column(column, justify="right" if right else "left")
        for shard in app["shards"]:
            keys = ", ".join(f"{state} {count}" for state, count in shard.get("keyed", {}).items())
            cells = [shard[c] for c in ("name", "state", "pid", "address", "restarts", "calls", "forwarded", "stalls")]
            table.add_row(*map(str, cells), keys)
        console.print(table)
        for shard in app["shards"]:
            for stall in shard["last_stalls"]:
                console.print(_stall(shard["name"], stall), highlight=False, soft_wrap=True, markup=False)
        console.print("for stock clients, in grpc.service_config:", highlight=False)
        console.print(config, highlight=False, soft_wrap=True, markup=False)
        size = app["service_config"]["loadBalancingConfig"][0]["ring_hash_experimental"]["minRingSize"]
        if size > STOCK_RING_CAP:
            console.print(f"and the channel argument grpc.lb.ring_hash.ring_size_cap = {size}", highlight=False)


def _stall(shard: str, stall: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(stall["at_ns"] / 1e9).strftime("%H:%M:%S")
    verb = "was starved" if stall["kind"] == "starved" else f"stalled ({stall['kind']})"
    parts = [f"{when} {shard} {verb} for {stall['seconds'] * 1000:.0f} ms"]
    parts += [f"at {stall['where']} {stall['function']}"] if stall["where"] else []
    parts += [f"in {stall['method']}"] if stall["method"] else []
    parts += [f"trace {stall['trace_id']}"] if stall["trace_id"] else []
    return ", ".join([*parts, *stall["others"]])
