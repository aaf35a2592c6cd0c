"""Calls that happen once: the id that a client gives a call, and the answer that is kept under it.

A call with the metadata `idempotency-key` runs once for its key. Its answer is written with the change that it made,
and a repeat gets that answer. The id belongs to one request: of this client, to this method, with this message.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import grpc
from google.protobuf.message import Message

from onelane.core.call_ids import IDEMPOTENCY_KEY
from onelane.core.identity import Identity
from onelane.errors import BadIdempotencyKey
from onelane.lane.method_entry import Entry
from onelane.server.call import Call, Metadata
from onelane.server.chosen_handler import Received
from onelane.state.store import RememberedAnswer

REPEATED = "onelane-repeated"
MAX_ID_BYTES = 255
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class CallId:
    """What a call is known by, beside its key."""

    id: str
    digest: bytes
    """Of the request."""


def id_of(metadata: Metadata) -> str | None:
    """The id of a call; None where its client gave none.

    Raises:
        BadIdempotencyKey: it is empty or too long.
    """
    for name, value in metadata:
        if name == IDEMPOTENCY_KEY:
            if not 0 < len(value) <= MAX_ID_BYTES:
                raise BadIdempotencyKey(f"is {len(value)} bytes long, expected 1 to {MAX_ID_BYTES}")
            return str(value)
    return None


def once_methods(entries: Iterable[Entry]) -> list[str]:
    """The methods, `pkg.Service/Method`, of an app with durable state whose calls run once for each id."""
    return [entry.method.name for entry in entries if entry.takes_ids]


def digest_of(method: str, message: Any, identity: Identity | None) -> bytes:
    """A digest of a request and of who makes it. method: `pkg.Service/Method`. message: as its handler gets it; one
    that is neither bytes nor of protobuf counts as equal to any other."""
    subject = identity.subject if identity is not None else ""
    digest = blake2b(f"{method}\0{subject}\0".encode(), digest_size=_DIGEST_BYTES)
    if isinstance(message, Received):
        digest.update(message.raw)
    elif isinstance(message, bytes):
        digest.update(message)
    elif isinstance(message, Message):
        digest.update(message.SerializeToString(deterministic=True))
    return digest.digest()


def check_same(digest: bytes, call_id: CallId) -> None:
    """Raises BadIdempotencyKey where the first call of this id was another request. digest: of that one."""
    if digest != call_id.digest:
        raise BadIdempotencyKey(f"{call_id.id!r} was used for another request already")


def remember(call_id: CallId, call: Call, reply: bytes, at: float) -> RememberedAnswer:
    """The answer of a call that has ended, to be kept. at: Unix time."""
    from msgspec.msgpack import encode

    is_ok = call.code_now is grpc.StatusCode.OK
    outcome = (call.code_now.name, call.details_now, tuple(call.trailers), reply if is_ok else b"")
    return RememberedAnswer(call_id.id, call_id.digest, encode(outcome), at)


def repeat(answer: RememberedAnswer, call: Call) -> bytes:
    """Give a call the remembered status and trailers; returns the reply."""
    from msgspec.msgpack import decode

    code, details, trailers, reply = decode(answer.answer)
    call.fail(grpc.StatusCode[code], details)
    call.trailers = (*_pairs(trailers), (REPEATED, "1"))
    return bytes(reply)


def _pairs(trailers: Sequence[Sequence[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in trailers]
