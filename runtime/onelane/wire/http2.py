"""HTTP/2 by libnghttp2, as far as gRPC needs it: one end of one connection; bytes in, events out, bytes to send.

There are two, with one interface: `_nghttp2.Session`, an extension on libnghttp2's own callbacks; and where that was
not built `ngh2_session.Session`, on the package ngh2, which is also the reference. `Http2` is the one that is there.

Framing, HPACK, flow control and the limits against abuse are libnghttp2's. Nothing that a peer sends makes a connection
raise: it ends, with `Closed` as its last event.
"""

from enum import IntEnum
from typing import TYPE_CHECKING

from onelane.wire.limits import SIBLING_LIMITS, UNLIMITED, Limits

if TYPE_CHECKING:
    from onelane.wire import ngh2_session as _session
else:
    try:
        from onelane.wire import _nghttp2 as _session
    except ImportError:
        from onelane.wire import ngh2_session as _session

__all__ = [
    "ENGINE",
    "SIBLING_LIMITS",
    "UNLIMITED",
    "AnswerReceived",
    "Body",
    "Closed",
    "DataReceived",
    "ErrorCode",
    "GoAwayReceived",
    "Http2",
    "Limits",
    "PingAcknowledged",
    "RequestReceived",
    "ResponseReceived",
    "SettingsReceived",
    "StreamClosed",
    "StreamEnded",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
    "keep_freed_memory",
]

Http2 = _session.Session
ENGINE: str = _session.ENGINE
"""Which of the two it is, and its release."""
StreamEnded = _session.StreamEnded
"""Raised by every `send_` method, and by `end_stream`, if the stream has ended meanwhile."""
Body = _session.Body
keep_freed_memory = _session.keep_freed_memory
AnswerReceived = _session.AnswerReceived
Closed = _session.ConnectionClosed
DataReceived = _session.DataReceived
GoAwayReceived = _session.GoAwayReceived
PingAcknowledged = _session.PingAcknowledged
RequestReceived = _session.RequestReceived
ResponseReceived = _session.ResponseReceived
SettingsReceived = _session.SettingsReceived
StreamClosed = _session.StreamClosed
StreamReset = _session.StreamReset
TrailersReceived = _session.TrailersReceived
WindowUpdated = _session.WindowUpdated


class ErrorCode(IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD
