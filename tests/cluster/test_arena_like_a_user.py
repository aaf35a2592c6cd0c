"""The arena as its author would test it: with what ships, and nothing of the tests here."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from onelane.testing import Cluster

from services.arena.elo import START
from services.arena.lobby import Lobby
from services.arena.v1 import lobby_pb2, lobby_pb2_grpc, profile_pb2, profile_pb2_grpc
from tests.running_app import ROOT

FILE = ROOT / "services" / "arena" / "onelane.toml"


@pytest.fixture
async def arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("ARENA_DB", str(tmp_path / "arena"))
    async with Cluster(FILE, shards=2) as cluster:
        yield cluster


async def test_players_of_a_room_meet_whichever_shard_they_ask(arena: Cluster) -> None:
    for player, shard in (("ann", 0), ("bob", 1)):
        lobby: Any = arena.stub(lobby_pb2_grpc.LobbyStub, app="lobby", shard=shard)
        joined = await lobby.Join(lobby_pb2.JoinRequest(room_id="r", player=player))
    assert list(joined.players) == ["ann", "bob"]
    owner = arena.service(Lobby, app="lobby", shard=arena.owner_of("r", app="lobby"))
    assert list(owner.rooms["r"].players) == ["ann", "bob"]


async def test_a_finished_game_is_rated_and_on_the_board(arena: Cluster) -> None:
    lobby: Any = arena.stub(lobby_pb2_grpc.LobbyStub, app="lobby")
    for player in ("ann", "bob"):
        await lobby.Join(lobby_pb2.JoinRequest(room_id="r", player=player))
    finished = await lobby.Finish(lobby_pb2.FinishRequest(room_id="r", winner="ann", board="b"))
    assert finished.ratings["ann"] > START > finished.ratings["bob"]
    assert finished.place == 1
    assert await arena.stats("arena.joins") == 2


async def test_ratings_outlive_a_shard_that_dies(arena: Cluster) -> None:
    profile: Any = arena.stub(profile_pb2_grpc.ProfileStub, app="profile")
    result = profile_pb2.AddResultRequest(player="ann", opponents_rating=1500, score=1.0)
    rating = (await profile.AddResult(result)).rating
    await arena.restart(arena.owner_of("ann", app="profile"), app="profile")
    assert (await profile.Get(profile_pb2.GetRequest(player="ann"), wait_for_ready=True)).rating == rating
