"""`onelane status`: fetches the state of all shards from a supervisor or from any shard, and prints it."""

import asyncio
import json
from datetime import datetime
from typing import Any

from rich.console import Console

from onelane.cli import admin_client, cluster_text
from onelane.cli.admin_client import HTTPS, TIMEOUT_S, ForeignServer, printable
from onelane.cli.listing import Column, Listing, show_plain
from onelane.core.placement import STOCK_RING_CAP
from onelane.errors import NotThere, Transient
from onelane.wire.build import Build

COLUMNS = (
    Column("app", is_number=False, rank=9),
    Column("shard", is_number=False),
    Column("state", is_number=False),
    Column("pid", rank=2),
    Column("address", is_number=False, rank=1),
    Column("restarts"),
    Column("calls"),
    Column("forwarded", rank=3),
    Column("stalls"),
    Column("keys", is_number=False, rank=4),
)


def fetch(address: str) -> dict[str, Any]:
    """The status of every app of a supervisor. address: its admin address, or any gRPC address of one of its apps.

    Raises:
        Transient: no supervisor or shard of onelane answers there, or it refuses.
    """
    try:
        return admin_client.fetch(address, "/status")
    except (ForeignServer, NotThere):
        if address.startswith(HTTPS):
            raise
        # A gRPC port answers no HTTP/1.1.
        return printable_status(asyncio.run(_from_shard(address)))


def printable_status(status: dict[str, Any]) -> dict[str, Any]:
    """A status without control characters."""
    cleaned: dict[str, Any] = printable(status)
    return cleaned


async def _from_shard(address: str) -> dict[str, Any]:
    import grpc.aio

    from onelane.v1 import topology_pb2, topology_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        try:
            stub = topology_pb2_grpc.TopologyStub(channel)
            reply = await stub.Status(topology_pb2.StatusRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise Transient(f"{address} refuses: {printable(error.details() or '')}") from error
            reason = f"{error.code().name}: {printable(error.details() or '')}"
            raise ForeignServer(
                f"{address} answers as no supervisor and as no shard of onelane ({reason}); {admin_client.HINT}"
            ) from error
        status: dict[str, Any] = json.loads(reply.json)
        return status


def documented(status: dict[str, Any]) -> dict[str, Any]:
    """The documented fields of a status and no other, which `--json` prints."""
    apps = {}
    for name, app in status["apps"].items():
        shards = [{field: shard[field] for field in shard if field != "keyed"} for shard in app["shards"]]
        apps[name] = app | {"shards": shards}
    return {"apps": apps} | ({"cluster": status["cluster"]} if "cluster" in status else {})


def show(status: dict[str, Any], console: Console) -> None:
    """Print a status: for a terminal app by app; for a pipe one table of all shards, and the rest below it."""
    if not console.is_terminal:
        show_plain([_shards(name, app) for name, app in status["apps"].items()], console)
    for name, app in status["apps"].items():
        console.print()
        build = f"  {Build(**app['build'])}" if "build" in app else ""
        console.print(f"{name}  {app['listen']}  epoch {app['epoch']}{build}", soft_wrap=True)
        if console.is_terminal:
            _shards(name, app).show(console)
        if app.get("change") is not None:
            console.print(change_text(app["change"]), soft_wrap=True)
        for leaving in app.get("leaving", ()):
            console.print(f"{leaving['name']} (life {leaving['life']}) finishes its calls", soft_wrap=True)
        for pin in app.get("pins", ()):
            console.print(pin_text(pin), soft_wrap=True, markup=False)
        _show_rest(app, console)
    if "cluster" in status:
        console.print()
        cluster_text.show(status["cluster"], console)


def pin_text(pin: dict[str, Any]) -> str:
    """A pin, in one line."""
    until = "of the file" if pin["from_file"] else "until `onelane unpin` or the end of `onelane up`"
    waits = "; waits until the shard is back" if pin["waiting"] else ""
    return f"pin {pin['key']} → {pin['shard']}, {until}{waits}"


def _shards(name: str, app: dict[str, Any]) -> Listing:
    listing = Listing(COLUMNS)
    for shard in app["shards"]:
        keys = ",".join(f"{keyed}={count}" for keyed, count in shard.get("keyed", {}).items())
        cells = [shard[c] for c in ("name", "state", "pid", "address", "restarts", "calls", "forwarded", "stalls")]
        listing.add(name, *map(str, cells), keys)
    return listing


def _show_rest(app: dict[str, Any], console: Console) -> None:
    """Durable state, the last stalls, and what stock clients need to know."""
    for shard in app["shards"]:
        if shard.get("durable") is not None:
            console.print(durable_text(shard["name"], shard["durable"]), soft_wrap=True)
    for shard in app["shards"]:
        for stall in shard["last_stalls"]:
            console.print(_stall(shard["name"], stall), soft_wrap=True)
    console.print("for stock clients, in grpc.service_config:")
    console.print(json.dumps(app["service_config"]), soft_wrap=True)
    size = app["service_config"]["loadBalancingConfig"][0]["ring_hash_experimental"]["minRingSize"]
    if size > STOCK_RING_CAP:
        console.print(f"and the channel argument grpc.lb.ring_hash.ring_size_cap = {size}", soft_wrap=True)


def durable_text(shard: str, durable: dict[str, Any]) -> str:
    """The durable state of a shard, in one line."""
    parts = [f"{durable['residents']} keys in memory", f"{durable['commits']} commits"]
    if durable["commits"]:
        milliseconds = (1000 * durable["commit_p50_s"], 1000 * durable["commit_p99_s"])
        parts.append(
            f"of {durable['keys_per_commit']:.1f} keys in {milliseconds[0]:.1f} ms (p99 {milliseconds[1]:.1f})"
        )
    parts += [f"{count} failed to {operation}" for operation, count in durable["failures"].items()]
    fails = ", FAILS NOW" if durable["failing"] else ""
    return f"{shard} keeps state in {durable['store']}: {', '.join(parts)}{fails}"


def change_text(change: dict[str, Any]) -> str:
    """A change of placement that is under way, in one line."""
    begun = f"epoch {change['from']} → {change['to']}: {change['what']}"
    if "since_s" not in change:
        return f"{begun}; waits for {', '.join(change['starting']) or 'its begin'} to start"
    parts = [f"{change['departed']} keys moved ({change['bytes']} bytes)", f"{change['leaving']} to go"]
    parts += [f"{change['held']} calls held"] if change["held"] else []
    parts += [f"waits for {', '.join(change['waits_for'])}"] if change["waits_for"] else []
    return f"{begun}; {', '.join(parts)}, {change['since_s']:.1f} s"


def _stall(shard: str, stall: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(stall["at_ns"] / 1e9).strftime("%H:%M:%S")
    verb = "was starved" if stall["kind"] == "starved" else f"stalled ({stall['kind']})"
    parts = [f"{when} {shard} {verb} for {stall['seconds'] * 1000:.0f} ms"]
    parts += [f"at {stall['where']} {stall['function']}"] if stall["where"] else []
    parts += [f"in {stall['method']}"] if stall["method"] else []
    parts += [f"trace {stall['trace_id']}"] if stall["trace_id"] else []
    return ", ".join([*parts, *stall["others"]])
