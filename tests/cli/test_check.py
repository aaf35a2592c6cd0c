"""`onelane check` says what would keep `onelane up` from starting, in the words that `up` says it in."""

import datetime
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from onelane import config
from onelane.cli.cluster_files import make_files
from onelane.cli.main import main
from onelane.supervisor import trial
from onelane.supervisor.shared_resources import TelemetryOptions
from onelane.wire.build import running_build

from tests.running_app import ROOT, echo, run_to_end

LAST = f"with {running_build()}; starts within 120 s, stops within 25.5 s\n"
"""By the defaults of start_s, drain_s and stop_s."""
OTHER = '[apps.other]\nshards = 1\nservices = ["tests.echo.service:Echo"]\n'
CLUSTER = '[cluster]\nname = "arena"\netcd = ["https://10.0.0.5:2379"]\nadvertise = "10.0.0.11"\n'
FAULTS = {
    "no TOML": ("admin = \n", {}, "is not TOML: Invalid value (at line 1, column 9)"),
    "apps is no table": (
        "apps = 3\n",
        {"ONELANE_APPS__ECHO__SHARDS": "2"},
        "ONELANE_APPS__ECHO__SHARDS sets apps.echo",
    ),
    "unknown setting": (
        echo(1, "shardz = 2"),
        {},
        "line 6: apps.echo.shardz: is not a setting; did you mean 'shards'?",
    ),
    "number of shards": (
        echo(1).replace("shards = 1", 'shards = "many"'),
        {},
        "line 4: apps.echo.shards: Input should be 'auto', seen 'many', or: Input should be a valid integer",
    ),
    "variable of a wrong type": (
        echo(1),
        {"ONELANE_APPS__ECHO__DRAIN_S": "soon"},
        "ONELANE_APPS__ECHO__DRAIN_S: apps.echo.drain_s: Input should be a valid number",
    ),
    "variable below a value": (
        echo(1),
        {"ONELANE_APPS__ECHO__SHARDS__COUNT": "2"},
        "ONELANE_APPS__ECHO__SHARDS__COUNT sets apps.echo.shards.count, but shards is a number, and no table",
    ),
    "peer without a port": (
        f'peers = {{ shop = "shop.internal" }}\n{echo(1)}',
        {},
        "line 1: peers.shop: target 'shop.internal': expected host:port",
    ),
    "stubs of nobody": (
        echo(1, "[apps.echo.stubs.shop]", "max_in_flight = 1"),
        {},
        "apps.echo.stubs.shop: no app or peer is called so; known are ['echo']",
    ),
    "two apps on one address": (
        f'{echo(1)}\n{OTHER}listen = "127.0.0.1:50051"\n'.replace("127.0.0.1:0", "127.0.0.1:50051"),
        {},
        "apps.other.listen: 127.0.0.1:50051 is apps.echo.listen already; expected another port",
    ),
    "an app on a shard's own address": (
        f'{echo(2)}\n{OTHER}listen = "0.0.0.0:50251"\nadvertise = "127.0.0.1"\n'.replace(':0"', ':50051"'),
        {},
        "apps.echo: the own address of shard echo-1: 127.0.0.1:50251 is apps.other.listen already",
    ),
    "own ports past the last": (
        echo(1).replace("127.0.0.1:0", "127.0.0.1:65500"),
        {},
        "apps.echo: the own address of shard echo-0 would be port 65600, past 65535: set own_port",
    ),
    "unknown sink": (
        f'sinks = ["kafka"]\n{echo(1)}',
        {},
        "sinks: onelane.sinks: 'kafka' is not installed; installed are",
    ),
    "format of logs": (echo(1), {"ONELANE_LOGS": "xml"}, "ONELANE_LOGS is 'xml', expected 'text' or 'json'"),
    "protocol of OTLP": (
        echo(1),
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "soap"},
        "OTEL_EXPORTER_OTLP_PROTOCOL is 'soap', expected one of http/protobuf, grpc",
    ),
    "no files of links": (
        f'{echo(1)}\n{CLUSTER}tls = {{ ca = "/nowhere/ca.pem", cert = "/nowhere/a.pem", key = "/nowhere/a.key" }}\n',
        {},
        "cluster.tls.ca: /nowhere/ca.pem cannot be used: ",
    ),
    "no file of etcd": (
        f'{echo(1)}\n{CLUSTER}insecure = true\netcd_tls = {{ ca = "/nowhere/etcd.pem" }}\n',
        {},
        "cluster.etcd_tls.ca: /nowhere/etcd.pem cannot be used: ",
    ),
    "an app without links": (
        echo(1, "listener = 'grpcio'") + f"\n{CLUSTER}insecure = true\n",
        {},
        "apps.echo.listener: expected \"native\" with [cluster], not 'grpcio': others have no links",
    ),
    "links neither secure nor insecure": (
        f"{echo(1)}\n{CLUSTER}",
        {},
        "[cluster.tls] is missing: links between machines are mutual TLS (or insecure = true)",
    ),
    "admin address": (echo(1), {"ONELANE_ADMIN": "localhost"}, "ONELANE_ADMIN: admin: expected ip:port"),
}


@pytest.fixture(autouse=True)
def environment_of_no_other_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OTEL_", "ONELANE_"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("fault", FAULTS)
def test_check_and_up_say_a_fault_of_the_file_in_the_same_words(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml, variables, sentence = FAULTS[fault]
    file = tmp_path / "onelane.toml"
    file.write_text(toml)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for command in (["check", "--no-import"], ["up", "--inline"]):
        run = CliRunner().invoke(main, [*command, str(file)])
        assert sentence in run.stderr
        assert run.exit_code == 3, command


def test_the_faults_of_all_apps_are_reported_at_once_and_services_print_nowhere(tmp_path: Path) -> None:
    """The kinds of faults of services are those of tests/shard/test_lifecycle_faults.py."""
    broken = OTHER.replace("tests.echo.service:Echo", "tests.broken:Broken") + 'listen = "127.0.0.1:0"\n'
    file = tmp_path / "onelane.toml"
    file.write_text(echo(2, "membership = 'nobody'") + "\n" + broken)
    command = [sys.executable, "-m", "onelane", "check", str(file), "--app-dir", str(ROOT), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    faults = json.loads(run.stdout)["faults"]
    assert run.returncode == 3
    assert [fault.partition("\n")[0] for fault in faults] == [
        "apps.echo.membership: onelane.memberships: 'nobody' is not installed; installed are ['static', 'supervisor']",
        "apps.other.services: tests.broken:Broken: RuntimeError: this service cannot be made",
    ]
    up = run_to_end(tmp_path, broken)
    assert f"onelane: shard other-0 failed to start: {faults[1]}\n" in up.stderr


def test_what_starts_but_surprises_is_a_warning(tmp_path: Path) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    cert = trustme.CA().issue_cert("localhost", not_after=past)
    cert.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    cert.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    file = tmp_path / "onelane.toml"
    peers = 'peers = { shop = "nobody.invalid:443" }'
    tls = f'tls = {{ cert = "{tmp_path}/cert.pem", key = "{tmp_path}/key.pem" }}'
    file.write_text(f"{peers}\n{echo(2, tls)}")
    environment = {"OTEL_TRACES_SAMPLER": "sometimes"}
    run = CliRunner().invoke(main, ["check", "--no-import", str(file)], env=environment)
    assert run.exit_code == 0
    assert run.stdout == f"echo: 2 shards on 127.0.0.1:0, tests.echo.service:Echo\n{LAST}"
    warnings = run.stderr.splitlines()
    assert f"onelane: warning: apps.echo.tls.cert: {tmp_path}/cert.pem: certificate has expired" in warnings
    assert any("OTEL_TRACES_SAMPLER is 'sometimes', expected one of" in warning for warning in warnings)
    assert any("peers.shop: the host 'nobody.invalid' cannot be resolved" in warning for warning in warnings)


def test_what_is_wrong_with_a_cluster_is_told_at_once_and_each_of_it_once(tmp_path: Path) -> None:
    file = tmp_path / "onelane.toml"
    links = 'tls = { ca = "/nowhere/ca.pem", cert = "/nowhere/a.pem", key = "/nowhere/k" }'
    etcd = 'etcd_tls = { ca = "/nowhere/e.pem" }'
    file.write_text("\n".join([echo(1, "pins = { k = 0 }"), CLUSTER + links, etcd]))
    run = CliRunner().invoke(main, ["check", "--no-import", "--json", str(file)])
    places = [fault.partition(": ")[0] for fault in json.loads(run.stdout)["faults"]]
    assert places[:3] == ["cluster.etcd_tls.ca", "apps.echo.pins", "cluster.tls.cert"]
    assert len(places) == len({*places})


def test_the_certificate_of_another_machine_is_told(tmp_path: Path) -> None:
    make_files(tmp_path, "arena", ["a", "b"])
    files = f'{{ ca = "{tmp_path}/ca.pem", cert = "{tmp_path}/b.pem", key = "{tmp_path}/b.key" }}'
    file = tmp_path / "onelane.toml"
    file.write_text(f'{echo(1)}\n{CLUSTER}machine = "a"\ntls = {files}\n')
    run = CliRunner().invoke(main, ["check", "--no-import", str(file)])
    assert f"cluster.tls.cert: {tmp_path}/b.pem: " in run.stderr
    assert "a.arena.onelane.internal" in run.stderr


def test_hosts_of_etcd_that_nobody_knows_are_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "onelane.toml"
    file.write_text(f"{echo(1)}\n{CLUSTER}insecure = true\n".replace("10.0.0.5", "etcd.invalid"))
    run = CliRunner().invoke(main, ["check", "--no-import", str(file)])
    assert "onelane: warning: cluster.etcd: the host 'etcd.invalid' cannot be resolved here" in run.stderr


def test_no_import_runs_no_code_of_the_services(tmp_path: Path) -> None:
    file = tmp_path / "onelane.toml"
    file.write_text(echo(2).replace("tests.echo.service:Echo", "tests.nowhere:Echo"))
    assert CliRunner().invoke(main, ["check", "--no-import", str(file)]).exit_code == 0


@pytest.mark.parametrize(
    ("service", "answer_s", "sentence"),
    [
        ("tests.broken:Hanging", 0.2, "apps.echo: its services have not been made in 0.2 s"),
        (
            "tests.faulty_services:Dies",
            60.0,
            "apps.echo: its process has ended while its services were made: exit code 7",
        ),
    ],
)
async def test_a_service_that_hangs_or_ends_its_process_is_a_fault_and_ends_no_check(
    service: str, answer_s: float, sentence: str
) -> None:
    file = config.parse(tomllib.loads(echo(2).replace("tests.echo.service:Echo", service)))
    options = TelemetryOptions()
    assert await trial.faults_at_start(file, app_dir=str(ROOT), telemetry=options, answer_s=answer_s) == [sentence]
