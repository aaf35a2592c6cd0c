"""New settings are used by every shard or by none: one shard's part in the vote."""

import json
from typing import Any

import pytest
from onelane.v1 import control_pb2

from tests.shard.parts import sent, setup, wired

TYPE = "tests.echo.settings:EchoSettings"


def proposal(generation: int, **config: Any) -> control_pb2.Settings:
    return control_pb2.Settings(generation=generation, config=json.dumps(config))


async def test_a_shard_votes_for_settings_that_fit_and_against_others_with_the_fault() -> None:
    parts, supervisor_end = wired(setup(config_type=TYPE))
    await parts.settings_vote.vote(proposal(1, limit=2))
    await parts.settings_vote.vote(proposal(2, limit=0))
    votes = [message.proposed for message in await sent(supervisor_end)]
    assert [(vote.generation, vote.fault == "") for vote in votes] == [(1, True), (2, False)]
    assert "limit: Input should be greater than or equal to 1, seen 0" in votes[1].fault
    assert parts.shard.config.limit == 1


async def test_an_error_of_the_services_own_validator_is_a_vote_against(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, supervisor_end = wired()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such table")

    monkeypatch.setattr("onelane.shard.settings.build_settings", fail)
    await parts.settings_vote.vote(proposal(1))
    (vote,) = [message.proposed for message in await sent(supervisor_end)]
    assert vote.fault == "apps.echo.config: RuntimeError('no such table')"


async def test_committed_settings_are_used_from_the_next_tick_on_and_acknowledged_once() -> None:
    parts, supervisor_end = wired(setup(config_type=TYPE))
    changes: list[tuple[int, int]] = []
    parts.shard.on_config(lambda old, new: changes.append((old.limit, new.limit)))
    parts.settings_vote.commit(proposal(3, limit=9))
    assert (parts.shard.config.limit, changes) == (1, [])
    await parts.settings_vote.apply()
    await parts.settings_vote.apply()
    assert (parts.shard.config.limit, changes) == (9, [(1, 9)])
    assert [message.committed for message in await sent(supervisor_end)] == [3]
