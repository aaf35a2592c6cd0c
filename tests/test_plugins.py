"""Plugins are found by their entry points."""

import pytest
from onelane.cluster.membership.static import StaticMembership
from onelane.errors import BadService
from onelane.plugins import load_plugin


def test_a_plugin_is_the_class_that_its_entry_point_names() -> None:
    assert load_plugin("onelane.memberships", "static") is StaticMembership


def test_a_plugin_that_is_not_installed_is_reported_with_the_installed_ones() -> None:
    with pytest.raises(BadService, match=r"'nope' is not installed; installed are \['grpcio', 'memory', 'native'\]"):
        load_plugin("onelane.listeners", "nope")


def test_a_group_without_plugins_has_none() -> None:
    with pytest.raises(BadService, match=r"onelane.nothing: 'x' is not installed; installed are \[\]"):
        load_plugin("onelane.nothing", "x")
