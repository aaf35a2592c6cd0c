"""`onelane cluster`: machines as etcd tells them, one that is forgotten, the bootstrap file of stock clients."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from onelane.cli.main import main
from onelane.cluster.coordination import Put
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys

from tests.etcd import EtcdServer, etcd
from tests.ports import reserved
from tests.running_app import echo, eventually, running
from tests.supervisor.cluster_variables import environment_of, settings_of
from tests.supervisor.machines_up import LEASE_S, Machines

APP = '[apps.echo]\nservices = ["tests.echo.service:Echo"]\nlisten = "127.0.0.1:0"\n'


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


def file_of(folder: Path, url: str, *more: str, name: str = "arena") -> str:
    lines = [f'name = "{name}"', f'etcd = ["{url}"]', 'advertise = "127.0.0.1"', "insecure = true", *more]
    file = folder / "cluster.toml"
    file.write_text("\n".join([APP, "[cluster]", *lines]))
    return str(file)


def ask(file: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["cluster", *arguments, "--file", file])


# Two machines


async def answer(file: str, *arguments: str) -> Result:
    """Beside a running event loop."""
    return await asyncio.to_thread(ask, file, *arguments)


def now(file: str) -> Any:
    ran = ask(file, "status", "--json")
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.output)


@pytest.mark.slow
async def test_machines_are_shown_and_one_is_forgotten_and_joins_again(tmp_path: Path) -> None:
    with etcd() as server:
        file, machines = file_of(tmp_path, server.url), Machines(server, tmp_path)
        with machines.up("a") as a, machines.up("b"):
            row = await asyncio.to_thread(now, file)
            assert (row["name"], row["coordinator"]) == ("arena", "a")
            rows = {machine["name"]: machine for machine in row["machines"]}
            assert {name: machine["state"] for name, machine in rows.items()} == {"a": "joined", "b": "joined"}
            assert all(0 < machine["lease_left_s"] <= LEASE_S for machine in rows.values())
            assert rows["b"]["apps"]["echo"][0]["name"] == "b/echo-0"
            assert row["apps"]["echo"]["shards"] == 2
            assert row["apps"]["echo"]["change"] is None
            text = (await answer(file, "status")).output
            assert text.startswith("cluster arena  told by etcd  a coordinates\n")
            assert "b/echo-0" in text

            refused = await answer(file, "forget", "b")
            assert refused.exit_code == 1
            assert "machine 'b' is alive" in refused.output
            forgotten = await answer(file, "forget", "b", "--force")
            assert forgotten.exit_code == 0, forgotten.output
            assert f"b is forgotten: in {LEASE_S} s others serve its keys" in forgotten.output
            assert "where b still runs, it joins again with new processes" in forgotten.output

            def has_joined_again() -> bool:
                row = now(file)
                leases = {machine["name"]: machine["lease"] for machine in row["machines"]}
                is_whole = row["apps"]["echo"]["shards"] == 2 and row["apps"]["echo"]["change"] is None
                return is_whole and leases.get("b") not in (None, rows["b"]["lease"])

            await eventually(has_joined_again)
            assert a.shards()[0]["restarts"] == 0
        ended = await answer(file, "status")
        assert "no machine coordinates" in ended.output


@pytest.mark.slow
async def test_a_machine_that_was_killed_is_shown_until_its_keys_are_elsewhere(tmp_path: Path) -> None:
    with etcd() as server:
        file, machines = file_of(tmp_path, server.url), Machines(server, tmp_path)
        with machines.up("a"), machines.up("b") as b:
            os.kill(b.process.pid, signal.SIGKILL)
            states: set[str] = set()

            def is_elsewhere() -> bool:
                row = now(file)
                states.update(machine["state"] for machine in row["machines"] if machine["name"] == "b")
                return row["apps"]["echo"]["shards"] == 1 and row["apps"]["echo"]["change"] is None

            await eventually(is_elsewhere)
            assert states <= {"joined", "missing"}
            assert "joined" in states


def owners_by_xds(bootstrap: str, *keys: str) -> set[str]:
    """The shards that answer a stock client, grpcio, which knows no more than a bootstrap file."""
    code = (
        "import sys, grpc\n"
        "from tests.echo.v1 import echo_pb2, echo_pb2_grpc\n"
        "stub = echo_pb2_grpc.EchoStub(grpc.insecure_channel('xds:///echo'))\n"
        "for key in sys.argv[1:]:\n"
        "    options = {'metadata': [('onelane-key', key)], 'timeout': 60, 'wait_for_ready': True}\n"
        "    print(stub.Unary(echo_pb2.EchoRequest(key=key), **options).shard)\n"
    )
    environment = os.environ | {"GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap}
    command = [sys.executable, "-c", code, *keys]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return {*run.stdout.split()}


@pytest.mark.slow
async def test_a_stock_client_follows_all_machines_by_the_bootstrap_file(tmp_path: Path) -> None:
    with etcd() as server, reserved() as port:
        xds = f"127.0.0.1:{port}"
        file = file_of(tmp_path, server.url, f'xds = "{xds}"')
        (tmp_path / "a").mkdir()
        settings = settings_of(server, machine="a", lease_s=LEASE_S, xds=xds)
        with (
            running(tmp_path / "a", echo(1), **environment_of(settings)),
            Machines(server, tmp_path).up("b"),
            reserved() as silent,
        ):
            ran = await answer(file, "bootstrap")
            assert ran.exit_code == 0, ran.output
            assert servers_in(ran.stdout) == [xds]
            # A machine that is down is the first; etcd knows of the others.
            file = file_of(tmp_path, server.url, f'xds = "127.0.0.1:{silent}"')
            ran = await answer(file, "bootstrap")
            assert servers_in(ran.stdout) == [f"127.0.0.1:{silent}", xds]
            keys = [f"k{number}" for number in range(40)]
            assert await asyncio.to_thread(owners_by_xds, ran.stdout, *keys) == {"a/echo-0", "b/echo-0"}


def servers_in(bootstrap: str) -> list[str]:
    return [row["server_uri"] for row in json.loads(bootstrap)["xds_servers"]]


# Settings that these commands need


def test_the_bootstrap_file_names_the_address_that_clients_reach(tmp_path: Path) -> None:
    file = file_of(tmp_path, "http://127.0.0.1:1", 'xds = "0.0.0.0:18000"')
    text = Path(file).read_text().replace('advertise = "127.0.0.1"', 'advertise = "fd00::7"')
    Path(file).write_text(text)
    ran = ask(file, "bootstrap")
    assert "other machines are left out: etcd at http://127.0.0.1:1 does not answer" in ran.stderr
    document = json.loads(ran.stdout)
    assert document == {
        "xds_servers": [
            {
                "server_uri": "[fd00::7]:18000",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": "client-of-arena", "cluster": "arena"},
    }
    several = json.loads(ask(file, "bootstrap", "--server", "a:18000", "--server", "b:18000").output)
    assert [row["server_uri"] for row in several["xds_servers"]] == ["a:18000", "b:18000"]


def test_without_a_port_of_xds_there_is_no_bootstrap_file(tmp_path: Path) -> None:
    ran = ask(file_of(tmp_path, "http://127.0.0.1:1"), "bootstrap")
    assert ran.exit_code == 3
    missing = 'cluster.xds: is missing, here and on all machines that are known; expected its address, such as xds = "0'
    assert missing in ran.output


@pytest.mark.parametrize("command", [["status"], ["forget", "b"], ["bootstrap"]])
def test_a_file_without_a_cluster_is_told(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "onelane.toml").write_text(APP)
    ran = ask(str(tmp_path / "onelane.toml"), *command)
    assert ran.exit_code == 3
    assert "cluster: is missing; expected the table [cluster] with name, etcd and advertise" in ran.output


# Etcd as it should not be


@pytest.mark.parametrize("command", [["status"], ["forget", "b"]])
def test_without_an_etcd_its_address_is_told(tmp_path: Path, command: list[str]) -> None:
    with reserved() as port:
        file = file_of(tmp_path, f"http://127.0.0.1:{port}")
        ran = ask(file, *command)
    assert ran.exit_code == 1
    assert f"etcd at http://127.0.0.1:{port} does not answer: " in ran.output
    assert f"expected an etcd at cluster.etcd of {file}" in ran.output
    assert "Traceback" not in ran.output


def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path) -> None:
    with etcd() as server:
        for request in ("user/add", "user/grant"):
            server.ask(f"auth/{request}", '{"name": "root", "user": "root", "password": "right", "role": "root"}')
        server.ask("auth/enable", "{}")
        file = file_of(tmp_path, server.url, 'etcd_user = "root"', 'etcd_password = "hunter2"')
        ran = ask(file, "status")
        assert ran.exit_code == 1
        assert f"etcd at {server.url}: etcdserver: authentication failed" in ran.output
        assert "expected a user of this etcd, and its password" in ran.output
        assert f"see cluster.etcd_user, etcd_password and etcd_tls of {file}" in ran.output
        assert "hunter2" not in ran.output
        without = ask(file_of(tmp_path, server.url), "status")
        assert "this etcd has users: expected one, and its password" in without.output


def test_what_is_no_etcd_is_told(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"], stdout=subprocess.PIPE, cwd=tmp_path
    ) as web:
        assert web.stdout is not None
        port = int(web.stdout.readline().split(b"port ")[1].split()[0])
        ran = ask(file_of(tmp_path, f"http://127.0.0.1:{port}"), "status")
        web.kill()
    assert ran.exit_code == 1
    assert f"etcd at http://127.0.0.1:{port}" in ran.output
    assert "Traceback" not in ran.output


def test_a_cluster_of_which_etcd_has_nothing_is_told_by_its_name(tmp_path: Path, server: EtcdServer) -> None:
    file = file_of(tmp_path, server.url, name="nobodys")
    ran = ask(file, "status")
    assert (ran.exit_code, ran.output) == (
        0,
        "etcd has nothing of a cluster 'nobodys': no machine of it has joined yet\n",
    )
    assert json.loads(ask(file, "status", "--json").output)["machines"] == []
    forgotten = ask(file, "forget", "a")
    assert forgotten.exit_code == 1
    assert "no machine 'a' in cluster 'nobodys'; expected one of: none" in forgotten.output


async def _put(server: EtcdServer, key: str, value: bytes) -> None:
    store = EtcdStore(etcd_address(settings_of(server)))
    await store.commit([], [Put(key, value)])
    await store.close()


def test_records_that_cannot_be_read_are_shown_with_their_reason(tmp_path: Path, server: EtcdServer) -> None:
    keys = ClusterKeys("newer")
    newer = b'{"version": 9, "oldest_reader": 9, "machine": {"name": "a", "release": "9.0.0"}}'
    asyncio.run(_put(server, keys.machine("a"), newer))
    asyncio.run(_put(server, keys.app("echo"), b"no entry"))
    file = file_of(tmp_path, server.url, name="newer")
    text = ask(file, "status").output
    assert "a: it runs onelane 9.0.0, whose records (version 9) are newer" in text
    assert "echo: its placement stays as it is: the entry of app 'echo' is no placement" in text


def test_help_imports_nothing_of_clusters() -> None:
    probe = (
        "import sys, onelane.cli.main\n"
        "parts = 'onelane.cluster.', 'aiohttp', 'cryptography', 'onelane.supervisor.machine'\n"
        "print([n for n in sys.modules if n.startswith(parts) and n != 'onelane.cluster.control'])"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
