"""Pods of deploy/kubernetes/cluster share their keys: these move before TERM, with what is in memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from onelane.core.machine_links import certificate_name

from tests.etcd import EtcdServer, etcd
from tests.kubernetes.manifests import PodTemplate, documents, pod_template
from tests.kubernetes.stateful_set import stateful_set
from tests.kubernetes.test_stateful_set import ECHO, calling
from tests.machines import Certificates
from tests.running_app import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    with etcd("--election-timeout=4000") as server:
        yield server


@pytest.fixture
def template(server: EtcdServer, tmp_path: Path) -> PodTemplate:
    """As it is, but for the app and the etcd; with the Secret of the links."""
    template = pod_template(documents("cluster"))
    (cluster,) = [row["value"] for row in template.container["env"] if row["name"] == "ONELANE_CLUSTER__NAME"]
    certificates = Certificates(tmp_path / "links")
    for index in range(2):
        certificates.issue(f"onelane-{index}", certificate_name(f"onelane-{index}", cluster))
    files = {path.name: path.read_text() for path in certificates.folder.iterdir()}
    at_etcd = template.without("ONELANE_CLUSTER__ETCD").altered(**ECHO, ONELANE_CLUSTER__ETCD=json.dumps([server.url]))
    return at_etcd.with_files("links", files)


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
