"""What calls made inside a call carry on: its deadline, trace, baggage and chain; and for which shard code runs."""

import threading
from contextvars import Context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core import context
from onelane.core.context import (
    AttachedContext,
    ShardBinding,
    TaskContext,
    TurnContext,
    attached_context_var,
    bind_shard,
    bound_shard,
    bound_shard_name,
    current_baggage,
    current_call,
    current_call_var,
    current_trace,
    earlier,
)
from onelane.core.trace_context import TraceContext
from onelane.core.turns import Turns

TRACE = TraceContext("a" * 32, "b" * 16, True)
OTHER = TraceContext("c" * 32, "d" * 16, True)


@pytest.fixture
def turns() -> Turns:
    return Turns("s-0", draw=iter(range(1, 99)).__next__, per_key=9, in_all=9)


def test_outside_of_any_call_nothing_is_carried_on() -> None:
    carried = Context().run(lambda: (current_call(), current_trace(), current_baggage()))
    assert carried == (None, None, "")


def test_a_call_made_inside_a_call_belongs_to_its_trace_and_has_its_baggage() -> None:
    call = TaskContext("/a.B/C", trace=TRACE, baggage="k=v")
    token = current_call_var.set(call)
    assert (current_call(), current_trace(), current_baggage()) == (call, TRACE, "k=v")
    current_call_var.reset(token)
    assert current_call() is not call


def test_what_opentelemetrys_api_has_attached_goes_before_the_call_in_progress() -> None:
    token = current_call_var.set(TaskContext("/a.B/C", trace=TRACE, baggage="k=v"))
    attached = attached_context_var.set(AttachedContext(None, OTHER, ""))
    assert (current_trace(), current_baggage()) == (OTHER, "")
    attached_context_var.reset(attached)
    assert (current_trace(), current_baggage()) == (TRACE, "k=v")
    current_call_var.reset(token)


def test_a_turn_taken_by_hand_adds_its_link_to_the_chain_and_leaves_the_rest_as_it_is(turns: Turns) -> None:
    turn = turns.enter("key", "a.B/C", "", object())
    assert turn is not None
    outer = TaskContext("/a.B/C", 12.0, TRACE, "chain-of-the-call", "k=v")
    within = TurnContext(outer, turn)
    carried = (within.method, within.deadline_at, within.trace, within.span, within.baggage)
    assert carried == ("/a.B/C", 12.0, TRACE, TRACE, "k=v")
    assert within.outgoing_chain == f"chain-of-the-call,{1:016x}@s-0/a.B/C"


def test_a_turn_taken_outside_of_any_call_has_its_chain_alone(turns: Turns) -> None:
    turn = turns.enter("key", "shard.turn", "", object())
    assert turn is not None
    within = TurnContext(None, turn)
    carried = (within.method, within.deadline_at, within.trace, within.span, within.baggage)
    assert carried == ("/shard.turn", None, None, None, "")
    assert within.outgoing_chain == f"{1:016x}@s-0/shard.turn"


A, B = ShardBinding("a-0", None, None), ShardBinding("b-0", None, None)


def test_shards_that_share_a_process_are_told_apart_by_context() -> None:
    first, second = Context(), Context()
    first.run(bind_shard, A, whole_process=False)
    second.run(bind_shard, B, whole_process=False)
    assert (first.run(bound_shard_name), second.run(bound_shard_name)) == ("a-0", "b-0")
    assert Context().run(bound_shard) is None


def test_the_only_shard_of_a_process_has_its_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_shard_of_process", None)
    Context().run(bind_shard, A, whole_process=True)
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(bound_shard_name()))
    thread.start()
    thread.join()
    assert names == ["a-0"]


moments = st.none() | st.floats(0, 100)


@given(moments, moments)
def test_the_earlier_of_two_never_grows(a: float | None, b: float | None) -> None:
    chosen = earlier(a, b)
    for moment in (a, b):
        assert moment is None or (chosen is not None and chosen <= moment)
