"""Log records with the trace and the shard they belong to: as text, as JSON, and moved out for an exporter.

`ONELANE_LOGS=json` writes one JSON object a line. Where OTLP is asked for logs, each shard appends its records to a
plain list that the tick moves out like spans; the list is bounded, and what does not fit is counted.
"""

import logging
import marshal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from onelane.core.context import bound_shard_name, current_trace
from onelane.errors import BadConfig
from onelane.telemetry.values import whole

VARIABLE = "ONELANE_LOGS"
TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s%(onelane_trace)s"
MAX_WAITING = 5_000
"""Records that wait for the tick."""
SEVERITIES = ((logging.CRITICAL, 21), (logging.ERROR, 17), (logging.WARNING, 13), (logging.INFO, 9), (logging.DEBUG, 5))
"""Python's levels and OpenTelemetry's numbers."""


class LogRecord(NamedTuple):
    """One record, as plain values."""

    at_ns: int
    """Nanoseconds since the Unix epoch."""
    severity: int
    """OpenTelemetry's number, 1 to 24."""
    level: str
    logger: str
    text: str
    trace_id: str
    """Empty outside of a trace; so is the next."""
    span_id: str
    attributes: dict[str, str]


def pack(records: Sequence[LogRecord]) -> bytes:
    """A batch as bytes for another process of the same Python; see `spans.pack`."""
    rows = [tuple(record) for record in records]
    try:
        return marshal.dumps(rows)
    except ValueError:
        # A text of a class of its own, say; the others are not to suffer for it.
        return marshal.dumps(whole(rows))


def unpack(packed: bytes) -> list[LogRecord]:
    return [LogRecord(*row) for row in marshal.loads(packed)] if packed else []


class MovedLogs(logging.Handler):
    """Keeps what is logged until it is moved out. Any thread may log; a list's `append` is one step."""

    def __init__(self, shard: str) -> None:
        """shard: whose records it keeps; "" for those of no shard."""
        super().__init__()
        self.addFilter(lambda record: getattr(record, "onelane_shard", "") == shard)
        self._waiting: list[LogRecord] = []
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) < MAX_WAITING:
            try:
                self._waiting.append(_plain(record))
            except Exception:
                # As the handlers of the standard library do: whoever logs is not to fail by it.
                self.handleError(record)
        else:
            self.dropped += 1

    def take(self) -> list[LogRecord]:
        """Move the records out."""
        taken = self._waiting[:]
        # Not a swap: another thread may be appending to this very list.
        del self._waiting[: len(taken)]
        return taken


def _plain(record: logging.LogRecord) -> LogRecord:
    there = record.__dict__
    trace_id, span_id = there.get("otelTraceID", "0"), there.get("otelSpanID", "0")
    attributes = {"code.file.path": record.pathname, "code.line.number": str(record.lineno)}
    if record.exc_info and record.exc_info[0] is not None:
        attributes |= {
            "exception.type": record.exc_info[0].__qualname__,
            "exception.message": str(record.exc_info[1]),
            "exception.stacktrace": "".join(traceback.format_exception(*record.exc_info)),
        }
    return LogRecord(
        int(record.created * 1e9),
        next((number for level, number in SEVERITIES if record.levelno >= level), 1),
        record.levelname,
        record.name,
        record.getMessage(),
        "" if trace_id == "0" else trace_id,
        "" if span_id == "0" else span_id,
        attributes,
    )


def install(environment: Mapping[str, str], *, stream: TextIO | None = None) -> None:
    """Have this process log as `ONELANE_LOGS` says.

    Raises:
        BadConfig: the variable names no format.
    """
    kind = environment.get(VARIABLE, "text")
    if kind not in ("text", "json"):
        raise BadConfig("environment", [f"{VARIABLE} is {kind!r}, expected 'text' or 'json'"])
    logging.setLogRecordFactory(_traced(logging.getLogRecordFactory()))
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_json() if kind == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _json() -> logging.Formatter:
    # Only where it is asked for.
    from pythonjsonlogger.json import JsonFormatter

    class Json(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in log_data.items() if name not in _ABSENT or value not in ("", "0")}

    return Json(
        "%(levelname)s %(name)s %(message)s %(onelane_shard)s %(otelTraceID)s %(otelSpanID)s",
        rename_fields=_NAMES,
        timestamp="time",
        reserved_attrs=[*_USUAL, "message", "asctime", "onelane_trace"],
    )


_NAMES = {
    "levelname": "level",
    "name": "logger",
    "onelane_shard": "shard",
    "otelTraceID": "trace_id",
    "otelSpanID": "span_id",
}
_USUAL = logging.LogRecord("", 0, "", 0, "", None, None).__dict__
_ABSENT = frozenset({"shard", "trace_id", "span_id"})


def _traced(make: Any) -> Any:
    """A maker of log records that carry their shard and trace: `otelTraceID` and `otelSpanID`, "0" outside of one."""

    def record(*args: Any, **kwargs: Any) -> Any:
        made: Any = make(*args, **kwargs)
        found = current_trace()
        made.otelTraceID = found.trace_id if found is not None and found.trace_id else "0"
        made.otelSpanID = found.span_id if found is not None and found.span_id else "0"
        made.onelane_trace = f" trace={made.otelTraceID}" if made.otelTraceID != "0" else ""
        made.onelane_shard = bound_shard_name()
        return made

    return record
