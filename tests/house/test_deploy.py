"""What deploy/ holds is true, as far as that shows without a container engine; see deploy/README.md."""

import asyncio
import configparser
import ipaddress
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
import yaml
from onelane import config
from onelane.cluster.coordination import CoordinationRefused, Put
from onelane.core.cluster_settings import ClusterSettings
from onelane.server.machine_link_tls import MachineLinkTls
from onelane.supervisor.cluster_member import links_of
from onelane.supervisor.durations import longest_stop_s
from onelane.telemetry.sinks.prometheus import name_of
from onelane.telemetry.stats import Instrument

from tests import tools
from tests.bounds import BOUND_S
from tests.cluster.coordination.wires import opened
from tests.etcd import EtcdServer, etcd
from tests.house.test_names import table
from tests.running_app import ROOT, echo, running

DEPLOY = ROOT / "deploy"
ARENA = ROOT / "services/arena/onelane.toml"


MACHINES = ("a", "b", "c")


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of its configs are where this machine has them."""
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    folder = tmp_path_factory.mktemp("configs")
    for name, row in compose["configs"].items():
        (folder / name).write_text(row["content"])
    for service in compose["services"].values():
        files = {row["target"]: str(folder / row["source"]) for row in service.get("configs", ())}
        environment = service.get("environment", {})
        environment |= {name: files.get(value, value) for name, value in environment.items()}
        if "command" in service:
            service["command"] = [_moved(word, files) for word in service["command"]]
    return compose


def _moved(word: str, files: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    return f"{option}{equals}{files.get(value, value)}"


def configuration(compose: dict[str, Any], machine: str) -> config.Config:
    """Of a machine of the compose file."""
    return config.load(ARENA, compose["services"][machine]["environment"])


def cluster_of(environment: dict[str, str]) -> ClusterSettings:
    settings = config.load(ARENA, environment).cluster
    assert settings is not None
    return settings


@pytest.mark.parametrize("machine", MACHINES)
def test_the_composes_environment_is_good_configuration(compose: dict[str, Any], machine: str) -> None:
    read, service = configuration(compose, machine), compose["services"][machine]
    assert {app.listen for app in read.apps.values()} == {"0.0.0.0:50051", "0.0.0.0:50061", "0.0.0.0:50071"}
    assert read.apps["lobby"].serves_reflection
    assert read.cluster is not None
    own_address = service["networks"]["default"]["ipv4_address"]
    assert {app.advertise for app in read.apps.values()} | {read.cluster.advertise} == {own_address}
    assert (read.cluster.machine, service["hostname"]) == (machine, machine)
    [network] = compose["networks"]["default"]["ipam"]["config"]
    assert ipaddress.ip_address(own_address) in ipaddress.ip_network(network["subnet"])


def test_the_composes_machines_differ_by_their_name_address_and_certificate_alone(compose: dict[str, Any]) -> None:
    environments = [compose["services"][machine]["environment"] for machine in MACHINES]
    differ = {name for name in environments[0] if len({environment[name] for environment in environments}) > 1}
    prefix = "ONELANE_CLUSTER__"
    of_apps = {f"ONELANE_APPS__{app}__ADVERTISE" for app in ("LOBBY", "PROFILE", "LEADERBOARD")}
    assert differ == {f"{prefix}{name}" for name in ("MACHINE", "ADVERTISE", "TLS__CERT", "TLS__KEY")} | of_apps


@pytest.mark.parametrize("machine", MACHINES)
def test_the_compose_waits_as_long_as_a_machine_may_take_to_stop(compose: dict[str, Any], machine: str) -> None:
    granted_s = int(compose["services"][machine]["stop_grace_period"].removesuffix("s"))
    assert granted_s >= longest_stop_s(configuration(compose, machine), sinks=1, in_cluster=True)


def test_the_compose_publishes_ports_on_loopback_alone(compose: dict[str, Any]) -> None:
    published = [
        tuple(text.split(":")) for service in compose["services"].values() for text in service.get("ports", ())
    ]
    assert {address for address, _, _ in published} == {"127.0.0.1"}
    assert len({port for _, port, _ in published}) == len(published)
    read = configuration(compose, "a")
    shared = {app.listen.rpartition(":")[2] for app in read.apps.values()} | {read.admin.rpartition(":")[2]}
    assert {tuple(text.split(":")) for text in compose["services"]["a"]["ports"]} == {
        ("127.0.0.1", port, port) for port in shared
    }


def test_the_composes_databases_are_the_one_that_it_starts(compose: dict[str, Any]) -> None:
    read, server = configuration(compose, "a"), compose["services"]["postgres"]["environment"]
    dsn = f"postgresql://{server['POSTGRES_USER']}:{server['POSTGRES_PASSWORD']}@postgres/{server['POSTGRES_DB']}"
    assert read.apps["profile"].state.store == "postgresql"
    assert read.apps["profile"].state.dsn.text == dsn
    assert compose["services"]["a"]["environment"]["ARENA_DB"] == dsn


@pytest.mark.slow
def test_the_composes_certificates_are_those_that_its_machines_and_its_etcd_show(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    """By the command of the compose file, and an etcd that is started with the files that it names."""
    onelane = Path(sys.executable).with_name("onelane")
    folder = tmp_path / "links"
    command = [word.replace("/data/links", str(folder)) for word in compose["services"]["certificates"]["command"]]
    command[-1] = command[-1].replace("onelane cluster", f"{onelane} cluster")
    for _ in range(2):
        # As the second `up`, which finds them.
        completed = subprocess.run(command, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stderr
    services = compose["services"]
    for machine in MACHINES:
        environment = services[machine]["environment"]
        [url] = cluster_of(environment).etcd
        moved = {name: value.replace("/data/links", str(folder)) for name, value in environment.items()}
        MachineLinkTls(links_of(cluster_of(moved)))
    host = urlsplit(url).hostname
    assert services["etcd"]["networks"]["default"]["aliases"] == [host]
    options = [option for option in services["etcd"]["command"] if re.match("--(cert|key)-file", option)]
    assert len(options) == 2
    with etcd(*(option.replace("/links/links", str(folder)) for option in options), scheme="https") as server:
        port = urlsplit(server.url).port
        trusted = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        with socket.create_connection(("127.0.0.1", port), BOUND_S) as connection:
            trusted.wrap_socket(connection, server_hostname=host).close()


@pytest.fixture
def guarded_etcd(compose: dict[str, Any], tmp_path: Path) -> Iterator[tuple[EtcdServer, list[str], Path]]:
    """An etcd without users yet, the command of the compose file that gives it some, and its authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "etcd.pem")
    files = [f"--cert-file={tmp_path}/etcd.pem", f"--key-file={tmp_path}/etcd.pem", "--bcrypt-cost=4"]
    with etcd(*files, scheme="https", authority=tmp_path / "ca.pem") as server:
        here = {
            "python": sys.executable,
            "/run/onelane/etcd_users.py": str(DEPLOY / "etcd_users.py"),
            cluster_of(compose["services"]["a"]["environment"]).etcd[0]: server.url,
            "/data/links/ca.pem": str(tmp_path / "ca.pem"),
        }
        yield (
            server,
            [_moved(here.get(word, word), here) for word in compose["services"]["etcd-users"]["command"]],
            (tmp_path / "ca.pem"),
        )


@pytest.mark.slow
async def test_the_composes_etcd_serves_the_user_of_its_machines_and_nobody_else(
    compose: dict[str, Any], guarded_etcd: tuple[EtcdServer, list[str], Path]
) -> None:
    """Also where it is started once more, and where the first attempt was cut short."""
    server, command, authority = guarded_etcd
    settings = cluster_of(compose["services"]["a"]["environment"])
    known, password = ssl.create_default_context(cafile=str(authority)), settings.etcd_password.text
    server.ask("auth/role/add", '{"name": "onelane-arena"}')
    server.ask("auth/user/add", json.dumps({"name": settings.etcd_user, "password": password}))
    for _ in range(2):
        completed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stderr
    async with opened(server.url, tls=known, user=settings.etcd_user, password=password) as store:
        prefix = f"/onelane/{settings.name}/"
        await store.commit([], [Put(f"{prefix}a", b"1", (await store.grant(60)).lease_id)])
        assert list((await store.read(prefix)).entries) == [f"{prefix}a"]
        with pytest.raises(CoordinationRefused, match="permission denied"):
            await store.read("/onelane/arena0/")
    async with opened(server.url, tls=known) as nobody:
        with pytest.raises(CoordinationRefused, match="user name is empty"):
            await nobody.read("/onelane/arena/")


@pytest.mark.slow
async def test_an_etcd_that_has_another_root_is_told_and_left_as_it_is(
    guarded_etcd: tuple[EtcdServer, list[str], Path], tmp_path: Path
) -> None:
    server, command, _ = guarded_etcd
    (tmp_path / "other").write_text("another password")
    other = [re.sub("--root-password-file=.*", f"--root-password-file={tmp_path}/other", word) for word in command]
    for step, expected in ((command, 0), (other, 1)):
        completed = await asyncio.to_thread(subprocess.run, step, capture_output=True, text=True)
        assert completed.returncode == expected, completed.stderr
    assert f"etcd at {server.url}: " in completed.stderr
    assert "invalid user ID or password" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_the_composes_etcd_is_called_healthy_by_the_user_that_it_serves(compose: dict[str, Any]) -> None:
    settings, check = cluster_of(compose["services"]["a"]["environment"]), compose["services"]["etcd"]["healthcheck"]
    assert f"--user={settings.etcd_user}:{settings.etcd_password.text}" in check["test"]
    for machine in MACHINES:
        waited_for = compose["services"][machine]["depends_on"]
        assert waited_for["etcd-users"] == {"condition": "service_completed_successfully"}
    assert compose["services"]["etcd-users"]["depends_on"] == {"etcd": {"condition": "service_healthy"}}


def test_every_file_that_the_compose_mounts_is_there(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", ())
    ]
    own_paths = [path for path in mounted if path.startswith("./")]
    assert len(own_paths) == 5
    assert {path for path in mounted if path not in own_paths} == compose["volumes"].keys()
    assert [path for path in own_paths if not (DEPLOY / path).is_file()] == []


def test_prometheus_takes_its_configuration() -> None:
    promtool = tools.program("promtool", "Debian's package prometheus")
    run = subprocess.run([promtool, "check", "config", str(DEPLOY / "prometheus.yml")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_series_of_the_dashboard_is_one_that_we_export() -> None:
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    used = {name for text in expressions for name in re.findall(r"\b(?:onelane|rpc)_[a-z_]+(?=[{\[])", text)}
    suffix = {"counter": "_total", "histogram": "_bucket", "gauge": ""}
    known = {name_of(Instrument(name, unit), kind) + suffix[kind] for name, kind, unit, _ in table().values()}
    assert len(used) > 15
    assert used <= known


def test_the_dashboard_shows_all_that_machines_of_a_cluster_count() -> None:
    text = json.dumps(dashboard()["panels"])
    suffix = {"counter": "_total", "histogram": "_bucket", "gauge": ""}
    counted = [name_of(Instrument(n, unit), kind) + suffix[kind] for n, kind, unit, _ in table().values()]
    of_machines = [name for name in counted if name.startswith(("onelane_machine_", "onelane_cluster_"))]
    assert len(of_machines) == 10
    assert [name for name in of_machines if name not in text] == []


def test_no_panels_of_the_dashboard_overlap() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard()["panels"]]
    assert len({*places}) == len(places) == len({panel["id"] for panel in dashboard()["panels"]})


def dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((DEPLOY / "grafana" / "onelane.json").read_text())
    return dashboard


def test_the_dockerfile_copies_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert '"onelane", "up", "services/arena/onelane.toml"' in text


def test_the_image_is_restarted_for_what_a_restart_mends_alone() -> None:
    """Not for a store that is down, as /healthz would have it."""
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^HEALTHCHECK .*\n.*http://127\.0\.0\.1:9464(/\w+)'", text, re.MULTILINE) == ["/livez"]


def test_the_unit_notifies_reloads_and_keeps_its_sockets_to_itself() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "onelane.service")
    service = unit["Service"]
    assert (service["Type"], service["RuntimeDirectoryMode"]) == ("notify", "0700")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_unit_has_limits_of_memory_system_calls_and_capabilities() -> None:
    lines = (DEPLOY / "onelane.service").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert settings["MemoryMax"].endswith("%")
    assert settings["OOMPolicy"] == "continue", "one shard too large must not end them all"
    assert settings["SystemCallFilter"] == "@system-service"
    assert (settings["CapabilityBoundingSet"], settings["AmbientCapabilities"]) == ("", "")
    assert (settings["NoNewPrivileges"], settings["ProtectSystem"]) == ("yes", "strict")
    if shutil.which("systemd-analyze") is None:
        return  # As below.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(DEPLOY / "onelane.service")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_systemd_finds_no_fault_but_the_missing_program() -> None:
    if shutil.which("systemd-analyze") is None:
        # Not a tool of ours: the test above holds the unit where systemd is not installed.
        return
    run = subprocess.run(
        ["systemd-analyze", "verify", str(DEPLOY / "onelane.service")], capture_output=True, text=True, check=False
    )
    faults = [line for line in run.stderr.splitlines() if "onelane.service" in line]
    assert [fault for fault in faults if "not executable: No such file" not in fault] == []


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """As short as /run/onelane: the path of a Unix socket has at most 107 bytes, and `tmp_path` may take them all."""
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        yield Path(folder)


@pytest.mark.slow
async def test_the_supervisor_tells_systemd_when_it_is_ready_and_when_it_stops(
    tmp_path: Path, short_folder: Path
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(address)
        notified.settimeout(BOUND_S)
        with running(tmp_path, echo(1), NOTIFY_SOCKET=address, RUNTIME_DIRECTORY=str(short_folder)) as cluster:
            assert notified.recv(100) == b"READY=1"
            (folder,) = await asyncio.to_thread(lambda: list(short_folder.glob("onelane-*")))
            assert (folder.stat().st_mode & 0o777, (folder / "echo-0.sock").is_socket()) == (0o700, True)
            assert await asyncio.to_thread(cluster.stop) == 0
        assert notified.recv(100) == b"STOPPING=1"
        assert not folder.exists()
