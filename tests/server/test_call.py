"""A call as the lane and its handler see it, whatever listener it came by."""

import grpc
import grpc.aio
import pytest
from onelane.server.call import Aborted, Call
from onelane.server.call_state import DONE, RUNNING
from onelane.testing.listener import MemoryCall


def a_call(*, running: bool = True) -> Call:
    call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
    if running:
        call.state = RUNNING
    return call


def test_callbacks_run_once_when_the_outcome_stands() -> None:
    call, seen = a_call(), list[object]()
    call.add_done_callback(seen.append)
    call.state = call.state.end
    call.answer(b"")
    call.run_callbacks()
    assert seen == [call]


def test_a_callback_that_raises_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    call, seen = a_call(), list[object]()

    def fail(_: object) -> None:
        raise ValueError("callback")

    call.add_done_callback(fail)
    call.add_done_callback(seen.append)
    call.state = call.state.end
    call.answer(b"")
    assert (seen, "call.callback_failed method=t.T/M" in caplog.text) == ([call], True)


def test_a_callback_may_add_another() -> None:
    call, seen = a_call(), list[object]()
    call.add_done_callback(lambda done: call.add_done_callback(seen.append))
    call.state = call.state.end
    call.answer(b"")
    assert seen == [call]


@pytest.mark.parametrize(
    ("state", "code", "is_cancelled", "expected"),
    [
        (RUNNING, grpc.StatusCode.OK, False, (False, False)),
        (RUNNING, grpc.StatusCode.OK, True, (False, True)),
        (RUNNING, grpc.StatusCode.CANCELLED, False, (False, False)),
        (DONE, grpc.StatusCode.CANCELLED, False, (True, True)),
        (DONE, grpc.StatusCode.OK, False, (True, False)),
    ],
    ids=["running", "its client has cancelled it", "its handler has set the code", "cancelled by a drain", "answered"],
)
def test_done_and_cancelled_are_what_grpc_means_by_them(
    state: object, code: grpc.StatusCode, is_cancelled: bool, expected: tuple[bool, bool]
) -> None:
    call = a_call()
    call.state, call.code_now, call.is_cancelled = state, code, is_cancelled  # type: ignore[assignment]
    assert (call.done(), call.cancelled()) == expected


async def test_an_abort_with_ok_is_an_error_of_the_handlers() -> None:
    call = a_call()
    with pytest.raises(Aborted):
        await call.abort(grpc.StatusCode.OK, "fine")
    assert call.code_now is grpc.StatusCode.UNKNOWN
    assert "fine" in call.details_now


async def test_an_abort_carries_details_and_trailers() -> None:
    call = a_call()
    with pytest.raises(grpc.aio.AbortError):
        await call.abort(grpc.StatusCode.NOT_FOUND, "nobody", (("x-why", "gone"),))
    assert (call.code(), call.details(), call.trailing_metadata()) == (
        grpc.StatusCode.NOT_FOUND,
        "nobody",
        (("x-why", "gone"),),
    )


async def test_after_an_abort_messages_are_neither_read_nor_written() -> None:
    call = a_call()
    call.carry(bytes.decode, str.encode)
    with pytest.raises(grpc.aio.AbortError):
        await call.abort(grpc.StatusCode.NOT_FOUND, "nobody")
    for attempt in (call.read, lambda: call.write("late"), lambda: anext(call.messages())):
        with pytest.raises(grpc.aio.AbortError):
            await attempt()


async def test_a_handler_of_one_response_cannot_write() -> None:
    """On grpc.aio its client gets two responses, and waits until its deadline."""
    call = a_call()
    call.carry(bytes.decode, None)
    with pytest.raises(grpc.aio.UsageError, match="one response"):
        await call.write("response")


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "done"])
async def test_nothing_is_sent_once_a_call_is_over(is_cancelled: bool) -> None:
    call = a_call()
    call.carry(bytes.decode, str.encode)
    call.is_cancelled = is_cancelled
    if not is_cancelled:
        call.state = call.state.end
        with pytest.raises(grpc.aio.UsageError, match="already finished"):
            await call.send_initial_metadata((("x-late", "1"),))
        with pytest.raises(grpc.aio.UsageError, match="already finished"):
            await call.abort(grpc.StatusCode.ABORTED)
    with pytest.raises(grpc.aio.UsageError, match="already finished"):
        await call.write("late")


async def test_a_message_that_was_read_to_route_by_is_read_again() -> None:
    call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
    await call.inbox.put(b"first")
    await call.inbox.put(b"second")
    await call.inbox.put(None)
    call.push_back(await call.next_bytes() or b"")
    assert call.first == b"first"
    assert [message async for message in call.messages()] == [b"first", b"second"]


async def test_reading_after_the_last_message_is_eof() -> None:
    call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
    await call.inbox.put(None)
    assert await call.read() is grpc.aio.EOF


def test_it_is_a_servicer_context_of_grpc_aio() -> None:
    assert isinstance(a_call(), grpc.aio.ServicerContext)
