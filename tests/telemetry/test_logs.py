"""Log records carry their shard and trace, as text, as JSON and in the buffer for an exporter."""

import json
import logging
import subprocess
import sys
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.telemetry.logs import MAX_BUFFERED_RECORDS, LogBuffer, pack_logs, unpack_logs

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import running

LOGGING = """
import logging, os
from onelane.core import context
from onelane.telemetry import logs
logs.install(os.environ)
context.bind_shard(context.ShardBinding("lobby-0", None, None), whole_process=True)
log = logging.getLogger("rooms")
log.warning("room %s is full", "r", extra={"players": 7})
try:
    raise ValueError("odd")
except ValueError:
    log.exception("failed")
"""


def test_json_logs_have_an_object_a_line_with_the_shard() -> None:
    command = [sys.executable, "-c", LOGGING]
    run = subprocess.run(command, env={"ONELANE_LOGS": "json"} | _path(), capture_output=True, text=True, check=True)
    full, failed = (json.loads(line) for line in run.stderr.splitlines())
    time = full.pop("time")
    assert time.endswith("+00:00")
    assert full == {
        "level": "WARNING",
        "logger": "rooms",
        "message": "room r is full",
        "shard": "lobby-0",
        "players": 7,
    }
    assert "ValueError: odd" in failed["exc_info"]


HOSTILE = """
import logging, os
from onelane.telemetry import logs
logs.install(os.environ)
forged = "odd\\n2026-01-01 00:00:00,000 ERROR onelane.supervisor forged\\r\\x1b]0;owned\\x07\\x9b2J\\u2028\\u202e"
try:
    raise ValueError(forged)
except ValueError as error:
    logging.getLogger(forged).error("%s", error, exc_info=True, stack_info=True)
"""


@pytest.mark.parametrize("format_name", ["text", "json"])
def test_no_text_of_an_exception_can_look_like_a_record_or_control_a_terminal(format_name: str) -> None:
    command = [sys.executable, "-c", HOSTILE]
    environment = {"ONELANE_LOGS": format_name, "PYTHONUTF8": "1"} | _path()
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    record, *traceback = run.stderr.rstrip("\n").split("\n")
    assert "forged" in record
    assert "".join([record, *traceback]).isprintable()
    assert [line for line in traceback if not line.startswith("    ")] == []
    assert bool(traceback) == (format_name == "text")


def test_an_unknown_format_of_logs_is_refused() -> None:
    command = [sys.executable, "-m", "onelane", "up", "nowhere.toml"]
    run = subprocess.run(command, env={"ONELANE_LOGS": "xml"} | _path(), capture_output=True, text=True, check=False)
    assert run.returncode == 3
    assert "nowhere.toml" in run.stderr or "ONELANE_LOGS is 'xml', expected 'text' or 'json'" in run.stderr


def _path() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}


@pytest.mark.slow
async def test_a_handlers_json_log_has_the_trace_of_its_call(tmp_path: Any) -> None:
    trace_id = "7af7651916cd43dd8448eb211c80319c"
    toml = '[apps.echo]\nservices = ["tests.echo.service:Echo"]\nlisten = "127.0.0.1:0"\nshards = 1'
    with running(tmp_path, toml, ONELANE_LOGS="json") as app:
        metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
        async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
            request = EchoRequest(key="k", order="raise odd")
            call = echo_pb2_grpc.EchoStub(channel).Misbehave(request, metadata=metadata, timeout=BOUND_S)
            assert await call.code() is grpc.StatusCode.INTERNAL
        lines = [json.loads(line) for line in app.log.read_text().splitlines()]
    (line_of_call,) = [line for line in lines if line.get("trace_id") == trace_id]
    assert (line_of_call["shard"], line_of_call["level"]) == ("echo-0", "ERROR")
    assert "ValueError: odd" in line_of_call["exc_info"]


def test_a_subclass_of_str_spoils_no_batch_of_records() -> None:
    class Markup(str):
        pass

    buffer = LogBuffer("")
    for name in (Markup("bold"), "usual"):
        buffer.handle(logging.LogRecord(name, logging.INFO, "x.py", 1, "said", None, None))
    assert [record.logger for record in unpack_logs(pack_logs(buffer.take()))] == ["bold", "usual"]


def test_a_record_that_cannot_be_formatted_raises_nothing_in_the_code_that_logs() -> None:
    buffer = LogBuffer("")
    buffer.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, "%d items", ("many",), None))
    assert buffer.take() == []


def logged(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("rooms", level, "rooms.py", 7, text, None, None)


def test_a_buffer_takes_the_records_of_its_shard_alone_and_each_once() -> None:
    buffer, of_supervisor = LogBuffer("lobby-0"), LogBuffer("")
    for shard in ("lobby-0", "lobby-1", ""):
        record = logged(f"from {shard}")
        record.onelane_shard = shard
        buffer.handle(record)
        of_supervisor.handle(record)
    assert [record.text for record in buffer.take()] == ["from lobby-0"]
    assert [record.text for record in of_supervisor.take()] == ["from "]
    assert buffer.take() == []


def test_a_buffer_is_bounded_and_dropped_records_are_counted() -> None:
    buffer = LogBuffer("")
    for number in range(MAX_BUFFERED_RECORDS + 3):
        buffer.handle(logged(str(number)))
    assert [record.text for record in buffer.take()] == [str(number) for number in range(MAX_BUFFERED_RECORDS)]
    assert buffer.dropped == 3


@pytest.mark.parametrize(
    ("level", "severity"),
    [(5, 1), (logging.DEBUG, 5), (logging.INFO, 9), (25, 9), (logging.WARNING, 13), (logging.ERROR, 17), (50, 21)],
)
def test_a_level_has_the_severity_number_of_opentelemetry(level: int, severity: int) -> None:
    buffer = LogBuffer("")
    buffer.handle(logged("x", level))
    (record,) = unpack_logs(pack_logs(buffer.take()))
    assert record.severity == severity


def test_a_buffered_record_has_its_place_its_trace_and_its_exception() -> None:
    buffer, record = LogBuffer(""), logged("lost")
    record.otelTraceID, record.otelSpanID = "a" * 32, "b" * 16
    try:
        raise KeyError("room")
    except KeyError:
        record.exc_info = sys.exc_info()
    buffer.handle(record)
    (buffered,) = buffer.take()
    assert (buffered.trace_id, buffered.span_id, buffered.at_ns) == ("a" * 32, "b" * 16, int(record.created * 1e9))
    stack = buffered.attributes.pop("exception.stacktrace")
    assert "test_a_buffered_record_has_its_place" in stack
    assert buffered.attributes == {
        "code.file.path": "rooms.py",
        "code.line.number": "7",
        "exception.type": "KeyError",
        "exception.message": "'room'",
    }
