"""A reminder as data: when it runs next, and how a store has it."""

import pytest
from onelane.errors import UnreadableReminder
from onelane.state.reminder import MAX_RETRY_S, Reminder, after_failure, after_success, read_reminder
from onelane.state.store import StoredReminder

ONCE = Reminder("k", "a", "pkg.S/M", b"request", 100.0, nonce=b"12345678")
PERIODIC = Reminder("k", "a", "pkg.S/M", b"request", 100.0, 10.0, b"12345678")


@pytest.mark.parametrize("reminder", [ONCE, PERIODIC, after_failure(ONCE, 100.0, max_runs=9)[0]])
def test_it_is_read_as_it_was_stored(reminder: Reminder) -> None:
    assert read_reminder("k", reminder.stored()) == reminder


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x02\x03"])
def test_data_that_cannot_be_read_name_the_key_and_the_id(data: bytes) -> None:
    with pytest.raises(UnreadableReminder, match="the reminder 'a' of the key 'k' cannot be read"):
        read_reminder("k", StoredReminder("a", 1.0, data))


def test_a_single_one_is_over_after_its_run() -> None:
    assert after_success(ONCE, 100.0) == (None, 0)


@pytest.mark.parametrize(
    ("now", "due_at", "skipped"), [(100.0, 110.0, 0), (109.9, 110.0, 0), (110.0, 120.0, 1), (199.0, 200.0, 9)]
)
def test_a_periodic_one_is_due_at_the_next_multiple_of_its_period(now: float, due_at: float, skipped: int) -> None:
    following, left_out = after_success(PERIODIC, now)
    assert following is not None
    assert (following.due_at, left_out) == (due_at, skipped)


def test_failed_runs_are_repeated_with_a_growing_back_off_and_then_given_up() -> None:
    waits, reminder, now = [], ONCE, 100.0
    while True:
        following, is_given_up = after_failure(reminder, now, max_runs=15)
        if following is None:
            break
        waits.append(following.run_at - now)
        reminder, now = following, following.run_at
    assert is_given_up
    assert waits[:4] == [1, 2, 4, 8]
    assert (waits[-1], len(waits)) == (MAX_RETRY_S, 14)


def test_a_periodic_one_gives_up_for_its_next_period() -> None:
    first, is_given_up = after_failure(PERIODIC, 100.0, max_runs=20)
    assert first is not None
    assert (first.run_at, is_given_up) == (101.0, False)
    following, is_given_up = after_failure(first, 109.5, max_runs=20)
    assert following is not None
    assert (following.run_at, following.failures, is_given_up) == (110.0, 0, True)


def test_repeated_runs_have_the_idempotency_key_of_their_due_time() -> None:
    repeated, _ = after_failure(PERIODIC, 100.0, max_runs=20)
    following, _ = after_success(PERIODIC, 100.0)
    assert repeated is not None
    assert following is not None
    assert repeated.idempotency_key == PERIODIC.idempotency_key
    assert following.idempotency_key != PERIODIC.idempotency_key
    assert Reminder("k", "a", "pkg.S/M", b"", 100.0, nonce=b"other").idempotency_key != PERIODIC.idempotency_key
