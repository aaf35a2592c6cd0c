"""A connection stays with its shard where the owner of its key is on another machine: it cannot be handed there."""

import pytest
from onelane.core.keys import FieldKey
from onelane.core.placement import Member, Placement
from onelane.lane.routing import Router
from onelane.server.methods import Method


@pytest.mark.parametrize(("socket", "home"), [("/run/b.sock", "/run/b.sock"), ("m1@10.0.0.2:41000", "")])
def test_a_connection_is_handed_to_an_owner_of_this_machine_alone(socket: str, home: str) -> None:
    owner = Member("b", "127.0.0.1:1002", socket, life=2)
    router = Router("a", Placement(1, (owner,)), life=1)
    method = Method("/t.T/Echo", lambda *_: None, True, False, False, None, None, FieldKey(("key",), str))
    assert router.home_of(method, (("onelane-key", "k"),), None) == home
