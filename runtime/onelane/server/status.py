"""The status of a call that fails: the one place where an error turns into a status.

Promises: whatever leaves a handler, the call has a status; the text of an exception that is not ours stays in our log.
"""

import asyncio
import logging
import secrets
from math import ceil
from typing import Any

import grpc
import grpc.aio

from onelane.core.backoff import PUSHBACK
from onelane.errors import OnelaneError, Refused
from onelane.server.call import Aborted, Call

log = logging.getLogger("onelane.call")


def failed(call: Call, error: BaseException, *, method: str, shard: str) -> None:
    """Give `call` the status of an exception."""
    match error:
        case Aborted():
            # The handler has chosen the status itself.
            return
        case OnelaneError():
            call.fail(grpc.StatusCode[error.status], str(error))
            if isinstance(error, Refused):
                pushback = (PUSHBACK, str(ceil(error.pushback_s * 1000)))
                call.trailers = (*call.trailers, pushback)
        case grpc.aio.AioRpcError():
            _pass_on(call, error)
        case _ if call.code_now is not grpc.StatusCode.OK:
            # The handler has chosen the status and then raised, as gRPC's generated base classes do.
            log.info("call.raised_after_status method=%s shard=%s code=%s", method, shard, call.code_now.name)
        case _:
            error_id = secrets.token_hex(6)
            log.error("call.failed id=%s method=%s shard=%s", error_id, method, shard, exc_info=error)
            call.fail(grpc.StatusCode.INTERNAL, f"unexpected failure; the shard's log has the rest under {error_id}")


def settle(call: Call, error: BaseException, *, method: str, shard: str) -> bool:
    """Give `call` the status of what ended its task; whether `error` must go on: a cancellation from outside."""
    if isinstance(error, asyncio.CancelledError):
        return cancelled(call, method=method, shard=shard)
    failed(call, error, method=method, shard=shard)
    return False


def cancelled(call: Call, *, method: str, shard: str) -> bool:
    """Give `call` the status of a cancellation; whether it came from outside, and so must go on."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        if call.time_remaining() == 0:
            call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the answer was ready")
        else:
            call.fail(grpc.StatusCode.CANCELLED, "cancelled by the client, or by a drain")
        return True
    # One that leaked from inside the handler: grpc.aio would send no status at all, and the client wait for ever.
    log.error("call.leaked_cancellation method=%s shard=%s", method, shard)
    call.fail(grpc.StatusCode.INTERNAL, "the handler was cancelled from inside")
    return False


def _pass_on(call: Call, error: Any) -> None:
    """A call to another service failed, and the handler let it pass: so does its status."""
    call.fail(error.code(), error.details() or "")
    trailers = tuple(error.trailing_metadata() or ())
    call.trailers = (*call.trailers, *(pair for pair in trailers if not pair[0].startswith("onelane-")))
