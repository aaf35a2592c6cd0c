"""The target of each signal, by OpenTelemetry's standard variables."""

import re

import pytest
from onelane.errors import BadConfig
from onelane.telemetry.sinks.otlp.pipe import LOGS, TRACES
from onelane.telemetry.sinks.otlp.target import target_of


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "is 'http/json', expected one of http/protobuf, grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "is 'zstd', expected none or gzip"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318", "is '127.0.0.1:4318', expected http://"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "is 'soon', expected seconds"),
    ],
)
def test_an_invalid_variable_is_refused_by_name(variable: str, value: str, message: str) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} | {variable: value}
    with pytest.raises(BadConfig, match=f"{variable} {re.escape(message)}"):
        target_of(environment, TRACES)


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}],
)
def test_traces_are_exported_only_where_the_standard_variables_enable_it(environment: dict[str, str]) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} if environment else {}
    assert target_of(endpoint | environment, TRACES) is None


def test_a_signal_can_have_a_target_of_its_own() -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://all:4318/base/",
        "OTEL_EXPORTER_OTLP_HEADERS": "Api-Key=a%20b,x=y",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://logs:4317",
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "gzip",
    }
    traces, logs = target_of(environment, TRACES), target_of(environment, LOGS)
    assert traces is not None
    assert logs is not None
    assert (traces.endpoint, traces.is_secure, traces.gzip) == ("https://all:4318/base/v1/traces", True, False)
    assert traces.headers == (("api-key", "a b"), ("x", "y"))
    assert (logs.protocol, logs.endpoint, logs.is_secure, logs.gzip) == ("grpc", "logs:4317", False, True)
