"""From an error to a status: whatever leaves a handler, its call has one, and only our own texts reach the client."""

import asyncio
import logging

import grpc
import grpc.aio
import pytest
from onelane.core.keys import ANY
from onelane.errors import BadKey, Invalid, Overloaded
from onelane.server import status
from onelane.server.call import Aborted, Call
from onelane.server.methods import Method
from onelane.testing.listener import MemoryCall

METHOD = Method("/t.T/M", lambda *_: None, True, False, False, None, None, ANY)


def a_call(*, deadline_s: float | None = None) -> Call:
    return MemoryCall("/t.T/M", (), trusted=False, deadline_s=deadline_s)


def failed_by(error: BaseException, call: Call | None = None) -> Call:
    call = call or a_call()
    status.failed(call, error, method=METHOD, shard="a")
    return call


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (BadKey("no key"), grpc.StatusCode.INVALID_ARGUMENT, "no key"),
        (Invalid("too old"), grpc.StatusCode.INVALID_ARGUMENT, "too old"),
        (
            grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "nobody"),
            grpc.StatusCode.NOT_FOUND,
            "nobody",
        ),
    ],
    ids=["an error of the runtime's", "an error of the service's", "a call to another service"],
)
def test_an_error_with_a_status_gives_it_to_the_call(error: Exception, code: grpc.StatusCode, details: str) -> None:
    call = failed_by(error)
    assert (call.code_now, call.details_now) == (code, details)


def test_a_refused_call_is_told_when_to_try_again() -> None:
    call = failed_by(Overloaded("shard a", waiting=9))
    pushback = dict(call.trailers)["grpc-retry-pushback-ms"]
    assert call.code_now is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(pushback) > 0


def test_the_text_of_any_other_exception_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    call = failed_by(ValueError("the password is sesame"))
    assert call.code_now is grpc.StatusCode.INTERNAL
    assert "sesame" not in call.details_now
    assert "sesame" in caplog.text
    # Both have the id by which one is found from the other.
    assert call.details_now.rpartition(" ")[2] in caplog.text


def test_a_status_that_the_handler_chose_before_it_raised_is_kept() -> None:
    call = a_call()
    call.set_code(grpc.StatusCode.UNIMPLEMENTED)
    assert failed_by(NotImplementedError(), call).code_now is grpc.StatusCode.UNIMPLEMENTED
    aborted = a_call()
    with pytest.raises(Aborted) as raised:
        aborted.abort_now(grpc.StatusCode.ABORTED, "lost a race")
    assert failed_by(raised.value, aborted).details_now == "lost a race"


def test_trailers_of_a_sibling_are_not_passed_on_with_the_status_of_a_call() -> None:
    trailers = grpc.aio.Metadata(("onelane-served", "b"), ("x-reason", "full"))
    call = failed_by(grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailers, ""))
    assert tuple(call.trailers) == (("x-reason", "full"),)


async def settled(call: Call, *, cancel: bool, draining: bool = False) -> bool:
    """Whether the cancellation of a task, or one that leaked from inside, goes on after `settle`."""

    async def work() -> bool:
        try:
            if not cancel:
                raise asyncio.CancelledError
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            return status.settle(call, error, method=METHOD, shard="a", draining=draining)
        raise AssertionError

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    if cancel:
        task.cancel()
    return await task


async def test_a_cancellation_from_outside_goes_on() -> None:
    call = a_call()
    assert await settled(call, cancel=True)
    assert call.code_now is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(("by_client", "code"), [(False, "UNAVAILABLE"), (True, "CANCELLED")])
async def test_a_cancellation_by_a_drain_is_unavailable_and_one_by_the_client_is_not(
    by_client: bool, code: str
) -> None:
    call = a_call()
    call.is_cancelled = by_client
    assert await settled(call, cancel=True, draining=True)
    assert call.code_now.name == code


async def test_a_cancellation_by_the_deadline_says_so() -> None:
    call = a_call(deadline_s=0)
    assert await settled(call, cancel=True)
    assert call.code_now is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_cancellation_that_leaks_from_the_handler_ends_as_internal() -> None:
    call = a_call()
    assert not await settled(call, cancel=False)
    assert call.code_now is grpc.StatusCode.INTERNAL


class Raising(logging.Handler):
    """A handler of `logging` that a service has installed, and that fails."""

    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(record.getMessage())


@pytest.mark.parametrize("error", [ValueError("text"), asyncio.CancelledError(), KeyboardInterrupt()])
def test_a_call_has_a_status_also_where_the_log_of_its_error_raises(error: BaseException) -> None:
    handler = Raising()
    logging.getLogger("onelane").addHandler(handler)
    try:
        assert failed_by(error).code_now is grpc.StatusCode.INTERNAL
    finally:
        logging.getLogger("onelane").removeHandler(handler)


async def test_a_group_of_aborts_as_of_a_task_group_is_an_abort(caplog: pytest.LogCaptureFixture) -> None:
    call = a_call()
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call.abort(grpc.StatusCode.NOT_FOUND, "nobody"))
    assert failed_by(raised.value, call).details_now == "nobody"
    assert caplog.text == ""


def test_an_abort_of_another_call_gives_no_status_to_this() -> None:
    with pytest.raises(Aborted) as raised:
        a_call().abort_now(grpc.StatusCode.ABORTED, "the other one")
    assert failed_by(raised.value).code_now is grpc.StatusCode.INTERNAL
