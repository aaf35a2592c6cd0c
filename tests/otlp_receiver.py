"""OTLP receivers, by HTTP and by gRPC, that keep each request; they can be away for a while."""

import gzip
import ssl
import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self

import grpc
import trustme
from google.protobuf import any_pb2
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class OtlpReceiver(ABC):
    """What was received. `environment` is what sends OTLP here."""

    protocol = ""
    url = ""

    def __init__(self) -> None:
        self.metrics: list[metrics_service_pb2.ExportMetricsServiceRequest] = []
        self.traces: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.logs: list[logs_service_pb2.ExportLogsServiceRequest] = []
        self.is_away = False
        """Answer that it cannot be had now."""
        self.rejects = 0
        """Say of each batch that so many of its items were not taken."""
        self.refusals = 0
        self.headers: dict[str, str] = {}
        """Of the last request, names in lower case."""

    @property
    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol}

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    def sum(self, name: str, **attributes: str) -> float:
        """The sum of a counter over all resources, as of the last export."""
        total = 0.0
        for resource in self.metrics[-1].resource_metrics:
            for metric in resource.scope_metrics[0].metrics:
                for point in metric.sum.data_points if metric.name == name else ():
                    labels = {a.key: a.value.string_value for a in point.attributes}
                    total += point.as_double + point.as_int if attributes.items() <= labels.items() else 0
        return total

    def spans(self) -> list[Any]:
        return [
            span
            for request in list(self.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class HttpReceiver(OtlpReceiver):
    """By HTTP, on a free loopback port while it is entered, or on one that is named."""

    protocol = "http/protobuf"

    def __init__(self, port: int = 0, *, keeps: bool = True, cert: trustme.LeafCert | None = None) -> None:
        """keeps: what is sent; else it is counted alone. cert: serve over TLS with it."""
        super().__init__()
        self.requests = 0
        self.answer = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests += 1
                collector.headers = {name.lower(): value for name, value in self.headers.items()}
                if collector.is_away or collector.answer != 200:
                    collector.refusals += 1
                    self.send_response(503 if collector.is_away else collector.answer)
                    if 300 <= collector.answer < 400:
                        self.send_header("Location", f"{collector.url}/elsewhere")
                    self.end_headers()
                    return
                if not keeps:
                    pass
                elif self.path.endswith("/v1/metrics"):
                    collector.metrics.append(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
                elif self.path.endswith("/v1/logs"):
                    collector.logs.append(logs_service_pb2.ExportLogsServiceRequest.FromString(body))
                else:
                    collector.traces.append(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()
                # The same field by number for all signals.
                partial = trace_service_pb2.ExportTracePartialSuccess(rejected_spans=collector.rejects)
                self.wfile.write(
                    trace_service_pb2.ExportTraceServiceResponse(partial_success=partial).SerializeToString()
                    if collector.rejects
                    else b""
                )

            def do_GET(self) -> None:
                """Nothing that OTLP asks for; a redirected POST becomes one."""
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if cert is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            cert.configure_cert(context)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if cert else 'http'}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        # How often it looks whether it is to end.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Context(Protocol):
    def invocation_metadata(self) -> Any: ...

    def set_trailing_metadata(self, metadata: Any) -> None: ...

    def abort(self, code: grpc.StatusCode, details: str) -> Any: ...


class GrpcReceiver(OtlpReceiver):
    """By gRPC."""

    protocol = "grpc"

    def __init__(self, *, cert: trustme.LeafCert | None = None) -> None:
        super().__init__()
        self.recovers: bool | None = None
        """Answer that its resources are exhausted: for a while, or for good."""
        self._server = grpc.server(ThreadPoolExecutor(3))
        if cert is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems)
            credentials = grpc.ssl_server_credentials([(cert.private_key_pem.bytes(), chain)])
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.url = f"{'https' if cert else 'http'}://127.0.0.1:{port}"

        def keep(requests: list[Any], answer: Any, rejected: str) -> Any:
            def export(request: Any, context: _Context) -> Any:
                self.headers = dict(context.invocation_metadata())
                if self.is_away:
                    self.refusals += 1
                    context.abort(grpc.StatusCode.UNAVAILABLE, "away")
                if self.recovers is not None:
                    self.refusals += 1
                    if self.recovers:
                        details = Status(code=8, details=[any_pb2.Any()])
                        details.details[0].Pack(RetryInfo())
                        context.set_trailing_metadata((("grpc-status-details-bin", details.SerializeToString()),))
                    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
                requests.append(request)
                response = answer()
                if self.rejects:
                    setattr(response.partial_success, rejected, self.rejects)
                return response

            return export

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            Export = staticmethod(keep(self.traces, trace_service_pb2.ExportTraceServiceResponse, "rejected_spans"))

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            Export = staticmethod(
                keep(self.metrics, metrics_service_pb2.ExportMetricsServiceResponse, "rejected_data_points")
            )

        class Logs(logs_service_pb2_grpc.LogsServiceServicer):
            Export = staticmethod(keep(self.logs, logs_service_pb2.ExportLogsServiceResponse, "rejected_log_records"))

        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), self._server)  # type: ignore[no-untyped-call]
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), self._server)  # type: ignore[no-untyped-call]
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), self._server)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
