"""The endpoint, TLS and headers of each OTLP signal, by OpenTelemetry's `OTEL_EXPORTER_OTLP_*` variables.

Source: OpenTelemetry's specification, "OpenTelemetry Protocol Exporter", configuration options.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from onelane.core import redaction
from onelane.errors import BadConfig
from onelane.secret_files import read_secret
from onelane.telemetry.sinks.otlp.pipe import LOGS, METRICS, TRACES

PROTOCOLS = ("http/protobuf", "grpc")
PATHS = {TRACES: "v1/traces", METRICS: "v1/metrics", LOGS: "v1/logs"}
SIGNALS = tuple(PATHS)


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how one signal is exported."""

    protocol: str
    endpoint: str
    """A URL; for gRPC, host:port."""
    is_secure: bool
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    timeout_s: float
    gzip: bool
    ca: str | None
    """Path of a PEM file; so are the next two."""
    cert: str | None
    key: str | None


def target_of(environment: Mapping[str, str], signal: str) -> Target | None:
    """The target of `signal`: TRACES, METRICS or LOGS; None where it is not exported.

    Raises:
        BadConfig: a variable has an invalid value.
    """

    def variable(name: str) -> str:
        prefix = "OTEL_EXPORTER_OTLP_"
        return environment.get(f"{prefix}{signal}_{name}") or environment.get(f"{prefix}{name}") or ""

    def headers() -> str:
        for name in (f"OTEL_EXPORTER_OTLP_{signal}_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"):
            if text := environment.get(name):
                return text
            if path := environment.get(f"{name}_FILE"):
                return ",".join(read_secret(path, name=f"{name}_FILE").splitlines())
        return ""

    signal_endpoint = environment.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    endpoint = variable("ENDPOINT")
    if not endpoint or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environment.get(f"OTEL_{signal}_EXPORTER", "otlp") == "none":
        return None
    protocol = variable("PROTOCOL") or PROTOCOLS[0]
    if protocol not in PROTOCOLS:
        raise _bad_variable("PROTOCOL", protocol, f"one of {', '.join(PROTOCOLS)}")
    compression = variable("COMPRESSION") or "none"
    if compression not in ("none", "gzip"):
        raise _bad_variable("COMPRESSION", compression, "none or gzip")
    url = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    if protocol == "grpc":
        is_secure = url.scheme == "https" or (not url.scheme and variable("INSECURE").lower() != "true")
        if not url.netloc:
            raise _bad_variable("ENDPOINT", endpoint, "http://host:port or host:port")
        endpoint = url.netloc
    else:
        if url.scheme not in ("http", "https") or not url.netloc:
            raise _bad_variable("ENDPOINT", endpoint, "http://host:port or https://host:port")
        is_secure = url.scheme == "https"
        endpoint = signal_endpoint or f"{endpoint.rstrip('/')}/{PATHS[signal]}"
    return Target(
        protocol,
        endpoint,
        is_secure,
        _headers(headers()),
        _timeout_s(variable("TIMEOUT")),
        compression == "gzip",
        variable("CERTIFICATE") or None,
        variable("CLIENT_CERTIFICATE") or None,
        variable("CLIENT_KEY") or None,
    )


def _headers(text: str) -> tuple[tuple[str, str], ...]:
    if not text:
        return ()
    from opentelemetry.util.re import parse_env_headers

    return tuple(parse_env_headers(text, liberal=True).items())


def _timeout_s(text: str) -> float:
    """OpenTelemetry's Python exporters take seconds where the specification says milliseconds; so do we."""
    try:
        return float(text) if text else 10.0
    except ValueError:
        raise _bad_variable("TIMEOUT", text, "seconds") from None


def _bad_variable(name: str, value: str, expected: str) -> BadConfig:
    seen = redaction.without_user(value)
    return BadConfig("environment", [f"OTEL_EXPORTER_OTLP_{name} is {seen!r}, expected {expected}"])
