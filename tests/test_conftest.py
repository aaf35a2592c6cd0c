"""Tests leave nothing to those that follow them in the same process."""

import asyncio
import os
from typing import Any

import grpc
import grpc.aio
import pytest

from tests import conftest
from tests.ports import reserved
from tests.servers import stock


def test_a_variable_that_a_test_has_set_or_removed_is_as_it_was_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """`onelane state` sets GRPC_VERBOSITY in its process: each later app of the worker had a fresh fork server."""
    monkeypatch.setenv("TEST_REMOVED", "as it was")
    call = conftest.pytest_runtest_call()
    next(call)
    os.environ["TEST_SET"] = "left"
    del os.environ["TEST_REMOVED"]
    with pytest.raises(StopIteration):
        next(call)
    assert (os.environ.get("TEST_SET"), os.environ.get("TEST_REMOVED")) == (None, "as it was")


async def test_a_callback_that_schedules_itself_for_ever_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a test burned a processor until the end of the run, in each wait of all the tests after it."""
    monkeypatch.setattr(conftest, "RESTING_TURNS", 100)
    loop, is_left = asyncio.get_running_loop(), True

    def turn() -> None:
        if is_left:
            loop.call_soon(turn)

    turn()
    assert "turn() at " in await conftest.never_resting()
    is_left = False
    assert await conftest.never_resting() == ""


async def test_a_server_that_has_the_port_of_one_that_is_gone_is_called_as_any_other() -> None:
    """Its channel began with the failure of an earlier one to that port: seldom, as ports are given at random."""
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(address) as earlier:
            echo: Any = earlier.unary_unary("/t.T/Echo")
            assert await echo(b"x").code() is grpc.StatusCode.UNAVAILABLE
            async with stock(address), grpc.aio.insecure_channel(address) as channel:
                echo = channel.unary_unary("/t.T/Echo")
                assert await echo(b"x") == b"x"
