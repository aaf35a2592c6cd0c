"""What clients are to know of an app, by its entry in the store."""

from onelane.cluster.coordination import Snapshot, StoredEntry
from onelane.cluster.machines import ClusterKeys, ClusterView
from onelane.cluster.placements import AppEntry, entry_bytes
from onelane.cluster.xds.routed_app import RoutedApp, routed_app, routed_apps

from tests.cluster.xds.apps import placement

KEYS = ClusterKeys("arena")


def view(**entries: bytes) -> ClusterView:
    stored = {KEYS.app(name): StoredEntry(KEYS.app(name), value, 1, 1, 0) for name, value in entries.items()}
    return ClusterView(KEYS, Snapshot(1, stored))


def test_between_changes_all_shards_are_there() -> None:
    assert routed_app(AppEntry(placement(1, 2))) == RoutedApp(placement(1, 2))


def test_shards_that_leave_drain_from_the_begin_of_the_change() -> None:
    entry = AppEntry(placement(1, 2, 3)).begun(placement(1, 2, epoch=2))
    assert routed_app(entry) == RoutedApp(placement(1, 2, 3), frozenset({"lobby-3"}))


def test_shards_that_join_are_there_once_the_change_is_over() -> None:
    entry = AppEntry(placement(1, 2)).begun(placement(1, 2, 3, epoch=2))
    assert routed_app(entry) == RoutedApp(placement(1, 2))
    assert routed_app(entry.ended(placement(1, 2, 3, epoch=2))) == RoutedApp(placement(1, 2, 3, epoch=2))


def test_a_shard_that_gets_another_address_leaves_and_joins() -> None:
    before, after = placement(1, 2), placement(1, 2, epoch=2)
    moved = after.members[1].__class__("lobby-2", "127.0.0.1:9", "", life=9)
    entry = AppEntry(before).begun(after.__class__(2, (after.members[0], moved), 16))
    assert routed_app(entry).draining == {"lobby-2"}


def test_never_all_shards_drain() -> None:
    """A client for which they do has nowhere to send a call."""
    entry = AppEntry(placement(1)).begun(placement(2, epoch=2))
    assert routed_app(entry).draining == frozenset()


def test_clients_send_calls_to_the_ring_of_the_shards_that_stay() -> None:
    app = RoutedApp(placement(1, 2, 3, pins={"ada": "lobby-3", "bob": "lobby-1"}), frozenset({"lobby-3"}))
    assert app.owners == placement(1, 2, pins={"bob": "lobby-1"})
    assert app.owners.owner_of("ada") == placement(1, 2).owner_of("ada")


def test_an_entry_that_cannot_be_read_leaves_its_app_as_it_was() -> None:
    last = {"lobby": RoutedApp(placement(1)), "gone": RoutedApp(placement(3))}
    apps, faults = routed_apps(view(lobby=b"{", shop=entry_bytes(AppEntry(placement(2))), new=b"[]"), last)
    assert apps == {"lobby": RoutedApp(placement(1)), "shop": RoutedApp(placement(2))}
    assert faults.keys() == {"lobby", "new"}
    assert "is no placement" in faults["lobby"]
