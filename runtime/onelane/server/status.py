"""The status of a call that fails: the one place where an error turns into a status.

Promises: whatever leaves a handler, the call has a status, and no error of its own leaves this file; the text of an
exception that is not ours stays in our log; a failure is one log record, with the method and the line of the service.
"""

import asyncio
import logging
import secrets
from contextlib import suppress
from math import ceil
from typing import Any

import grpc
import grpc.aio

from onelane.core.backoff import PUSHBACK
from onelane.errors import Misuse, OnelaneError, Refused
from onelane.server import arguments, user_code
from onelane.server.arguments import BadHandler
from onelane.server.call import OK, Aborted, Call
from onelane.server.methods import Method

log = logging.getLogger("onelane.call")


def failed(call: Call, error: BaseException, *, method: Method, shard: str) -> None:
    """Give `call` the status of an exception, of any class: a handler may also raise SystemExit, or the BaseException
    of an extension. None of them may reach the event loop or the connection, which other calls use."""
    try:
        _give_status(call, error, method, shard)
    except BaseException as second_error:
        # A `status` that does not exist, a `__str__` that raises, metadata that cannot be sent, a handler of `logging`.
        second_error.__context__ = error
        with suppress(BaseException):
            _unexpected(call, second_error, method, shard, line=_line_of(error, method))


def _give_status(call: Call, error: BaseException, method: Method, shard: str) -> None:
    match error:
        case _ if call.is_aborted and _is_abort(error):
            # The handler has chosen the status itself.
            return
        case OnelaneError() | grpc.aio.AioRpcError() | asyncio.CancelledError() if call.is_aborted:
            _raised_after_status(call, error, method, shard)
        case Misuse() if error.status == Misuse.status:
            _unexpected(call, error, method, shard)
        case OnelaneError():
            code = grpc.StatusCode[error.status]
            call.fail(grpc.StatusCode.UNKNOWN if code is OK else code, arguments.details(str(error), call.method))
            if isinstance(error, Refused):
                pushback = (PUSHBACK, str(ceil(error.pushback_s * 1000)))
                call.trailers = (*call.trailers, pushback)
        case asyncio.CancelledError():
            # It leaked from inside the handler: grpc.aio would send no status at all, and the client wait for ever.
            call.fail(grpc.StatusCode.INTERNAL, "the handler was cancelled from inside")
            line = _line_of(error, method)
            log.error("call.leaked_cancellation method=%s shard=%s at=%s", method.name, shard, line, exc_info=error)
        case grpc.aio.AioRpcError():
            _pass_on(call, error)
        case NotImplementedError() if call.code_now is not OK:
            # As the methods of gRPC's generated base classes do.
            log.info("call.raised_after_status method=%s shard=%s code=%s", method.name, shard, call.code_now.name)
        case _ if call.code_now is not OK:
            _raised_after_status(call, error, method, shard)
        case _:
            _unexpected(call, error, method, shard)


def _raised_after_status(call: Call, error: BaseException, method: Method, shard: str) -> None:
    log.warning(
        "call.raised_after_status method=%s shard=%s code=%s at=%s error=%s",
        *(method.name, shard, call.code_now.name, _line_of(error, method), user_code.summary(error)),
    )


def cut_off(shard: str) -> tuple[grpc.StatusCode, str]:
    """The status of a call that its shard ends because it shuts down."""
    return grpc.StatusCode.UNAVAILABLE, f"shard {shard} has shut down before the answer was ready"


def settle(call: Call, error: BaseException, *, method: Method, shard: str, draining: bool) -> bool:
    """Give `call` the status of what ended its task; whether `error` must go on: a cancellation from outside.

    draining: the shard shuts down, and cancels the calls that have not ended in time.
    """
    if isinstance(error, asyncio.CancelledError) and _is_from_outside(call, draining=draining):
        cancelled(call, shard=shard, draining=draining)
        return True
    failed(call, error, method=method, shard=shard)
    if call.early_status is not None:
        # Its client has been told that one.
        call.fail(*call.early_status)
    return False


def _is_from_outside(call: Call, *, draining: bool) -> bool:
    """Whether a CancelledError is not its handler's own doing."""
    if call.early_status is not None:
        return True
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return False
    # A handler can cancel its own task as well, which few listeners can tell from the others.
    return draining or call.is_cancelled or not call.tells_cancellation


def cancelled(call: Call, *, shard: str, draining: bool) -> None:
    """Give `call` the status of one that was cancelled from outside: what its client is told, where it hears of it."""
    if call.early_status is not None:
        call.fail(*call.early_status)
    elif call.time_remaining() == 0:
        call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the answer was ready")
    elif draining and not call.is_cancelled_by_client:
        call.fail(*cut_off(shard))
    else:
        call.fail(grpc.StatusCode.CANCELLED, "cancelled by the client")
    # Its handler has chosen no status: it was ended in the middle of its work.
    call.end_early(call.code_now, call.details_now)


def _unexpected(call: Call, error: BaseException, method: Method, shard: str, *, line: str = "") -> None:
    """The status of an error that no handler should raise. The client is told how to find it in the log; its text only
    where that is ours. line: of the service to look at, if not where the error was raised."""
    error_id = secrets.token_hex(6)
    text = str(error) if type(error) is BadHandler else "unexpected failure"
    # First, because what logs it may raise as well.
    call.fail(grpc.StatusCode.INTERNAL, f"{text}; the shard's log has the rest under {error_id}")
    log.error(
        "call.failed id=%s method=%s shard=%s at=%s error=%s",
        *(error_id, method.name, shard, line or _line_of(error, method), user_code.summary(error)),
        exc_info=error,
    )


def _line_of(error: BaseException, method: Method) -> str:
    """The line of the service to look at: where the error was raised, else the handler's definition."""
    line = error.line if isinstance(error, BadHandler) else ""
    return line or user_code.line_of(error) or user_code.definition_of(method.handler)


def _is_abort(error: BaseException) -> bool:
    """Whether an error comes from `context.abort` alone; a task group raises it in a group."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_abort(inner) for inner in error.exceptions)
    return isinstance(error, Aborted)


def _pass_on(call: Call, error: Any) -> None:
    """A call to another service failed, and the handler let it pass: so does its status."""
    code = arguments.status_code(error.code(), call.method)
    trailers = arguments.metadata(error.trailing_metadata() or ())
    call.fail(grpc.StatusCode.UNKNOWN if code is OK else code, arguments.details(error.details(), call.method))
    call.trailers = (*call.trailers, *(pair for pair in trailers if not pair[0].startswith("onelane-")))
