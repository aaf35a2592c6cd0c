"""OTLP over HTTP or gRPC, configured by OpenTelemetry's standard `OTEL_*` variables; one exporter per machine.

Promises: on the supervisor's loop a batch costs packing and an append. Items for an unreachable collector are queued up
to the limits of `OTEL_BSP_*` and `OTEL_BLRP_*` and sent once it is back; dropped items are counted. A dead collector
delays `close` by at most its timeout. A process of its own (`exporter`) sends. If it dies it is restarted, and
batches that it had not acknowledged are sent again.
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
from contextlib import ExitStack, suppress
from random import Random
from typing import TypeVar

from onelane.core.clock import SystemClock
from onelane.secret_files import for_exporter
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
"""Items in a queue, unless `OTEL_BSP_MAX_QUEUE_SIZE` and `OTEL_BLRP_MAX_QUEUE_SIZE` set other limits."""
MAX_CHUNK_ITEMS = 512
"""Items of one chunk."""
T = TypeVar("T")
SIGNAL_NAMES = {TRACES: "spans", METRICS: "metrics", LOGS: "logs"}
INTERVAL_VARIABLE, DEFAULT_INTERVAL_MS = "OTEL_METRIC_EXPORT_INTERVAL", 60_000.0


class OtlpSink:
    """See `onelane.telemetry.sinks.Sink`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        signals = [signal for signal in SIGNALS if target_of(environment, signal) is not None]
        self._process = _ExporterProcess(signals, environment)
        limits = {
            TRACES: queue_limits_of(environment, "OTEL_BSP", max_items=MAX_QUEUED_SPANS, delay_s=1.0),
            LOGS: queue_limits_of(environment, "OTEL_BLRP", max_items=MAX_QUEUED_LOGS, delay_s=1.0),
        }
        self._queued = {
            signal: _QueuedSignal(signal, limits[signal], self._process) for signal in signals if signal != METRICS
        }
        self._metrics = _MetricsSignal(interval_s(environment), self._process) if METRICS in signals else None

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
            for signal, thread in self._queued.items()
            for reason, count in list(thread.queue.dropped.items())
        }

    def close(self, timeout_s: float) -> None:
        """Flush all signals in parallel; give up after `timeout_s`."""
        give_up_at = SystemClock.now() + timeout_s
        threads: list[_SignalThread] = [*self._queued.values(), *([self._metrics] if self._metrics else [])]
        for thread in threads:
            thread.finish()
        for thread in threads:
            thread.join(max(0.0, give_up_at - SystemClock.now()))
        self._process.end()
        for thread in threads:
            thread.join(1.0)
        self._process.close_sockets()
        for signal, queued in self._queued.items():
            if dropped := queued.queue.close():
                reason = queued.reason or "the collector did not take them before the timeout"
                log.warning("otlp.dropped signal=%s count=%d %s", SIGNAL_NAMES[signal], dropped, reason)


def interval_s(environment: Mapping[str, str]) -> float:
    """The export interval of metrics; an invalid one falls back to the default, as OpenTelemetry requires."""
    try:
        interval_ms = float(environment.get(INTERVAL_VARIABLE) or DEFAULT_INTERVAL_MS)
    except ValueError:
        interval_ms = 0.0
    if not 0.0 < interval_ms < float("inf"):
        log.warning(
            "otlp.interval %s is %r, expected milliseconds above 0", INTERVAL_VARIABLE, environment[INTERVAL_VARIABLE]
        )
        interval_ms = DEFAULT_INTERVAL_MS
    return interval_ms / 1000


class _ExporterProcess:
    """The exporter process and the socket of each signal. If the process dies, the next `export` restarts it."""

    def __init__(self, signals: Sequence[str], environment: Mapping[str, str]) -> None:
        self._signals = signals
        self._environment = for_exporter(os.environ | environment)
        self._instance = str(uuid.uuid4())
        self._started_ns = SystemClock.wall_ns()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: dict[str, socket.socket] = {}
        self._sockets_in_use: dict[str, socket.socket] = {}
        """Signal → the socket that its thread used last."""
        self._ended = False
        # Where the system starts no process now, the first `export` tries again, and tells the reason.
        with suppress(OSError):
            self._start()

    def export(self, signal: str, message: object) -> ExportResult:
        """Send one batch by the exporter process. Blocks until it answers."""
        try:
            sock = self._socket_for(signal)
        except OSError as error:
            return ExportResult(RETRY, f"the exporter process cannot be started: {error}")
        if sock is None:
            return ExportResult(RETRY, "the exporter process is closed")
        try:
            write_frame(sock, message)
            answer = read_frame(sock)
        except OSError:
            answer = None
        if answer is None:
            with self._lock:
                if self._sockets[signal] is sock:
                    self._stop_process()
            return ExportResult(RETRY, "the exporter process has died")
        return ExportResult(*answer)

    def _socket_for(self, signal: str) -> socket.socket | None:
        with self._lock:
            if self._ended:
                return None
            if self._process is None:
                self._start()
            sock = self._sockets[signal]
            if (stale := self._sockets_in_use.get(signal, sock)) is not sock:
                # Of a process that died since; only this thread reads it.
                stale.close()
            self._sockets_in_use[signal] = sock
            return sock

    def _start(self) -> None:
        """Start the process.

        Raises:
            OSError: the system starts no process now.
        """
        for signal, sock in self._sockets.items():
            if self._sockets_in_use.get(signal) is not sock:
                sock.close()
        with ExitStack() as on_failure, ExitStack() as remotes:
            pairs = {}
            for signal in self._signals:
                local, remote = pairs[signal] = socket.socketpair()
                on_failure.callback(local.close)
                remotes.callback(remote.close)
            self._process = self._start_process({signal: remote for signal, (_, remote) in pairs.items()})
            on_failure.pop_all()
        self._sockets = {signal: local for signal, (local, _) in pairs.items()}

    def _start_process(self, remotes: Mapping[str, socket.socket]) -> "subprocess.Popen[bytes]":
        descriptors = [f"{signal}={remote.fileno()}" for signal, remote in remotes.items()]
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "onelane.telemetry.sinks.otlp.exporter",
                self._instance,
                str(self._started_ns),
                *descriptors,
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[remote.fileno() for remote in remotes.values()],
            start_new_session=True,
            env=self._environment,
        )

    def _stop_process(self) -> None:
        """Kill the process if it still runs, and reap it. The caller holds the lock."""
        if self._process is None:
            return
        for sock in self._sockets.values():
            # Shut down, not closed: another signal's thread may be reading it, and closes it afterwards.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process = None

    def end(self) -> None:
        """Stop the process for good; a pending or later `export` returns `RETRY`."""
        with self._lock:
            self._ended = True
            self._stop_process()

    def close_sockets(self) -> None:
        """Close all sockets. Only after the threads of all signals have ended."""
        for sock in (*self._sockets.values(), *self._sockets_in_use.values()):
            sock.close()


class _SignalThread(ABC):
    """The thread that exports one signal."""

    def __init__(self, signal: str, process: _ExporterProcess) -> None:
        self._signal = signal
        self._process = process
        self._changed = threading.Condition()
        self._finishing = False
        self._is_healthy = True
        self.reason = ""
        """Why the last batch was not taken; empty where it was."""
        self._thread = threading.Thread(target=self._run, name=f"otlp-{signal.lower()}", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def finish(self) -> None:
        """Flush and end the thread."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    @abstractmethod
    def _run(self) -> None:
        """Export until `finish` is called."""

    def _export(self, message: object) -> ExportResult:
        """Export one batch. A change between success and failure is logged."""
        result = self._process.export(self._signal, message)
        self.reason = result.reason
        is_healthy = result.status == SENT and not result.rejected
        if not is_healthy and self._is_healthy and not self._finishing:
            effect = {SENT: "taken in part", RETRY: "queued and retried"}.get(result.status, "dropped")
            log.warning("otlp.failing signal=%s batches are %s: %s", SIGNAL_NAMES[self._signal], effect, result.reason)
        elif is_healthy and not self._is_healthy:
            log.info("otlp.recovered signal=%s", SIGNAL_NAMES[self._signal])
        self._is_healthy = is_healthy
        return result


class _QueuedSignal(_SignalThread):
    """Spans or logs: each item is sent, or counted as dropped."""

    def __init__(self, signal: str, limits: QueueLimits, process: _ExporterProcess) -> None:
        self.queue = ExportQueue(limits, Random())
        self._max_chunk_items = min(MAX_CHUNK_ITEMS, limits.batch_items)
        super().__init__(signal, process)

    def put(self, source: tuple[str, str], items: Sequence[T], pack: Callable[[Sequence[T]], bytes]) -> None:
        new_chunks = list(chunks(source, items, pack, self._max_chunk_items))
        with self._changed:
            due = self.queue.due_at()
            for chunk in new_chunks:
                self.queue.put(chunk, SystemClock.now())
            if due is None or self.queue.due_at() != due:
                self._changed.notify()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            result = self._export([(*chunk.source, chunk.packed) for chunk in batch])
            with self._changed:
                if result.status == SENT:
                    self.queue.acknowledge(SystemClock.now(), result.rejected)
                elif result.status == FAILED:
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
    """All series at an interval. Values are cumulative, so the next export makes up for a failed one."""

    def __init__(self, interval_s: float, process: _ExporterProcess) -> None:
        self.newest: Sequence[Point] = ()
        self._interval_s = interval_s
        super().__init__(METRICS, process)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                # Decided before the export: points that arrive during an export are sent by one more.
                is_last = self._changed.wait_for(lambda: self._finishing, self._interval_s)
            if self.newest:
                self._export(pack_points(self.newest))
