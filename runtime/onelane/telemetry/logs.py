"""Log records with their trace and shard: as text, as JSON, and buffered for an exporter.

`ONELANE_LOGS=json` writes one JSON object per line. Where logs are exported by OTLP, each shard appends its records to
a plain list that the tick takes out like spans; the list is bounded, and dropped records are counted.
"""

import logging
import marshal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from onelane.core.context import bound_shard_name, current_trace
from onelane.core.printable import escaped
from onelane.errors import BadConfig
from onelane.telemetry.values import plain_tree

FORMAT_VARIABLE = "ONELANE_LOGS"
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s%(onelane_trace)s"
MAX_BUFFERED_RECORDS = 5_000
"""Records that wait for the tick; further ones are dropped and counted."""
SEVERITIES = ((logging.CRITICAL, 21), (logging.ERROR, 17), (logging.WARNING, 13), (logging.INFO, 9), (logging.DEBUG, 5))
"""Python's levels and OpenTelemetry's severity numbers."""


class LogRecord(NamedTuple):
    """One log record, as built-in types."""

    at_ns: int
    """Nanoseconds since the Unix epoch."""
    severity: int
    """OpenTelemetry's severity number, 1 to 24."""
    level: str
    logger: str
    text: str
    trace_id: str
    """Empty outside a trace, as is `span_id`."""
    span_id: str
    attributes: dict[str, str]


def pack_logs(records: Sequence[LogRecord]) -> bytes:
    """A batch as bytes for another process of the same Python; see `spans.pack_spans`."""
    rows = [tuple(record) for record in records]
    try:
        return marshal.dumps(rows)
    except ValueError:
        # marshal refuses subclasses, of str for example. One odd record must not drop the whole batch.
        return marshal.dumps(plain_tree(rows))


def unpack_logs(packed: bytes) -> list[LogRecord]:
    return [LogRecord(*row) for row in marshal.loads(packed)] if packed else []


class LogBuffer(logging.Handler):
    """Buffers log records until `take`. Any thread may log: a list's `append` is atomic."""

    def __init__(self, shard: str) -> None:
        """shard: buffer the records of this shard; "" for records of no shard."""
        super().__init__()
        self.addFilter(lambda record: getattr(record, "onelane_shard", "") == shard)
        self._records: list[LogRecord] = []
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._records) < MAX_BUFFERED_RECORDS:
            try:
                self._records.append(_log_record_of(record))
            except Exception:
                # As the standard library's handlers do: a bad record must not raise in the code that logs it.
                self.handleError(record)
        else:
            self.dropped += 1

    def take(self) -> list[LogRecord]:
        """Remove and return the records."""
        records = self._records[:]
        # Not a swap of lists: another thread may append to this one meanwhile.
        del self._records[: len(records)]
        return records


def _log_record_of(record: logging.LogRecord) -> LogRecord:
    fields = record.__dict__
    trace_id, span_id = fields.get("otelTraceID", "0"), fields.get("otelSpanID", "0")
    attributes = {"code.file.path": record.pathname, "code.line.number": str(record.lineno)}
    if record.exc_info and record.exc_info[0] is not None:
        attributes |= {
            "exception.type": record.exc_info[0].__qualname__,
            "exception.message": _message_of(record.exc_info[1]),
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


def _message_of(error: BaseException | None) -> str:
    try:
        return str(error)
    except BaseException:
        # Whatever a service raises is logged, and the log call may raise nothing.
        return f"<{type(error).__qualname__} without a text>"


def format_of(environment: Mapping[str, str]) -> str:
    """ "text" or "json".

    Raises:
        BadConfig: the variable names an unknown format.
    """
    kind = environment.get(FORMAT_VARIABLE, "text")
    if kind not in ("text", "json"):
        raise BadConfig("environment", [f"{FORMAT_VARIABLE} is {kind!r}, expected 'text' or 'json'"])
    return kind


def install(environment: Mapping[str, str], *, stream: TextIO | None = None) -> None:
    """Configure logging of this process in the format that `ONELANE_LOGS` names.

    Raises:
        BadConfig: the variable names an unknown format.
    """
    kind = format_of(environment)
    logging.setLogRecordFactory(_record_factory(logging.getLogRecordFactory()))
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_json_formatter() if kind == "json" else _TextFormatter(TEXT_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _TextFormatter(logging.Formatter):
    """One line for each record, and below it the lines of its traceback, indented.

    Clients and services choose parts of both: without this they could write lines that look like records, and control
    the terminal of their reader.
    """

    def format(self, record: logging.LogRecord) -> str:
        # Not the base class's: it takes the text that another handler's formatter has made of the traceback.
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        lines = [escaped(self.formatMessage(record))]
        if record.exc_info:
            lines += _indented(self.formatException(record.exc_info))
        if record.stack_info:
            lines += _indented(self.formatStack(record.stack_info))
        return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"    {escaped(line)}" for line in text.split("\n")]


def _json_formatter() -> logging.Formatter:
    # Imported here, because only the JSON format needs it.
    from pythonjsonlogger.json import JsonFormatter

    class Json(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return {
                name: value
                for name, value in log_data.items()
                if name not in _OMITTED_IF_EMPTY or value not in ("", "0")
            }

    return Json(
        "%(levelname)s %(name)s %(message)s %(onelane_shard)s %(otelTraceID)s %(otelSpanID)s",
        rename_fields=_JSON_NAMES,
        timestamp="time",
        reserved_attrs=[*_STANDARD_ATTRIBUTES, "message", "asctime", "onelane_trace"],
    )


_JSON_NAMES = {
    "levelname": "level",
    "name": "logger",
    "onelane_shard": "shard",
    "otelTraceID": "trace_id",
    "otelSpanID": "span_id",
}
_STANDARD_ATTRIBUTES = logging.LogRecord("", 0, "", 0, "", None, None).__dict__
_OMITTED_IF_EMPTY = frozenset({"shard", "trace_id", "span_id"})


def _record_factory(base: Any) -> Any:
    """A factory of log records with their shard and trace: `otelTraceID` and `otelSpanID`, "0" outside a trace."""

    def new_record(*args: Any, **kwargs: Any) -> Any:
        record: Any = base(*args, **kwargs)
        trace = current_trace()
        record.otelTraceID = trace.trace_id if trace is not None and trace.trace_id else "0"
        record.otelSpanID = trace.span_id if trace is not None and trace.span_id else "0"
        record.onelane_trace = f" trace={record.otelTraceID}" if record.otelTraceID != "0" else ""
        record.onelane_shard = bound_shard_name()
        return record

    return new_record
