"""The arena is a system: three apps that call each other, seen whole in Jaeger, and played by make up."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest

from services.arena.v1 import leaderboard_pb2, leaderboard_pb2_grpc, lobby_pb2_grpc
from services.arena.v1.lobby_pb2 import AnnounceRequest, FinishRequest, JoinRequest, SayRequest, WatchRequest
from tests.bounds import BOUND_S
from tests.jaeger import jaeger
from tests.running_app import ROOT, RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow
ARENA = re.sub(
    r'listen = "127.0.0.1:\d+"', 'listen = "127.0.0.1:0"', (ROOT / "services/arena/onelane.toml").read_text()
)
ONE_SHARD_EACH = ARENA.replace("shards = 2", "shards = 1")
"""Half the processes, where a test is not about the way of a call."""
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("arena"), ARENA) as cluster:
        yield cluster


async def test_players_of_a_room_meet_in_one_lane(arena: RunningApp) -> None:
    async with onelane.connect(arena.listen["lobby"]) as channel:
        lobby: Any = lobby_pb2_grpc.LobbyStub(channel)
        watch = lobby.Watch(WatchRequest(room_id="r"))
        await watch.initial_metadata()
        await lobby.Join(JoinRequest(room_id="r", player="ann"))
        joined = await lobby.Join(JoinRequest(room_id="r", player="bob"))
        reply = await lobby.Say(SayRequest(room_id="r", player="ann", text="hi"))
        finished = await lobby.Finish(FinishRequest(room_id="r", winner="bob", board="b"))
        events = [event.WhichOneof("kind") async for event in watch]
    assert (list(joined.players), joined.rating, reply.heard_by) == (["ann", "bob"], 1200, 1)
    assert (finished.ratings["bob"], finished.ratings["ann"], finished.place) == (1216, 1184, 1)
    assert events == ["joined", "joined", "said", "finished"]


async def test_who_is_not_in_the_room_is_told(arena: RunningApp) -> None:
    async with grpc.aio.insecure_channel(arena.listen["lobby"]) as channel:
        lobby: Any = lobby_pb2_grpc.LobbyStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="eve is not in nowhere") as caught:
            await lobby.Say(SayRequest(room_id="nowhere", player="eve"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_announcement_reaches_the_watchers_of_every_room(arena: RunningApp) -> None:
    async with onelane.connect(arena.listen["lobby"]) as channel:
        lobby: Any = lobby_pb2_grpc.LobbyStub(channel)
        rooms = [f"announced-{number}" for number in range(8)]
        watches = [lobby.Watch(WatchRequest(room_id=room)) for room in rooms]
        for watch in watches:
            await watch.initial_metadata()
        await lobby.Announce(AnnounceRequest(text="the arena closes at ten"))
        for watch in watches:
            assert (await watch.read()).announced == "the arena closes at ten"
            watch.cancel()


async def test_the_leaderboard_orders_players(arena: RunningApp) -> None:
    async with grpc.aio.insecure_channel(arena.listen["leaderboard"]) as channel:
        board: Any = leaderboard_pb2_grpc.LeaderboardStub(channel)
        for player, rating in (("a", 1300), ("b", 1500), ("c", 1400)):
            await board.Report(leaderboard_pb2.ReportRequest(board="x", player=player, rating=rating))
        top = await board.Top(leaderboard_pb2.TopRequest(board="x", limit=2))
    assert [(line.player, line.rating) for line in top.lines] == [("b", 1500), ("c", 1400)]


async def test_ratings_survive_a_restart(tmp_path: Path) -> None:
    for rating in (1200, 1216):
        with running(tmp_path, ONE_SHARD_EACH) as cluster:
            async with grpc.aio.insecure_channel(cluster.listen["lobby"]) as channel:
                lobby: Any = lobby_pb2_grpc.LobbyStub(channel)
                joined = await lobby.Join(JoinRequest(room_id="r", player="ann"), timeout=BOUND_S)
                await lobby.Join(JoinRequest(room_id="r", player="bob"), timeout=BOUND_S)
                await lobby.Finish(FinishRequest(room_id="r", winner="ann"), timeout=BOUND_S)
            assert joined.rating == rating
            assert await asyncio.to_thread(cluster.stop) == 0


async def test_one_finish_is_one_trace_with_the_whole_tree_in_jaeger(tmp_path: Path) -> None:
    with jaeger() as traces:
        await eventually(traces.is_ready)
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": traces.otlp, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with running(tmp_path, ARENA, **environment) as cluster:
            hop = await finish_away_from_home(cluster)
            # All that was recorded leaves at the end, so the trace is whole.
            assert await asyncio.to_thread(cluster.stop) == 0
        trace = traces.trace(TRACE)
    assert hop == "forwarded"
    assert trace is not None
    rated = [
        [
            "lobby",
            "client",
            "arena.v1.Profile/AddResult",
            [below("profile", "Profile/AddResult", [*commit(), *waited()])],
        ]
    ] * 2
    reported = [
        ["lobby", "client", "arena.v1.Leaderboard/Report", [below("leaderboard", "Leaderboard/Report", offload())]]
    ]
    served = ["lobby", "server", "arena.v1.Lobby/Finish", sorted([*rated, *reported])]
    assert without_forwards(trace.tree(CALLER)) == [served]
    check_attributes(trace)


async def finish_away_from_home(cluster: RunningApp) -> str:
    """Finish a room through a shard that does not own it, inside the trace; how it went."""
    placement = cluster.placement("lobby")
    here, other = placement.members
    room = next(key for key in map("room-{}".format, range(99)) if placement.owner_of(key) == other)
    async with grpc.aio.insecure_channel(here.address) as channel:
        lobby: Any = lobby_pb2_grpc.LobbyStub(channel)
        for player in ("ann", "bob"):
            await lobby.Join(JoinRequest(room_id=room, player=player))
        metadata = (("traceparent", f"00-{TRACE}-{CALLER}-01"), ("onelane-debug", "1"))
        call = lobby.Finish(FinishRequest(room_id=room, winner="ann"), metadata=metadata)
        await call
        return str(dict(await call.trailing_metadata())["onelane-hop"])


def below(app: str, method: str, children: list[Any]) -> list[Any]:
    return [app, "server", f"arena.v1.{method}", children]


def commit() -> list[Any]:
    return [["profile", "internal", "commit", []]]


def waited() -> list[Any]:
    """The turn that a call with an id is given once it is known to be no repeat."""
    return [["profile", "internal", "turn", []]]


def offload() -> list[Any]:
    return [["leaderboard", "internal", "offload boards", []]]


def without_forwards(tree: list[Any]) -> list[Any]:
    """The tree with each hop (a client span of the app that serves it) replaced by what lies below it."""
    spans: list[Any] = []
    for service, kind, name, children in tree:
        inner = without_forwards(children)
        is_hop = kind == "client" and len(children) == 1 and children[0][:3] == [service, "server", name]
        spans += inner if is_hop else [[service, kind, name, inner]]
    return sorted(spans)


def check_attributes(trace: Any) -> None:
    roots = trace.children(CALLER)
    assert [trace.tags(root)["onelane.hop"] for root in roots] == ["forwarded"]
    for span in trace.spans:
        tags = trace.tags(span)
        assert tags["onelane.shard"].startswith(trace.service(span))
        if span["operationName"].startswith("arena."):
            assert tags["rpc.system.name"] == "grpc"
            assert tags["rpc.method"] == span["operationName"]
            assert tags["rpc.response.status_code"] == "OK"
            assert "error" not in tags
    # The only parent that Jaeger has not seen is the test's own.
    assert all(CALLER in warning for warning in trace.warnings)


@contextmanager
def playing(folder: Path, *arguments: str, toml: str = ARENA) -> Iterator["subprocess.Popen[str]"]:
    """`make up` on free ports, ended by its signal if it has not ended; what it writes to stderr goes to `log`."""
    (folder / "onelane.toml").write_text(f'admin = "127.0.0.1:0"\n{toml}')
    command = [sys.executable, "-m", "services.arena.drive", "--file", str(folder / "onelane.toml"), *arguments]
    environment = os.environ | {
        "ARENA_DB": str(folder / "arena.db"),
        "PYTHONPATH": f"{ROOT}:{ROOT}/runtime",
        MARK: str(folder),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


MARK = "ONELANE_TEST_FOLDER"


def processes_of(folder: Path) -> set[str]:
    """The pids of what `playing` has started in this folder, and of what that has started."""
    pids = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                pids.add(process.name)
        except OSError:
            continue
    return pids


async def until_line(process: "subprocess.Popen[str]", text: str) -> list[str]:
    """The lines that it writes, to the first with this text in it."""
    assert process.stdout is not None
    lines = [""]
    while text not in lines[-1]:
        assert process.poll() is None, "".join(lines) + process.stdout.read()
        lines.append(await asyncio.to_thread(process.stdout.readline))
    return lines[1:]


async def output_of(process: "subprocess.Popen[str]") -> str:
    """What it writes to its end."""
    return (await asyncio.to_thread(process.communicate, timeout=BOUND_S))[0]


async def test_make_up_for_a_while_ends_by_itself_and_its_totals_agree(tmp_path: Path) -> None:
    with playing(tmp_path, "--for", "1s") as process:
        output = await output_of(process)
    assert process.returncode == 0, output
    assert "totals agree" in output
    assert "error:" not in output
    assert int(re.findall(r"Lobby/Join .*?([\d,]+) ", output)[0].replace(",", "")) > 0
    await eventually(lambda: not processes_of(tmp_path))


async def test_make_up_that_is_shaken_loses_nothing_and_ctrl_c_ends_it_with_its_summary(tmp_path: Path) -> None:
    # Of this seed the first changes are a kill of the profile, and a restart of the lobby.
    with playing(tmp_path, "--shake", "--seed", "49") as process:
        changes = await until_line(process, "restart lobby\n")
        process.send_signal(signal.SIGINT)
        output = await output_of(process)
    assert changes[4] == "shaking with seed 49\n"
    assert re.fullmatch(r"kill profile-\d\n", changes[5])
    assert process.returncode == 0, output
    assert "summary of" in output
    assert "\nnothing lost\n" in output
    assert re.search(r"^watchers saw [\d,]+ events; reopened: .*moved x \d+", output, re.MULTILINE), output
    await eventually(lambda: not processes_of(tmp_path))


async def test_make_up_that_is_shaken_says_what_was_lost(tmp_path: Path) -> None:
    forgetful = ARENA.replace("services.arena.lobby:Lobby", "tests.cluster.forgetful:ForgetfulLobby")
    # Of this seed the first change is a restart of the lobby, without a kill.
    with playing(tmp_path, "--shake", "--seed", "169", toml=forgetful) as process:
        await until_line(process, "restart lobby\n")
        process.send_signal(signal.SIGINT)
        output = await output_of(process)
    assert process.returncode == 1, output
    assert re.search(
        r"^LOST: lounge-\d+-1: \d+ who joined are not in it, .* for example; killed meanwhile: no shard$",
        output,
        re.MULTILINE,
    ), output
    assert "nothing lost" not in output


async def test_make_up_that_cannot_start_says_why_in_the_shards_own_words(tmp_path: Path) -> None:
    (tmp_path / "arena.db").write_text("this is no database" * 100)
    with playing(tmp_path, toml=ONE_SHARD_EACH) as process:
        await output_of(process)
    assert process.returncode == 1
    log = (tmp_path / "log").read_text()
    reason = "sqlite3.DatabaseError: file is not a database"
    assert re.search(rf"^onelane: shard leaderboard-\d failed to start: {reason}$", log, re.MULTILINE)
    # Nothing of the driver's own stands behind it, but that this was the end.
    assert log.endswith(f"\n{reason}\nError: the arena did not start, and says why above (exit code 1)\n")
    await eventually(lambda: not processes_of(tmp_path))


async def test_ctrl_c_ends_make_up_while_a_shard_hangs_in_its_start(tmp_path: Path) -> None:
    with playing(tmp_path, toml=echo(2).replace("tests.echo.service:Echo", "tests.broken:Hanging")) as process:
        # The driver, the supervisor, its guard, the fork server and two shards.
        await eventually(lambda: len(processes_of(tmp_path)) == 6)
        process.send_signal(signal.SIGINT)
        await output_of(process)
    assert process.returncode == 1
    assert (tmp_path / "log").read_text().endswith("\nError: ended before the arena had started\n")
    await eventually(lambda: not processes_of(tmp_path))
