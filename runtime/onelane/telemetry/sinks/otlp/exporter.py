"""The process that sends OTLP: started by the OTLP sink.

Usage: `python -m onelane.telemetry.sinks.otlp.exporter INSTANCE STARTED_NS SIGNAL=FD…`

A process of its own, so that encoding takes no time of the supervisor's loop, and grpcio may be loaded. It has no
state: it answers each batch with an `ExportResult`, and ends when its sink closes the sockets.
"""

import gzip
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from onelane.core.clock import SystemClock
from onelane.telemetry.sinks.otlp.encode import Encoder
from onelane.telemetry.sinks.otlp.pipe import (
    FAILED,
    LOGS,
    METRICS,
    RETRY,
    SENT,
    TRACES,
    ExportResult,
    read_frame,
    unpack_points,
    write_frame,
)
from onelane.telemetry.sinks.otlp.queue import Chunk
from onelane.telemetry.sinks.otlp.target import Target, target_of

RETRYABLE_HTTP = frozenset({429, 502, 503, 504})
"""Retryable statuses by OTLP's specification; all other failures are permanent."""
RETRYABLE_GRPC = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
"""RESOURCE_EXHAUSTED too where the collector says that it may recover; see `_may_recover`."""
EXPORT_METHODS = {
    TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
EXPORT_RESPONSES: Mapping[str, tuple[type[Message], str]] = {
    TRACES: (trace_service_pb2.ExportTraceServiceResponse, "rejected_spans"),
    METRICS: (metrics_service_pb2.ExportMetricsServiceResponse, "rejected_data_points"),
    LOGS: (logs_service_pb2.ExportLogsServiceResponse, "rejected_log_records"),
}
"""Signal → the response message, and its field with the number of rejected items."""


class Sender(Protocol):
    """Sends one encoded request and waits for the response."""

    def send(self, request: bytes) -> ExportResult: ...


class HttpSender:
    """See `Sender`: a POST over a kept-alive connection."""

    def __init__(self, signal_name: str, target: Target) -> None:
        import requests

        self._signal = signal_name
        self._target = target
        self._session = requests.Session()
        self._session.headers.update(dict(target.headers))
        self._session.headers["content-type"] = "application/x-protobuf"
        if target.gzip:
            self._session.headers["content-encoding"] = "gzip"
        # Passed with each request: REQUESTS_CA_BUNDLE would override the session's setting.
        self._tls: dict[str, Any] = {"verify": target.ca} if target.ca else {}
        if target.cert:
            self._tls["cert"] = (target.cert, target.key) if target.key else target.cert
        self._unreachable = requests.RequestException

    def send(self, request: bytes) -> ExportResult:
        body = gzip.compress(request) if self._target.gzip else request
        try:
            # No redirects: a redirected POST becomes a GET, whose success would not mean that the items were taken.
            response = self._session.post(
                self._target.endpoint, data=body, timeout=self._target.timeout_s, allow_redirects=False, **self._tls
            )
        except self._unreachable as error:
            return ExportResult(RETRY, f"{type(error).__name__}: {error}")
        if 200 <= response.status_code < 300:
            return _result_of_response(self._signal, response.content)
        elsewhere = f" to {response.headers['location']}" if "location" in response.headers else ""
        status = RETRY if response.status_code in RETRYABLE_HTTP else FAILED
        return ExportResult(status, f"HTTP {response.status_code}{elsewhere}")


class GrpcSender:
    """See `Sender`: a unary call."""

    def __init__(self, signal_name: str, target: Target) -> None:
        import grpc

        def read(path: str | None) -> bytes | None:
            return None if path is None else open(path, "rb").read()

        if target.is_secure:
            credentials = grpc.ssl_channel_credentials(read(target.ca), read(target.key), read(target.cert))
            channel = grpc.secure_channel(target.endpoint, credentials)
        else:
            channel = grpc.insecure_channel(target.endpoint)
        self._signal = signal_name
        self._target = target
        self._export: Any = channel.unary_unary(EXPORT_METHODS[signal_name])
        self._failed = grpc.RpcError
        self._compression = grpc.Compression.Gzip if target.gzip else None

    def send(self, request: bytes) -> ExportResult:
        try:
            response = self._export(
                request,
                timeout=self._target.timeout_s,
                metadata=self._target.headers,
                compression=self._compression,
                wait_for_ready=True,
            )
        except self._failed as error:
            code = error.code().name
            status = RETRY if code in RETRYABLE_GRPC or _may_recover(error) else FAILED
            return ExportResult(status, f"{code}: {error.details()}")
        return _result_of_response(self._signal, response)


def sender_for(signal_name: str, target: Target) -> Sender:
    return (GrpcSender if target.protocol == "grpc" else HttpSender)(signal_name, target)


def _result_of_response(signal_name: str, body: bytes) -> ExportResult:
    """The result of a successful request, of which the collector may have rejected some items."""
    message_type, rejected_field = EXPORT_RESPONSES[signal_name]
    try:
        response: Any = message_type.FromString(body)
    except DecodeError:
        return ExportResult(SENT)
    partial = response.partial_success
    return ExportResult(SENT, partial.error_message, getattr(partial, rejected_field))


def _may_recover(error: Any) -> bool:
    """Whether the status has RetryInfo. Without it RESOURCE_EXHAUSTED is permanent, as for a message too large."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    try:
        return any(detail.Is(RetryInfo.DESCRIPTOR) for detail in Status.FromString(details).details)
    except DecodeError:
        return False


def serve(sock: socket.socket, signal_name: str, encoder: Encoder, sender: Sender) -> None:
    """Export each batch that arrives at `sock` until the sink closes it."""
    while (message := read_frame(sock)) is not None:
        try:
            request, left_out = _request(signal_name, encoder, message)
            result = sender.send(request)
            if left_out:
                reason = result.reason or f"{left_out} items of a batch cannot be encoded as OTLP"
                result = result._replace(reason=reason, rejected=result.rejected + left_out)
        except Exception as error:
            # A batch that fails in an unexpected way must not end the thread: the next one may succeed.
            result = ExportResult(FAILED, repr(error))
        write_frame(sock, tuple(result))


def _request(signal_name: str, encoder: Encoder, message: Any) -> tuple[bytes, int]:
    if signal_name == METRICS:
        return encoder.metrics(unpack_points(message), SystemClock.wall_ns())
    chunks = [Chunk((app, shard), packed, 0) for app, shard, packed in message]
    return encoder.traces(chunks) if signal_name == TRACES else encoder.logs(chunks)


def main(instance: str, started_ns: str, *sockets: str) -> None:
    """sockets: SIGNAL=FD of each signal."""
    # A terminal's Ctrl-C reaches this process too. Only the supervisor ends it, by closing the sockets.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    encoder = Encoder(instance, int(started_ns))
    threads = []
    for name, _, fd in (argument.partition("=") for argument in sockets):
        target = target_of(os.environ, name)
        assert target is not None
        arguments = (socket.socket(fileno=int(fd)), name, encoder, sender_for(name, target))
        threads.append(threading.Thread(target=serve, args=arguments, name=f"otlp-{name.lower()}"))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
