"""A shard has links to other machines where its setup says so; without them nothing of them is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from onelane.cluster.control import links_to_proto
from onelane.core.machine_links import LinkFiles, MachineLinks
from onelane.errors import BadConfig

from tests.machines import CLUSTER, Certificates
from tests.shard.parts import setup, wired


def test_a_shard_of_a_cluster_has_links(tmp_path: Path) -> None:
    described, links = setup(), Certificates(tmp_path).links("a")
    described.links.CopyFrom(links_to_proto(links))
    parts, _ = wired(described)
    assert parts.links is not None
    assert parts.links.links == links
    assert parts.links.server is not None


def test_links_are_insecure_only_where_that_is_said() -> None:
    described = setup()
    described.links.CopyFrom(links_to_proto(MachineLinks(CLUSTER, "a", None)))
    parts, _ = wired(described)
    assert parts.links is not None
    assert (parts.links.links.files, parts.links.server) == (None, None)
    described.links.insecure = False
    with pytest.raises(BadConfig, match=r"cluster\.tls"):
        wired(described)


def test_files_that_cannot_be_used_end_the_start() -> None:
    described = setup()
    files = LinkFiles("/nowhere/ca.pem", "/nowhere/a.pem", "/nowhere/a.key")
    described.links.CopyFrom(links_to_proto(MachineLinks(CLUSTER, "a", files)))
    with pytest.raises(BadConfig, match=r"(?s)cluster\.tls: .*cert: /nowhere/a\.pem cannot be read.*  ca: /nowhere/ca"):
        wired(described)


def test_a_listener_that_has_no_links_is_refused() -> None:
    """It would serve whoever connects as a sibling."""
    described = setup(listener="grpcio")
    described.links.CopyFrom(links_to_proto(MachineLinks(CLUSTER, "a", None)))
    with pytest.raises(
        BadConfig, match=r'(?s)apps\.echo: .*listener: expected "native" with \[cluster\], not GrpcioListener'
    ):
        wired(described)


def test_without_a_cluster_nothing_of_links_is_imported() -> None:
    probe = (
        "import sys; from tests.shard.parts import wired; import onelane.shard.process; wired(); "
        "print([name for name in sys.modules if 'machine_link' in name])"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
