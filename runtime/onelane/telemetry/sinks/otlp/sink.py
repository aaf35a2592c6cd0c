"""OTLP by HTTP or gRPC, by OpenTelemetry's standard `OTEL_*` variables, one exporter for each machine.

Promises: nothing here runs on the supervisor's loop but an append; what waits for a collector that is away is bounded
by `OTEL_BSP_*` and `OTEL_BLRP_*`, is sent once it is back, and what had to be dropped is counted; a dead collector
costs at most `close`'s timeout. The sending is done by a process of its own (`exporter`), which is started anew
if it dies; what it had not confirmed is sent again.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import TypeVar

from onelane.core.clock import SystemClock
from onelane.telemetry.logs import LogRecord
from onelane.telemetry.logs import pack as pack_logs
from onelane.telemetry.sinks.otlp.pipe import (
    AGAIN,
    LOGS,
    METRICS,
    REFUSED,
    SENT,
    TRACES,
    Outcome,
    hear,
    pack_points,
    tell,
)
from onelane.telemetry.sinks.otlp.queue import Bounds, Outbox, Parcel, bounds_of, parcels
from onelane.telemetry.sinks.otlp.target import SIGNALS, target_of
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.spans import pack as pack_spans
from onelane.telemetry.stats import Point

log = logging.getLogger("onelane.otlp")
MAX_SPANS, MAX_LOGS = 65_536, 65_536
"""What waits for a collector unless `OTEL_BSP_MAX_QUEUE_SIZE` and `OTEL_BLRP_MAX_QUEUE_SIZE` say otherwise."""
MAX_ITEMS = 512
"""Of one parcel."""
T = TypeVar("T")
NAMES = {TRACES: "spans", METRICS: "metrics", LOGS: "logs"}
INTERVAL, EVERY_MS = "OTEL_METRIC_EXPORT_INTERVAL", 60_000.0


class OtlpSink:
    """See `onelane.telemetry.sinks.Sink`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        wanted = [signal for signal in SIGNALS if target_of(environment, signal) is not None]
        self._process = _Process(wanted, environment)
        bounds = {
            TRACES: bounds_of(environment, "OTEL_BSP", most=MAX_SPANS, delay_s=1.0),
            LOGS: bounds_of(environment, "OTEL_BLRP", most=MAX_LOGS, delay_s=1.0),
        }
        self._ways = {signal: _Way(signal, bounds[signal], self._process) for signal in wanted if signal != METRICS}
        self._metrics = _Metrics(interval_s(environment), self._process) if METRICS in wanted else None

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        if TRACES in self._ways:
            self._ways[TRACES].put((app, shard), spans, pack_spans)

    def logs(self, app: str, shard: str, records: Sequence[LogRecord]) -> None:
        if LOGS in self._ways:
            self._ways[LOGS].put((app, shard), records, pack_logs)

    def points(self, points: Sequence[Point]) -> None:
        if self._metrics is not None:
            self._metrics.newest = points

    def losses(self) -> Mapping[tuple[str, str], int]:
        return {
            (NAMES[signal], reason): count
            for signal, way in self._ways.items()
            for reason, count in list(way.box.lost.items())
        }

    def close(self, timeout_s: float) -> None:
        """Send every signal side by side; give up after `timeout_s`."""
        give_up = SystemClock.now() + timeout_s
        ways: list[_Worker] = [*self._ways.values(), *([self._metrics] if self._metrics else [])]
        for way in ways:
            way.finish()
        for way in ways:
            way.thread.join(max(0.0, give_up - SystemClock.now()))
        self._process.end()
        for way in ways:
            way.thread.join(1.0)
        self._process.release()
        for signal, box in ((signal, way.box) for signal, way in self._ways.items()):
            if left := box.close():
                why = self._ways[signal].why or "nobody took them before the end"
                log.warning("otlp.dropped signal=%s count=%d %s", NAMES[signal], left, why)


def interval_s(environment: Mapping[str, str]) -> float:
    """How often metrics are sent; what cannot be meant is the default, as OpenTelemetry asks."""
    try:
        said = float(environment.get(INTERVAL) or EVERY_MS)
    except ValueError:
        said = 0.0
    if not 0.0 < said < float("inf"):
        log.warning("otlp.interval %s is %r, expected milliseconds above 0", INTERVAL, environment[INTERVAL])
        said = EVERY_MS
    return said / 1000


class _Process:
    """The exporter process, which is started again when it has died."""

    def __init__(self, signals: Sequence[str], environment: Mapping[str, str]) -> None:
        self._signals = signals
        self._environment = os.environ | environment
        self._instance = str(uuid.uuid4())
        self._started_ns = SystemClock.wall_ns()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: dict[str, socket.socket] = {}
        self._held: dict[str, socket.socket] = {}
        """Signal → the line that its thread has used last."""
        self._ended = False
        self._start()

    def ask(self, signal: str, message: object) -> Outcome:
        """Have it send something; what became of it. Blocks."""
        line = self._line(signal)
        if line is None:
            return Outcome(AGAIN, "the exporter process is closed")
        try:
            tell(line, message)
            answer = hear(line)
        except OSError:
            answer = None
        if answer is None:
            with self._lock:
                if self._lines[signal] is line:
                    self._drop()
            return Outcome(AGAIN, "the exporter process has died")
        return Outcome(*answer)

    def _line(self, signal: str) -> socket.socket | None:
        with self._lock:
            if self._ended:
                return None
            if self._process is None:
                self._start()
            line = self._lines[signal]
            if (before := self._held.get(signal, line)) is not line:
                # Of a process that has died since; nobody but this thread reads it.
                before.close()
            self._held[signal] = line
            return line

    def _start(self) -> None:
        for signal, line in self._lines.items():
            if self._held.get(signal) is not line:
                line.close()
        pairs = {signal: socket.socketpair() for signal in self._signals}
        lines = [f"{signal}={theirs.fileno()}" for signal, (_, theirs) in pairs.items()]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "onelane.telemetry.sinks.otlp.exporter",
                self._instance,
                str(self._started_ns),
                *lines,
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno() for _, theirs in pairs.values()],
            start_new_session=True,
            env=self._environment,
        )
        for _, theirs in pairs.values():
            theirs.close()
        self._lines = {signal: ours for signal, (ours, _) in pairs.items()}

    def _drop(self) -> None:
        """Let go of a process that has died, or is to. Whoever calls holds the lock."""
        if self._process is None:
            return
        for line in self._lines.values():
            # Not closed: another signal's thread may be reading it, and then does so itself.
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process = None

    def end(self) -> None:
        """Hang up; whoever asks now is told so."""
        with self._lock:
            self._ended = True
            self._drop()

    def release(self) -> None:
        """Let go of the lines, once nobody asks any more."""
        for line in (*self._lines.values(), *self._held.values()):
            line.close()


class _Worker(ABC):
    """One signal's thread."""

    def __init__(self, signal: str, process: _Process) -> None:
        self._signal = signal
        self._process = process
        self._changed = threading.Condition()
        self._finishing = False
        self._is_well = True
        self.why = ""
        """What became of the last batch, where that was nothing good."""
        self.thread = threading.Thread(target=self._work, name=f"otlp-{signal.lower()}", daemon=True)
        self.thread.start()

    def finish(self) -> None:
        """Send what is there, and end."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    @abstractmethod
    def _work(self) -> None:
        """Send, until it is told to finish."""

    def _ask(self, message: object) -> Outcome:
        """What became of a batch; told in the log when it changes."""
        outcome = self._process.ask(self._signal, message)
        self.why = outcome.why
        is_well = outcome.what == SENT and not outcome.rejected
        if not is_well and self._is_well and not self._finishing:
            does = {SENT: "is taken in part", AGAIN: "waits and is tried again"}.get(outcome.what, "is dropped")
            log.warning("otlp.failing signal=%s what comes %s: %s", NAMES[self._signal], does, outcome.why)
        elif is_well and not self._is_well:
            log.info("otlp.recovered signal=%s", NAMES[self._signal])
        self._is_well = is_well
        return outcome


class _Way(_Worker):
    """Spans or logs: every one is sent, or counted as lost."""

    def __init__(self, signal: str, bounds: Bounds, process: _Process) -> None:
        self.box = Outbox(bounds, Random())
        self._most = min(MAX_ITEMS, bounds.batch)
        super().__init__(signal, process)

    def put(self, source: tuple[str, str], items: Sequence[T], pack: Callable[[Sequence[T]], bytes]) -> None:
        made = list(parcels(source, items, pack, self._most))
        with self._changed:
            due = self.box.due_at()
            for parcel in made:
                self.box.put(parcel, SystemClock.now())
            if due is None or self.box.due_at() != due:
                self._changed.notify()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            outcome = self._ask([(*parcel.source, parcel.packed) for parcel in batch])
            with self._changed:
                if outcome.what == SENT:
                    self.box.sent(SystemClock.now(), outcome.rejected)
                elif outcome.what == REFUSED:
                    self.box.refused(SystemClock.now())
                else:
                    self.box.again(SystemClock.now())
                    if self._finishing:
                        return

    def _next(self) -> list[Parcel] | None:
        """Wait for the next batch; None at the end."""
        with self._changed:
            while True:
                due = self.box.due_at()
                if self._finishing:
                    return None if due is None else self.box.begin()
                wait_s = None if due is None else due - SystemClock.now()
                if wait_s is not None and wait_s <= 0:
                    return self.box.begin()
                self._changed.wait(wait_s)


class _Metrics(_Worker):
    """All series as they stand, every so often: what could not be sent is in the next."""

    def __init__(self, every_s: float, process: _Process) -> None:
        self.newest: Sequence[Point] = ()
        self._every_s = every_s
        super().__init__(METRICS, process)

    def _work(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                # Seen before they are sent: what has come while others were under way is sent too.
                is_last = self._changed.wait_for(lambda: self._finishing, self._every_s)
            if self.newest:
                self._ask(pack_points(self.newest))
