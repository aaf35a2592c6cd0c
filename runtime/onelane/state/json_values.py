"""Stored entries as JSON for people and their scripts, and back.

A value is shown as JSON where its bytes come back from that JSON; else, and where a `codec=` of the service has written
it, as its bytes in base64.
"""

import base64
import json
from typing import Any

from google.protobuf import json_format

from onelane.core.keys import KeyPart
from onelane.errors import BadState
from onelane.state.codecs import MsgpackCodec, ProtobufCodec
from onelane.state.declaration import ValueCodec
from onelane.state.durable_entries import entry_of, key_of, row_of
from onelane.state.entries import DictKey, KeyedEntry, canonical_key
from onelane.state.store import Row


def entry_as_json(key: str, row: Row, codec: ValueCodec | None) -> dict[str, Any]:
    """An entry with its value, or with `data`, and a `note` that says why. codec: of its dict; None where it is not to
    be decoded."""
    if codec is None:
        return head_of(key, row) | {"data": _base64(row.value)}
    try:
        value = codec.read(entry_of(row))
        lifted = row_of(codec.write(key_of(row), value))
    except (BadState, ValueError) as error:
        return head_of(key, row) | {"data": _base64(row.value), "note": f"cannot be read: {error}"}
    reason = "another value would come back"
    try:
        document = _document(codec, value)
        copy = _value(codec, document)
        # A set has no order, in its bytes neither.
        exact = copy == value or codec.codec.encode(copy) == lifted.value
    except Exception as error:
        exact, reason = False, f"{error}"
    if not exact:
        note = f"has no JSON ({reason}): the bytes of its codec {row.codec!r}, in base64"
        return head_of(key, row) | {"data": _base64(row.value), "note": note}
    return head_of(key, lifted) | {"value": document}


def head_of(key: str, row: Row) -> dict[str, Any]:
    """What is known of an entry without its value."""
    try:
        spelling: DictKey | None = key_of(row)
    except ValueError:
        spelling = None
    spelled = _spelled(spelling)
    return {"dict": row.dict_name, "key": key, "spelled": spelled, "codec": row.codec, "version": row.version}


def entry_from_json(line: Any, codecs: dict[str, ValueCodec]) -> tuple[str, Row]:
    """The key and the row of an entry that `entry_as_json` has written, or somebody's editor.

    codecs: of the dicts that the services declare.

    Raises:
        ValueError: it lacks a part, or a part does not fit; says which.
        BadState: the value does not fit its dict.
    """
    if not isinstance(line, dict):
        raise ValueError("expected an object with dict, spelled, and value or data")
    name, spelled = line.get("dict"), _spelling(line.get("spelled", line.get("key")))
    key = canonical_key(spelled)
    if not isinstance(name, str) or not name or key is None or line.get("key", key) != key:
        raise ValueError(f"dict {name!r}, key {line.get('key')!r}, spelled {line.get('spelled')!r}: expected the name "
                         "of a dict, and a key that is the canonical text of what is spelled")  # fmt: skip
    if ("value" in line) == ("data" in line):
        raise ValueError("expected either value or data")
    if "data" in line:
        return key, _row_of_bytes(line, spelled, codecs.get(name))
    return key, _row_of_value(line, spelled, codecs.get(name))


def _row_of_bytes(line: dict[str, Any], spelled: DictKey, codec: ValueCodec | None) -> Row:
    version = line.get("version")
    if not isinstance(version, int) or not isinstance(line.get("codec"), str):
        raise ValueError("data needs the codec and the version that it was written by")
    data = base64.b64decode(line["data"], validate=True)
    row = row_of(KeyedEntry(line["dict"], spelled, data, line["codec"], version))
    if codec is not None and "note" not in line:
        # What this release cannot read was exported with a note, and may come back as it was.
        codec.read(entry_of(row))
    return row


def _row_of_value(line: dict[str, Any], spelled: DictKey, codec: ValueCodec | None) -> Row:
    name = line["dict"]
    if codec is None:
        raise ValueError(f"the services declare no durable dict {name!r}: only data can be stored in it")
    newest = codec.declaration.version
    if line.get("version", newest) != newest:
        raise ValueError(f"the value is of version {line['version']!r}, but this release writes version {newest}")
    try:
        value = _value(codec, line["value"])
    except Exception as error:
        raise BadState(name, spelled, f"{type(error).__name__}: {error}") from error
    return row_of(codec.write(spelled, value))


def _document(codec: ValueCodec, value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(codec.codec, MsgpackCodec):
        from msgspec.json import encode

        return json.loads(encode(value))
    if isinstance(codec.codec, ProtobufCodec):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    raise ValueError("it is written by a codec of the service")


def _value(codec: ValueCodec, document: Any) -> Any:
    """The value that JSON tells."""
    kind = codec.declaration.kind
    if isinstance(codec.codec, MsgpackCodec):
        from msgspec.json import decode

        return decode(json.dumps(document), type=kind)
    if isinstance(codec.codec, ProtobufCodec):
        return json_format.ParseDict(document, kind())
    raise ValueError("it is written by a codec of the service: only data can be stored in it")


def _spelled(spelling: DictKey | None) -> Any:
    if isinstance(spelling, tuple):
        return [_spelled(part) for part in spelling]
    return {"base64": _base64(spelling)} if isinstance(spelling, bytes) else spelling


def _spelling(spelled: Any) -> DictKey:
    return tuple(map(_part, spelled)) if isinstance(spelled, list) else _part(spelled)


def _part(spelled: Any) -> KeyPart:
    if isinstance(spelled, dict):
        return base64.b64decode(spelled.get("base64", "?"), validate=True)
    if isinstance(spelled, str | int) and not isinstance(spelled, bool):
        return spelled
    raise ValueError(f"spelled {spelled!r}: expected a text, an integer, base64 in an object, or a list of these")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
