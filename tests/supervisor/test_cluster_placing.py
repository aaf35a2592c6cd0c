"""An app in a cluster, without a process: what the lives of its records are called, and where links listen."""

import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from onelane.core.machine_links import MachineLinks, link_address_of
from onelane.core.placement import Member, Placement
from onelane.supervisor.cluster_placing import ClusterPlacing
from onelane.supervisor.supervised_shard import SupervisedShard

from tests.ports import reserved


def placing_of(
    *shards: SupervisedShard, advertise: str = "127.0.0.1", link_ports: Sequence[int] = (0,)
) -> ClusterPlacing:
    settings = SimpleNamespace(drain_s=0)
    app: Any = SimpleNamespace(name="lobby", settings=settings, placement=Placement(1, ()), shards=[*shards], beside=[])
    links = MachineLinks("arena", "a", None)
    seen = {"announce": lambda: None, "view": None}
    cluster: Any = SimpleNamespace(name="a", advertise=advertise, link_ports=link_ports, links=links, **seen)
    return ClusterPlacing(app, cluster)


def shard_of(index: int, life: int = 0) -> SupervisedShard:
    return SupervisedShard(
        Member(f"a/lobby-{index}", f"127.0.0.1:{index + 1}", f"/run/lobby-{index}.sock", life), index
    )


async def test_a_process_that_ends_before_it_has_a_number_ends_no_other_life() -> None:
    """A number of this machine alone may be that of another life by the store."""
    runs, joins = shard_of(0), shard_of(1, life=5)
    placing = placing_of(runs, joins)
    running: Any = None
    for shard in (runs, joins):
        placing.more_sockets(shard)
        shard.begin(running, placing.number(shard))
    runs.renumber(5)
    line: Any = None
    placing._placed.launched(placing._member_of(runs), line, follows=True)
    placing.died(joins)
    assert [member.life for member in placing.lives] == [5]
    for shard in (runs, joins):
        shard.close_siblings()


@pytest.mark.parametrize("advertised", ["127.0.0.1", "203.0.113.7", "::1", "machine-a.example"])
async def test_links_listen_where_the_others_are_told_or_everywhere_where_this_machine_does_not_have_that_address(
    advertised: str,
) -> None:
    shard = shard_of(0)
    placing = placing_of(shard, advertise=advertised)
    (link,) = placing.more_sockets(shard)
    host, port = link.getsockname()[:2]
    assert host in {"127.0.0.1": {"127.0.0.1"}, "::1": {"::1"}}.get(advertised, {"0.0.0.0", "::"})
    address = link_address_of(shard.link_address)
    assert (address.machine, address.host, address.port) == ("a", advertised, port)
    assert placing.more_sockets(shard) == (link,), "the next life has the same"
    with socket.create_connection((host if host in ("127.0.0.1", "::1") else "127.0.0.1", port)):
        pass
    shard.close_siblings()
    assert link.fileno() == -1


async def test_links_listen_on_ports_of_their_range_and_say_where_all_are_taken() -> None:
    """A stranger has the first one; the next life, and another machine on this host, have others."""
    with socket.create_server(("127.0.0.1", 0)) as stranger, reserved() as free:
        taken = stranger.getsockname()[1]
        first, second = shard_of(0), shard_of(1)
        placing = placing_of(first, second, link_ports=(taken, free))
        (link,) = placing.more_sockets(first)
        assert link.getsockname()[1] == free
        with pytest.raises(OSError, match=rf"no port of cluster.link_ports, {taken}-{free}, is free at 127.0.0.1"):
            placing.more_sockets(second)
        first.close_siblings()
        assert placing.more_sockets(second)[0].getsockname()[1] == free
        second.close_siblings()
