"""What is published reaches each subscriber once, in order, and what it misses is told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.errors import Overloaded
from onelane.shard.topics import Inbox, Lost, Outbox, Subscriber

from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


def subscribed(capacity: int = 1000) -> tuple[Inbox, Subscriber[EchoReply], list[int]]:
    lost: list[int] = []
    inbox = Inbox(lost=lost.append)
    subscriber = Subscriber("t", EchoReply, capacity=capacity, wake=lambda: None)
    inbox.add(subscriber)
    return inbox, subscriber, lost


def taken(subscriber: Subscriber[EchoReply]) -> list[Any]:
    items: list[Any] = list(iter(subscriber.take, None))
    return [item if isinstance(item, Lost) else item.text for item in items]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["arrives", "is lost", "arrives twice"])), max_size=30))
def test_each_message_comes_at_most_once_in_order_and_what_is_missing_is_told(batches: list[tuple[int, str]]) -> None:
    inbox, subscriber, _ = subscribed()
    outbox = Outbox("a-0", 7, limit=10)
    numbers = iter(range(10_000))
    sent = missing = 0
    seen: list[int] = []
    arrived: list[int] = []
    for size, fate in batches:
        texts = [next(numbers) for _ in range(size)]
        for number in texts:
            outbox.add("t", EchoReply(text=str(number)))
        batch = outbox.take()
        sent += size
        for _ in range({"arrives": 1, "is lost": 0, "arrives twice": 2}[fate]):
            inbox.receive(batch)
        arrived += texts if fate != "is lost" else []
    for item in taken(subscriber):
        if isinstance(item, Lost):
            missing += item.count
        else:
            seen.append(int(item))
    assert seen == arrived
    # What was lost before the first batch that came, or after the last, nobody here can know.
    assert missing <= sent - len(arrived)
    if arrived and batches[0][1] != "is lost" and batches[-1][1] != "is lost":
        assert missing == sent - len(arrived)


def test_a_subscriber_that_lags_loses_the_oldest_and_is_told_first() -> None:
    inbox, subscriber, lost = subscribed(capacity=3)
    outbox = Outbox("a-0", 7, limit=10)
    for number in range(8):
        outbox.add("t", EchoReply(text=str(number)))
    inbox.receive(outbox.take())
    assert taken(subscriber) == [Lost(5), "5", "6", "7"]
    assert sum(lost) == 5


def test_a_publisher_that_was_restarted_begins_anew() -> None:
    inbox, subscriber, _ = subscribed()
    for incarnation in (7, 8):
        outbox = Outbox("a-0", incarnation, limit=10)
        outbox.add("t", EchoReply(text=str(incarnation)))
        inbox.receive(outbox.take())
    assert taken(subscriber) == ["7", "8"]


def test_messages_of_another_kind_are_left_out() -> None:
    inbox, subscriber, _ = subscribed()
    outbox = Outbox("a-0", 7, limit=10)
    outbox.add("t", EchoRequest(text="another"))
    outbox.add("u", EchoReply(text="another topic"))
    outbox.add("t", EchoReply(text="this"))
    inbox.receive(outbox.take())
    assert taken(subscriber) == ["this"]


def test_what_may_be_published_in_one_tick_is_bounded() -> None:
    outbox = Outbox("a-0", 7, limit=2)
    outbox.add("t", EchoReply())
    outbox.add("t", EchoReply())
    with pytest.raises(Overloaded, match="shard a-0, the queue of published messages is full: 2 waiting already"):
        outbox.add("t", EchoReply())
