"""Measurements of a lane's thread, and of its watchdog's, by the operating system."""

import ctypes
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from onelane.shard.lane_thread import LaneThread, OwnThread
from onelane.telemetry.stalls import Sample

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured on Linux alone")


@pytest.fixture
def thread() -> Iterator[LaneThread]:
    """Of the thread that runs this test."""
    measured = LaneThread()
    yield measured
    measured.close()


def compute(cpu_s: float) -> None:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        pass


@linux
def test_the_cpu_time_of_the_lane_is_told_from_that_of_other_threads(thread: LaneThread) -> None:
    before = thread.sample()
    compute(0.05)
    other = threading.Thread(target=compute, args=(0.05,))
    other.start()
    other.join()
    after: list[Sample] = []
    # As the watchdog does: from a thread of its own, whose CPU time does not count.
    watchdog = threading.Thread(target=lambda: after.append(thread.sample()))
    watchdog.start()
    watchdog.join()
    assert after[0].cpu_s - before.cpu_s >= 0.05
    assert after[0].at > before.at
    assert after[0].delay_s >= before.delay_s >= 0.0


@linux
def test_the_state_is_one_letter_and_the_delay_is_known(thread: LaneThread) -> None:
    assert thread.state() == "R", "this thread reads its own state, so it runs"
    assert thread.delay_s() >= 0.0
    assert thread.wakes(0.001) >= 1, "a sleep gives up the CPU"
    assert not thread.has_cpu(0.02), "nor does it need one"


@linux
def test_a_sample_does_not_release_the_interpreter(thread: LaneThread) -> None:
    """All its counters are of one moment, however long another thread would keep the interpreter in between."""
    begins, taken = threading.Event(), threading.Event()

    def take_interpreter() -> None:
        begins.wait()
        taken.set()

    own, interval_s = OwnThread(), sys.getswitchinterval()
    other = threading.Thread(target=take_interpreter)
    other.start()
    # From here on the other thread is given the interpreter only where this one releases it.
    sys.setswitchinterval(100.0)
    try:
        begins.set()
        compute(0.05)
        for _ in range(100):
            thread.sample()
            own.take_waited_s()
        assert not taken.is_set()
    finally:
        sys.setswitchinterval(interval_s)
        other.join()
        own.close()


def test_where_a_thread_cannot_be_measured_only_the_time_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    thread = LaneThread()
    sample = thread.sample()
    assert (thread.is_measurable, sample.cpu_s, sample.delay_s, sample.others_s) == (False, 0.0, 0.0, 0.0)
    assert (thread.state(), thread.delay_s(), thread.wakes(0.0)) == ("", 0.0, 0)
    thread.close()


@linux
def test_a_thread_that_sleeps_has_waited_for_nothing(thread: LaneThread) -> None:
    # Its wait for a CPU, which is taken off, is that of a longer time: on a busy machine there is some in between.
    delay_s, own = thread.delay_s(), OwnThread()
    time.sleep(0.1)
    waited_s = own.take_waited_s()
    assert waited_s - (thread.delay_s() - delay_s) < 0.05
    own.close()


@linux
def test_a_thread_that_wants_the_interpreter_has_waited_for_it() -> None:
    late_s = waited_s = 0.0
    sleeps = threading.Event()

    def look() -> None:
        nonlocal late_s, waited_s
        own, began = OwnThread(), time.monotonic()
        sleeps.set()
        time.sleep(0.02)
        late_s, waited_s = time.monotonic() - began - 0.02, own.take_waited_s()
        own.close()

    # On a busy machine its sleep may be over before the interpreter is kept.
    while late_s < 0.3:
        sleeps.clear()
        watchdog = threading.Thread(target=look)
        watchdog.start()
        sleeps.wait()
        # C code that waits, and keeps the interpreter.
        ctypes.PyDLL(None).usleep(400_000)
        watchdog.join()
    assert waited_s > late_s / 2
