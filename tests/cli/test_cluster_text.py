"""The machines of a cluster in `onelane status` and `onelane top`: in a terminal, in a pipe, as JSON."""

import io
from typing import Any

import pytest
from onelane.cli import cluster_text, status, top
from rich.console import Console


def machine(name: str, state: str = "joined", **details: Any) -> dict[str, Any]:
    host = f"10.0.0.{ord(name[0]) - 86}"
    lives = [{"name": f"{name}/lobby-0", "life": 41, "address": f"{host}:50151", "placed": True}]
    row = {
        "name": name,
        "state": state,
        "since_s": 312.0,
        "coordinates": name == "b",
        "advertise": host,
        "admin": None,
        "release": "0.9.0",
        "lease": "32694a1",
        "lease_s": 5.0,
        "lease_left_s": None,
        "apps": {"lobby": lives},
        "fault": "",
    }
    return row | details


def cluster(*machines: dict[str, Any], fault: str = "", **app: Any) -> dict[str, Any]:
    row = {"epoch": 7, "shards": 3, "unserved": [], "change": None, "pins": 0, "fault": ""}
    return {
        "name": "arena",
        "machine": "a",
        "lease": {"left_s": 3.2, "renewed_s_ago": 0.8, "fault": fault},
        "revision": 41,
        "coordinator": "b",
        "machines": list(machines) or [machine("a", lease_left_s=3.2), machine("b"), machine("c", "missing")],
        "apps": {"lobby": row | app},
    }


CHANGE = {
    "what": "d/lobby-0 joins",
    "from": 7,
    "to": 8,
    "since_s": 2.04,
    "waits_for": [{"name": "a/lobby-0", "machine": "a"}, {"name": "odd", "machine": "c"}],
    "dead": ["d/lobby-0"],
    "stand_ins": {"d/lobby-0": "b"},
}


RING = {"loadBalancingConfig": [{"ring_hash_experimental": {"minRingSize": 512}}]}
APP = {"listen": "127.0.0.1:50051", "epoch": 7, "shards": [], "service_config": RING}


def shown(rows: dict[str, Any], *, width: int = 200, is_terminal: bool = True) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=is_terminal)
    status.show(rows, console)
    return console.export_text()


def test_a_status_lists_all_machines_and_the_shards_of_the_others() -> None:
    text = shown({"apps": {}, "cluster": cluster()})
    assert "cluster arena  told by a  b coordinates" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["a", "joined", "5", "min", "3.2", "s", "lobby=1", "10.0.0.11", "0.9.0"] in lines
    assert ["b", "joined", "5", "min", "yes", "lobby=1", "10.0.0.12", "0.9.0"] in lines
    assert ["lobby", "b/lobby-0", "b", "yes", "10.0.0.12:50151", "41"] in lines
    assert not [line for line in lines if "a/lobby-0" in line]


def test_in_a_pipe_every_row_has_as_many_words_as_its_header() -> None:
    rows = cluster(machine("a", "cut off", lease_left_s=0.0), machine("b", since_s=None))
    text = shown({"apps": {"lobby": APP}, "cluster": rows}, is_terminal=False)
    lines = [line.split() for line in text.splitlines()]
    (header,) = [line for line in lines if line[:2] == ["machine", "state"]]
    first, second = lines[lines.index(header) + 1 : lines.index(header) + 3]
    assert (first[:2], second[:3]) == (["a", "cut_off"], ["b", "joined", "-"])
    assert len(header) == len(first) == len(second) == len(cluster_text.MACHINE_COLUMNS)


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        (cluster(), []),
        (
            cluster(machine("a", "cut off"), fault="etcd does not answer"),
            [
                "a is cut off: etcd has answered last 0.8 s ago (etcd does not answer); it serves no key until its "
                "lease is renewed, and the rest is as it knew last"
            ],
        ),
        (
            cluster(machine("a", "joining"), fault="refused"),
            ["a has no lease (refused): it serves no key, and the rest is as it knew last"],
        ),
        (
            cluster(machine("a"), fault="timeout"),
            ["the lease of a was not renewed (timeout): in 3.2 s it serves no key"],
        ),
        (
            cluster(machine("a"), machine("b", "unreadable", fault="it runs onelane 7.0")),
            ["b: it runs onelane 7.0"],
        ),
        (
            cluster(unserved=[{"name": "c/lobby-0", "machine": "c"}]),
            ["lobby: the keys of c/lobby-0 wait for its next process, or for another owner"],
        ),
        (
            cluster(fault="", change=CHANGE),
            [
                "lobby: epoch 7 → 8: d/lobby-0 joins; waits for a/lobby-0, odd on c; d/lobby-0 died meanwhile; "
                "b takes what is owed to d/lobby-0; 2.0 s"
            ],
        ),
    ],
)
def test_what_is_not_as_it_is_to_be_is_said(rows: dict[str, Any], warning: list[str]) -> None:
    assert list(cluster_text.warnings(rows)) == warning
    assert all(line in shown({"apps": {}, "cluster": rows}) for line in warning)


def test_a_placement_that_stays_as_it_is_says_why() -> None:
    rows = cluster()
    rows["apps"]["lobby"]["fault"] = "two lives are called lobby-0"
    assert list(cluster_text.warnings(rows)) == ["lobby: its placement stays as it is: two lives are called lobby-0"]


def test_of_many_shards_the_first_ones_are_named() -> None:
    places = [{"name": f"m{number}/lobby-0", "machine": f"m{number}"} for number in range(100)]
    (warning,) = cluster_text.warnings(cluster(unserved=places))
    assert "m7/lobby-0 and 92 more wait" in warning


def test_text_of_another_machine_is_no_markup() -> None:
    rows = cluster(machine("a"), machine("b", "unreadable", fault="[/red] it is [bold]newer"))
    assert "b: [/red] it is [bold]newer" in shown({"apps": {}, "cluster": rows})


def test_the_json_has_the_cluster_and_nothing_of_it_without_one() -> None:
    rows = cluster()
    assert status.documented({"apps": {}, "supervisor": {}, "cluster": rows}) == {"apps": {}, "cluster": rows}
    assert status.documented({"apps": {}, "supervisor": {}}) == {"apps": {}}


SNAPSHOT: dict[str, Any] = {"apps": [], "losses": [], "refusals": []}


def test_top_has_one_block_of_machines_that_fits_its_terminal() -> None:
    for width in (60, 100, 200):
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(top.screen(SNAPSHOT | {"cluster": cluster(change=CHANGE)}, {}, width))
        lines = console.export_text().splitlines()
        assert lines[0] == "cluster arena  told by a  b coordinates"
        assert any(line.split()[:2] == ["c", "missing"] for line in lines)
        assert "epoch 7 → 8" in lines[1]
        assert max(map(len, lines)) <= width
    assert "not shown" not in console.export_text()


def test_without_a_cluster_top_says_nothing_of_machines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=100)
    top.show_columns(SNAPSHOT, console)
    console.print(top.screen(SNAPSHOT, {}, 100))
    assert capsys.readouterr().out.strip() == ""
    top.show_columns(SNAPSHOT | {"cluster": cluster()}, console)
    assert capsys.readouterr().out.split()[:2] == ["machine", "state"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.9, "9.9 s"), (61, "61 s"), (312, "5 min"), (9000, "2 h")]
)
def test_times_are_as_rough_as_people_say_them(seconds: float, text: str) -> None:
    assert cluster_text.ago(seconds) == text
