"""Plugins are found by their entry points."""

from importlib.metadata import EntryPoint

import pytest
from onelane.cluster.membership.static import StaticMembership
from onelane.errors import BadService, ServiceRaised
from onelane.plugins import load_plugin, make_plugin


def test_a_plugin_is_the_class_that_its_entry_point_names() -> None:
    assert load_plugin("onelane.memberships", "static") is StaticMembership


def test_a_plugin_of_onelane_is_found_whatever_is_installed_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    other = EntryPoint("static", "tests.broken:Broken", "onelane.memberships")
    monkeypatch.setattr("onelane.plugins.entry_points", lambda group: [other])
    assert load_plugin("onelane.memberships", "static") is StaticMembership


def test_a_plugin_that_is_not_installed_is_reported_with_the_installed_ones() -> None:
    with pytest.raises(BadService, match=r"'nope' is not installed; installed are \['grpcio', 'memory', 'native'\]"):
        load_plugin("onelane.listeners", "nope")


def test_a_group_without_plugins_has_none() -> None:
    with pytest.raises(BadService, match=r"onelane.nothing: 'x' is not installed; installed are \[\]"):
        load_plugin("onelane.nothing", "x")


def test_what_the_code_of_a_plugin_raises_is_said_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("faulty", "tests.faulty_module:Sink", "onelane.sinks"),
        EntryPoint("refusing", "tests.broken:Broken", "onelane.sinks"),
    ]
    monkeypatch.setattr("onelane.plugins.entry_points", lambda group: points)
    with pytest.raises(ServiceRaised, match=r"onelane\.sinks: 'faulty': NameError: name 'DATABASE' is not defined"):
        make_plugin("onelane.sinks", "faulty")
    with pytest.raises(ServiceRaised, match=r"onelane\.sinks: 'refusing': RuntimeError: this service cannot be made"):
        make_plugin("onelane.sinks", "refusing", None)
