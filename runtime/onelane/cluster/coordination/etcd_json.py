"""Requests and answers of etcd's JSON gateway (`/v3/…`): bytes are base64, 64-bit numbers are text, zeros are left out.

Pure: `etcd.EtcdStore` sends and receives.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from onelane.cluster.coordination import (
    Condition,
    CoordinationRefused,
    Created,
    EntryChanges,
    Put,
    Snapshot,
    StoredEntry,
    Unchanged,
    Write,
)

Json = Mapping[str, Any]


@contextmanager
def understood() -> Iterator[None]:
    """Raises:
    CoordinationRefused: an answer that was read meanwhile has not the form of etcd's.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CoordinationRefused(f"this is no etcd: its answer has {type(error).__name__} {error}") from None


def range_of(prefix: str) -> dict[str, str]:
    """All keys that begin with `prefix`: up to the first key after them."""
    first = prefix.encode()
    return {"key": _base64(first), "range_end": _base64(first[:-1] + bytes([first[-1] + 1]))}


def watch_request(prefix: str, after: int) -> dict[str, Any]:
    return {"create_request": {**range_of(prefix), "start_revision": str(after + 1)}}


def transaction(conditions: Sequence[Condition], writes: Sequence[Write]) -> dict[str, Any]:
    return {
        "compare": [_compare(condition) for condition in conditions],
        "success": [_write(write) for write in writes],
    }


def snapshot_of(answer: Json) -> Snapshot:
    entries = [_entry(row) for row in answer.get("kvs", [])]
    return Snapshot(revision_of(answer), {entry.key: entry for entry in entries})


def changes_of(answer: Json) -> EntryChanges:
    """Of one message of a watch that has events. Its header has the revision of the store, which may be later."""
    events = answer["events"]
    return EntryChanges(int(events[-1]["kv"]["mod_revision"]), tuple(_change(event) for event in events))


def revision_of(answer: Json) -> int:
    return int(answer.get("header", {}).get("revision", 0))


def store_of(answer: Json) -> str:
    """The number of the etcd cluster that has answered, or ""."""
    return str(answer.get("header", {}).get("cluster_id", ""))


def error_of(body: bytes) -> tuple[int, str]:
    """The gRPC code and the words of an answer that is no success; (2, its text) where it is not etcd's."""
    try:
        answer = json.loads(body)
        inner = answer.get("error")
        error = inner if isinstance(inner, dict) else answer
        return int(error.get("code") or error.get("grpc_code") or 2), str(error.get("message", inner))
    except (ValueError, TypeError, AttributeError):
        return 2, body[:200].decode(errors="replace").strip()


def _compare(condition: Condition) -> dict[str, str]:
    name = {Created: "create", Unchanged: "mod"}[type(condition)]
    row = {"key": _base64(condition.key.encode()), "target": name.upper(), "result": "EQUAL"}
    return row | {f"{name}_revision": str(condition.revision)}


def _write(write: Write) -> dict[str, Any]:
    key = _base64(write.key.encode())
    if isinstance(write, Put):
        return {"request_put": {"key": key, "value": _base64(write.value), "lease": str(write.lease_id)}}
    return {"request_delete_range": {"key": key}}


def _change(event: Json) -> tuple[str, StoredEntry | None]:
    entry = _entry(event["kv"])
    return entry.key, None if event.get("type") == "DELETE" else entry


def _entry(row: Json) -> StoredEntry:
    key, value = b64decode(row["key"]).decode(errors="replace"), b64decode(row.get("value", ""))
    created, changed, lease = (int(row.get(name, 0)) for name in ("create_revision", "mod_revision", "lease"))
    return StoredEntry(key, value, created, changed, lease)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
