"""Pods of deploy/kubernetes/cluster share their keys: these move before TERM, with what is in memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from onelane.core.machine_links import certificate_name

from tests.etcd import EtcdServer, etcd
from tests.kubernetes.manifests import PodTemplate, documents, pod_template
from tests.kubernetes.stateful_set import stateful_set
from tests.kubernetes.test_stateful_set import APP, ECHO, calling
from tests.machines import Certificates
from tests.running_app import eventually

pytestmark = pytest.mark.slow


PASSWORD = "swordfish"
TIMES = 8
"""As much longer as in quiet may take what has a bound in the manifest."""
STARVED = {"ONELANE_CLUSTER__LEASE_S": "60", f"{APP}DRAIN_S": str(10 * TIMES)}
"""A supervisor that gets no processor for 4 s has no lease of 5 s any more: its calls would fail, rightly."""
OF_THE_USER = "ONELANE_CLUSTER__ETCD_USER", "ONELANE_CLUSTER__ETCD_PASSWORD_FILE"


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    with etcd("--election-timeout=4000", "--bcrypt-cost=4") as server:
        yield server


def guard(server: EtcdServer, user: str) -> None:
    """Have etcd serve this user, as docs/how-to/many-machines.md has it, and root."""
    server.ask("auth/user/add", '{"name": "root", "password": "r"}')
    server.ask("auth/user/grant", '{"user": "root", "role": "root"}')
    server.ask("auth/user/add", json.dumps({"name": user, "password": PASSWORD}))
    server.ask("auth/role/add", '{"name": "cluster"}')
    # /onelane/counter/ up to /onelane/counter0
    keys = {"key": "L29uZWxhbmUvY291bnRlci8=", "range_end": "L29uZWxhbmUvY291bnRlcjA="}
    server.ask("auth/role/grant", json.dumps({"name": "cluster", "perm": {"permType": 2} | keys}))
    server.ask("auth/user/grant", json.dumps({"user": user, "role": "cluster"}))
    server.ask("auth/enable", "{}")


@pytest.fixture
def template(server: EtcdServer, tmp_path: Path) -> PodTemplate:
    """As it is, but for the app and the etcd; with the Secrets of the links and of etcd's user."""
    template = pod_template(documents("cluster"))
    variables = {row["name"]: row["value"] for row in template.container["env"] if "value" in row}
    cluster, user = variables["ONELANE_CLUSTER__NAME"], {name: variables[name] for name in OF_THE_USER}
    assert cluster == "counter"
    guard(server, user[OF_THE_USER[0]])
    certificates = Certificates(tmp_path / "links")
    for index in range(2):
        certificates.issue(f"onelane-{index}", certificate_name(f"onelane-{index}", cluster))
    files = {path.name: path.read_text() for path in certificates.folder.iterdir()}
    at_etcd = template.without("ONELANE_CLUSTER__ETCD").altered(
        **ECHO, ONELANE_CLUSTER__ETCD=json.dumps([server.url]), **user, **STARVED
    )
    return at_etcd.unhurried(TIMES).with_files("links", files).with_files("etcd", {"password": PASSWORD})


async def test_keys_move_before_term_and_no_call_fails_and_memory_is_kept(template: PodTemplate) -> None:
    async with stateful_set("onelane", template, 2) as owner:
        async with calling(owner) as clients:
            await eventually(lambda: min(map(len, clients.seen.values()), default=0) >= 3)
            await owner.roll(template.altered(A_NEW="RELEASE"))
            await owner.scale(1)
            before = clients.served
            await eventually(lambda: clients.served >= before + 10)
        assert clients.failed == []
        ends = [pod.events[pod.events.index("delete") :] for pod in owner.past]
        # Not ready once the keys are gone, as far as a probe has come by.
        assert [[event for event in events if event != "not ready"] for events in ends] == [
            ["delete", "preStop 0", "TERM", "end 0"]
        ] * 3, owner.past[0].log
        assert all(seen == sorted(set(seen)) for seen in clients.seen.values()), clients.seen
