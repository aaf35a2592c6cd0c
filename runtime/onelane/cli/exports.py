"""What the file and the environment ask to record and to export: sinks, and the signals of the shards."""

from collections.abc import Callable, Mapping

from onelane.config import Config
from onelane.errors import located
from onelane.plugins import load_plugin
from onelane.supervisor.shared_resources import TelemetryOptions
from onelane.telemetry.sampling import RATE_LIMITED
from onelane.telemetry.sinks import Sink
from onelane.telemetry.sinks.otlp.pipe import LOGS, TRACES
from onelane.telemetry.sinks.otlp.target import SIGNALS, target_of


def sinks(configuration: Config, environment: Mapping[str, str]) -> list[Sink]:
    """The sinks that the file names, and OTLP where the `OTEL_*` variables ask for it. Raises as `sink_types`."""
    return [make(environment) for make in sink_types(configuration, environment)]


def sink_types(configuration: Config, environment: Mapping[str, str]) -> list[Callable[[Mapping[str, str]], Sink]]:
    """The plugins that make these sinks.

    Raises:
        BadConfig: a variable has an invalid value.
        BadService: a sink is not installed.
    """
    exports = any(target_of(environment, signal) for signal in SIGNALS)
    with located("sinks"):
        return [load_plugin("onelane.sinks", name) for name in [*configuration.sinks, *(["otlp"] if exports else [])]]


def telemetry_options(environment: Mapping[str, str]) -> TelemetryOptions:
    """The signals that shards record. Without an exporter of traces, a few are recorded for the admin page."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    default_sampler = "" if target_of(environment, TRACES) is not None else RATE_LIMITED
    return TelemetryOptions(
        traces=not disabled,
        sampler=environment.get("OTEL_TRACES_SAMPLER", default_sampler),
        sampler_arg=environment.get("OTEL_TRACES_SAMPLER_ARG", ""),
        logs=target_of(environment, LOGS) is not None,
    )
