"""The context of a plain `def` handler, which awaits nothing."""

import grpc
import pytest
from onelane.server.call import Call
from onelane.server.call_state import RUNNING
from onelane.server.plain_context import PlainContext, call_of
from onelane.testing.listener import MemoryCall


def a_call() -> Call:
    call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
    call.state = RUNNING
    return call


@pytest.mark.parametrize("name", ["read", "write"])
def test_a_plain_handler_has_no_methods_that_it_would_have_to_await(name: str) -> None:
    with pytest.raises(AttributeError, match="iterates over requests"):
        getattr(PlainContext(a_call()), name)


def test_a_plain_handler_that_has_cancelled_its_call_is_not_active() -> None:
    context = PlainContext(a_call())
    assert context.is_active()
    context.cancel()
    context.cancel()
    assert not context.is_active()
    assert call_of(context).code_now is grpc.StatusCode.CANCELLED
