"""The most specific pattern decides who may call a method; what no pattern names is closed."""

import pytest
from onelane.core.permissions import EVERYBODY, NOBODY, Permissions, pattern_for

TABLE = {
    "*": ["admin"],
    "shop.v1.*": ["staff"],
    "shop.v1.Shop/*": ["clerk"],
    "shop.v1.Shop/Read*": ["reader"],
    "shop.v1.Shop/ReadAll": [],
}


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("shop.v1.Shop/ReadAll", set()),
        ("shop.v1.Shop/ReadAllOfIt", {"reader"}),
        ("shop.v1.Shop/Read", {"reader"}),
        ("shop.v1.Shop/read", {"clerk"}),
        ("shop.v1.Shop/Write", {"clerk"}),
        ("shop.v1.Shopping/Read", {"staff"}),
        ("shop.v10.Shop/Read", {"admin"}),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", {"admin"}),
        ("onelane.v1.Topology/Status", {"admin"}),
    ],
)
def test_the_most_specific_pattern_decides_alone(name: str, roles: set[str]) -> None:
    assert Permissions(TABLE).roles_for(name) == roles


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_file_does_not_matter(order: int) -> None:
    patterns = list(TABLE)[::order]
    assert pattern_for("shop.v1.Shop/Read", patterns) == "shop.v1.Shop/Read*"
    assert pattern_for("a.B/C", ["a.B/C*", "a.B/C"][::order]) == "a.B/C"


def test_a_method_that_no_pattern_names_is_closed() -> None:
    permissions = Permissions({"shop.v1.Shop/Read": ["public"]})
    assert permissions.roles_for("shop.v1.Shop/Write") == NOBODY
    assert permissions.roles_for("onelane.v1.Topology/Status") == NOBODY
    assert permissions.roles_for("grpc.reflection.v1.ServerReflection/ServerReflectionInfo") == NOBODY


@pytest.mark.parametrize("name", ["grpc.health.v1.Health/Check", "onelane.v1.Topology/Watch"])
def test_health_and_the_ring_are_open_until_a_pattern_of_their_own_closes_them(name: str) -> None:
    assert Permissions({"*": ["admin"]}).roles_for(name) == EVERYBODY
    assert Permissions({"*": ["admin"]}).is_open_by_default(name)
    closing = Permissions({name.partition("/")[0] + "/*": ["probe"]})
    assert closing.roles_for(name) == {"probe"}
    assert not closing.is_open_by_default(name)


def test_methods_for_siblings_are_closed_to_clients_whatever_the_file_says() -> None:
    table = {"*": ["public"], "onelane.v1.Siblings/*": ["public"]}
    assert Permissions(table).roles_for("onelane.v1.Siblings/Publish") == NOBODY
