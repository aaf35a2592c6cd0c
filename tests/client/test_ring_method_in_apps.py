"""Retries and ejections where one app of several fails."""

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane import config
from onelane.core.service_config import read_service_config
from onelane.core.validation import changed
from onelane.testing import Cluster
from onelane.testing.faults import Fault, Faults

from services.arena.v1 import lobby_pb2, lobby_pb2_grpc
from tests.client.configs import RETRY
from tests.running_app import ROOT

ARENA = ROOT / "services" / "arena" / "onelane.toml"


class FlakyProfiles(Faults):
    """A fifth of the reads fail."""

    rules = (Fault("arena.v1.Profile/Get", share=0.2, abort=grpc.StatusCode.UNAVAILABLE),)
    seed = 7


async def test_the_lobby_does_not_notice_that_profiles_fail_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARENA_DB", str(tmp_path / "arena"))
    file = config.load(ARENA)
    flaky = changed(file.apps["profile"], interceptors=("tests.client.test_ring_method_in_apps:FlakyProfiles",))
    patient = read_service_config(
        {"methodConfig": [{"name": [{"service": "arena.v1.Profile"}], "retryPolicy": RETRY | {"maxAttempts": 5}}]}
    )
    lobby_app = changed(file.apps["lobby"], stubs={"profile": patient})
    file = changed(file, apps={**file.apps, "profile": flaky, "lobby": lobby_app})
    async with Cluster(file, shards=2, trace=True) as arena:
        lobby: Any = arena.stub(lobby_pb2_grpc.LobbyStub, app="lobby")
        for number in range(40):
            await lobby.Join(lobby_pb2.JoinRequest(room_id=f"r{number % 5}", player=f"p{number}"))
        retries = await arena.stats("onelane.client.retries", {"onelane.peer": "profile"})
        assert retries > 0
        events = [event for span in arena.spans for event in span.events or ()]
        assert [name for name, _, _ in events].count("onelane.client.retries") == retries
        assert all(attributes["onelane.reason"] == "UNAVAILABLE" for _, attributes, _ in events)


class BrokenProfiles(Faults):
    rules = (Fault("arena.v1.Profile/Get", abort=grpc.StatusCode.INTERNAL),)


async def test_an_owner_that_fails_on_and_on_is_ejected_and_that_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARENA_DB", str(tmp_path / "arena"))
    file = config.load(ARENA)
    broken = changed(file.apps["profile"], interceptors=("tests.client.test_ring_method_in_apps:BrokenProfiles",))
    file = changed(file, apps={**file.apps, "profile": broken})
    async with Cluster(file, shards=1) as arena:
        lobby: Any = arena.stub(lobby_pb2_grpc.LobbyStub, app="lobby")
        join = lobby_pb2.JoinRequest(room_id="r", player="p")
        # Until the topology is known calls go by the shared address, which is never ejected.
        while not await arena.stats("onelane.client.ejections", {"onelane.peer": "profile"}):
            assert await lobby.Join(join).code() is grpc.StatusCode.INTERNAL
        # Left alone, it is still reached by the shared address.
        assert await lobby.Join(join).code() is grpc.StatusCode.INTERNAL
