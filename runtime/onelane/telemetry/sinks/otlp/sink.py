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
from onelane.telemetry.logs import LogRecord, pack_logs
from onelane.telemetry.sinks.otlp.pipe import (
    FAILED,
    LOGS,
    METRICS,
    RETRY,
    SENT,
    TRACES,
    ExportResult,
    pack_points,
    read_frame,
    write_frame,
)
from onelane.telemetry.sinks.otlp.queue import Chunk, ExportQueue, QueueLimits, chunks, queue_limits_of
from onelane.telemetry.sinks.otlp.target import SIGNALS, target_of
from onelane.telemetry.spans import SpanRecord, pack_spans
from onelane.telemetry.stats import Point

log = logging.getLogger("onelane.otlp")
MAX_QUEUED_SPANS, MAX_QUEUED_LOGS = 65_536, 65_536
"""What waits for a collector unless `OTEL_BSP_MAX_QUEUE_SIZE` and `OTEL_BLRP_MAX_QUEUE_SIZE` say otherwise."""
MAX_CHUNK_ITEMS = 512
"""Of one parcel."""
T = TypeVar("T")
SIGNAL_NAMES = {TRACES: "spans", METRICS: "metrics", LOGS: "logs"}
INTERVAL_VARIABLE, DEFAULT_INTERVAL_MS = "OTEL_METRIC_EXPORT_INTERVAL", 60_000.0


class OtlpSink:
    """See `onelane.telemetry.sinks.Sink`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        wanted = [signal for signal in SIGNALS if target_of(environment, signal) is not None]
        self._process = _ExporterProcess(wanted, environment)
        bounds = {
            TRACES: queue_limits_of(environment, "OTEL_BSP", most=MAX_QUEUED_SPANS, delay_s=1.0),
            LOGS: queue_limits_of(environment, "OTEL_BLRP", most=MAX_QUEUED_LOGS, delay_s=1.0),
        }
        self._queued = {
            signal: _QueuedSignal(signal, bounds[signal], self._process) for signal in wanted if signal != METRICS
        }
        self._metrics = _MetricsSignal(interval_s(environment), self._process) if METRICS in wanted else None

    def spans(self, app: str, shard: str, spans: Sequence[SpanRecord]) -> None:
        if TRACES in self._queued:
            self._queued[TRACES].put((app, shard), spans, pack_spans)

    def logs(self, app: str, shard: str, records: Sequence[LogRecord]) -> None:
        if LOGS in self._queued:
            self._queued[LOGS].put((app, shard), records, pack_logs)

    def points(self, points: Sequence[Point]) -> None:
        if self._metrics is not None:
            self._metrics.newest = points

    def losses(self) -> Mapping[tuple[str, str], int]:
        return {
            (SIGNAL_NAMES[signal], reason): count
            for signal, way in self._queued.items()
            for reason, count in list(way.queue.dropped.items())
        }

    def close(self, timeout_s: float) -> None:
        """Send every signal side by side; give up after `timeout_s`."""
        give_up = SystemClock.now() + timeout_s
        ways: list[_SignalThread] = [*self._queued.values(), *([self._metrics] if self._metrics else [])]
        for way in ways:
            way.finish()
        for way in ways:
            way.thread.join(max(0.0, give_up - SystemClock.now()))
        self._process.end()
        for way in ways:
            way.thread.join(1.0)
        self._process.close_lines()
        for signal, queue in ((signal, way.queue) for signal, way in self._queued.items()):
            if left := queue.close():
                why = self._queued[signal].why or "nobody took them before the end"
                log.warning("otlp.dropped signal=%s count=%d %s", SIGNAL_NAMES[signal], left, why)


def interval_s(environment: Mapping[str, str]) -> float:
    """How often metrics are sent; what cannot be meant is the default, as OpenTelemetry asks."""
    try:
        said = float(environment.get(INTERVAL_VARIABLE) or DEFAULT_INTERVAL_MS)
    except ValueError:
        said = 0.0
    if not 0.0 < said < float("inf"):
        log.warning(
            "otlp.interval %s is %r, expected milliseconds above 0", INTERVAL_VARIABLE, environment[INTERVAL_VARIABLE]
        )
        said = DEFAULT_INTERVAL_MS
    return said / 1000


class _ExporterProcess:
    """The exporter process, which is started again when it has died."""

    def __init__(self, signals: Sequence[str], environment: Mapping[str, str]) -> None:
        self._signals = signals
        self._environment = os.environ | environment
        self._instance = str(uuid.uuid4())
        self._started_ns = SystemClock.wall_ns()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: dict[str, socket.socket] = {}
        self._lines_in_use: dict[str, socket.socket] = {}
        """Signal → the line that its thread has used last."""
        self._ended = False
        self._start()

    def export(self, signal: str, message: object) -> ExportResult:
        """Have it send something; what became of it. Blocks."""
        line = self._line_for(signal)
        if line is None:
            return ExportResult(RETRY, "the exporter process is closed")
        try:
            write_frame(line, message)
            answer = read_frame(line)
        except OSError:
            answer = None
        if answer is None:
            with self._lock:
                if self._lines[signal] is line:
                    self._stop_process()
            return ExportResult(RETRY, "the exporter process has died")
        return ExportResult(*answer)

    def _line_for(self, signal: str) -> socket.socket | None:
        with self._lock:
            if self._ended:
                return None
            if self._process is None:
                self._start()
            line = self._lines[signal]
            if (before := self._lines_in_use.get(signal, line)) is not line:
                # Of a process that has died since; nobody but this thread reads it.
                before.close()
            self._lines_in_use[signal] = line
            return line

    def _start(self) -> None:
        for signal, line in self._lines.items():
            if self._lines_in_use.get(signal) is not line:
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

    def _stop_process(self) -> None:
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
            self._stop_process()

    def close_lines(self) -> None:
        """Let go of the lines, once nobody asks any more."""
        for line in (*self._lines.values(), *self._lines_in_use.values()):
            line.close()


class _SignalThread(ABC):
    """One signal's thread."""

    def __init__(self, signal: str, process: _ExporterProcess) -> None:
        self._signal = signal
        self._process = process
        self._changed = threading.Condition()
        self._finishing = False
        self._is_healthy = True
        self.why = ""
        """What became of the last batch, where that was nothing good."""
        self.thread = threading.Thread(target=self._run, name=f"otlp-{signal.lower()}", daemon=True)
        self.thread.start()

    def finish(self) -> None:
        """Send what is there, and end."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    @abstractmethod
    def _run(self) -> None:
        """Send, until it is told to finish."""

    def _export(self, message: object) -> ExportResult:
        """What became of a batch; told in the log when it changes."""
        result = self._process.export(self._signal, message)
        self.why = result.why
        is_healthy = result.what == SENT and not result.rejected
        if not is_healthy and self._is_healthy and not self._finishing:
            does = {SENT: "is taken in part", RETRY: "waits and is tried again"}.get(result.what, "is dropped")
            log.warning("otlp.failing signal=%s what comes %s: %s", SIGNAL_NAMES[self._signal], does, result.why)
        elif is_healthy and not self._is_healthy:
            log.info("otlp.recovered signal=%s", SIGNAL_NAMES[self._signal])
        self._is_healthy = is_healthy
        return result


class _QueuedSignal(_SignalThread):
    """Spans or logs: every one is sent, or counted as lost."""

    def __init__(self, signal: str, bounds: QueueLimits, process: _ExporterProcess) -> None:
        self.queue = ExportQueue(bounds, Random())
        self._most = min(MAX_CHUNK_ITEMS, bounds.batch)
        super().__init__(signal, process)

    def put(self, source: tuple[str, str], items: Sequence[T], pack: Callable[[Sequence[T]], bytes]) -> None:
        made = list(chunks(source, items, pack, self._most))
        with self._changed:
            due = self.queue.due_at()
            for chunk in made:
                self.queue.put(chunk, SystemClock.now())
            if due is None or self.queue.due_at() != due:
                self._changed.notify()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            result = self._export([(*chunk.source, chunk.packed) for chunk in batch])
            with self._changed:
                if result.what == SENT:
                    self.queue.acknowledge(SystemClock.now(), result.rejected)
                elif result.what == FAILED:
                    self.queue.drop_batch(SystemClock.now())
                else:
                    self.queue.retry_batch(SystemClock.now())
                    if self._finishing:
                        return

    def _next_batch(self) -> list[Chunk] | None:
        """Wait for the next batch; None at the end."""
        with self._changed:
            while True:
                due = self.queue.due_at()
                if self._finishing:
                    return None if due is None else self.queue.begin_batch()
                wait_s = None if due is None else due - SystemClock.now()
                if wait_s is not None and wait_s <= 0:
                    return self.queue.begin_batch()
                self._changed.wait(wait_s)


class _MetricsSignal(_SignalThread):
    """All series as they stand, every so often: what could not be sent is in the next."""

    def __init__(self, interval_s: float, process: _ExporterProcess) -> None:
        self.newest: Sequence[Point] = ()
        self._interval_s = interval_s
        super().__init__(METRICS, process)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                # Seen before they are sent: what has come while others were under way is sent too.
                is_last = self._changed.wait_for(lambda: self._finishing, self._interval_s)
            if self.newest:
                self._export(pack_points(self.newest))
