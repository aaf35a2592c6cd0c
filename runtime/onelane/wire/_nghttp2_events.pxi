# Included by `_nghttp2.pyx`.
# Events, and what makes them. `WindowUpdated` is never made: nobody needs it.

cdef class _Event:
    def __repr__(self):
        fields = [f"{name}={getattr(self, name)!r}" for name in dir(self) if not name.startswith("_")]
        return f"{type(self).__name__}({', '.join(fields)})"


@cython.final
cdef class RequestReceived(_Event):
    cdef readonly int32_t stream_id
    cdef readonly tuple headers
    cdef readonly bint end_stream


@cython.final
cdef class ResponseReceived(_Event):
    cdef readonly int32_t stream_id
    cdef readonly tuple headers
    cdef readonly bint end_stream


@cython.final
cdef class AnswerReceived(_Event):
    """The beginning of an ordinary answer to a unary call, without metadata, and what came with it."""
    cdef readonly int32_t stream_id
    cdef readonly bytes data
    """One whole message with its prefix; None where it has not come with the headers."""
    cdef readonly bint is_ok
    """The trailers of the status OK have come as well."""


@cython.final
cdef class TrailersReceived(_Event):
    cdef readonly int32_t stream_id
    cdef readonly tuple headers


@cython.final
cdef class DataReceived(_Event):
    cdef readonly int32_t stream_id
    cdef readonly bytes data
    cdef readonly bint end_stream


@cython.final
cdef class StreamReset(_Event):
    cdef readonly int32_t stream_id
    cdef readonly uint32_t error_code


@cython.final
cdef class StreamClosed(_Event):
    cdef readonly int32_t stream_id
    cdef readonly uint32_t error_code
    cdef readonly object local_error
    """Why this end could not send its headers; None otherwise."""


@cython.final
cdef class SettingsReceived(_Event):
    pass


@cython.final
cdef class PingAcknowledged(_Event):
    pass


@cython.final
cdef class WindowUpdated(_Event):
    pass


@cython.final
cdef class GoAwayReceived(_Event):
    cdef readonly int32_t last_stream_id
    cdef readonly uint32_t error_code
    cdef readonly bytes debug_data


@cython.final
cdef class ConnectionClosed(_Event):
    cdef readonly uint32_t error_code
    cdef readonly bytes debug_data


cdef RequestReceived _request_received(int32_t number, tuple headers, bint ended):
    cdef RequestReceived event = RequestReceived.__new__(RequestReceived)
    event.stream_id, event.headers, event.end_stream = number, headers, ended
    return event


cdef ResponseReceived _response_received(int32_t number, tuple headers, bint ended):
    cdef ResponseReceived event = ResponseReceived.__new__(ResponseReceived)
    event.stream_id, event.headers, event.end_stream = number, headers, ended
    return event


cdef TrailersReceived _trailers_received(int32_t number, tuple headers):
    cdef TrailersReceived event = TrailersReceived.__new__(TrailersReceived)
    event.stream_id, event.headers = number, headers
    return event


cdef DataReceived _data_received(int32_t number, bytes data, bint ended):
    cdef DataReceived event = DataReceived.__new__(DataReceived)
    event.stream_id, event.data, event.end_stream = number, data, ended
    return event


cdef StreamReset _stream_reset(int32_t number, uint32_t error):
    cdef StreamReset event = StreamReset.__new__(StreamReset)
    event.stream_id, event.error_code = number, error
    return event


cdef StreamClosed _stream_closed(int32_t number, uint32_t error, local_error):
    cdef StreamClosed event = StreamClosed.__new__(StreamClosed)
    event.stream_id, event.error_code, event.local_error = number, error, local_error
    return event


cdef GoAwayReceived _goaway_received(int32_t last, uint32_t error, bytes text):
    cdef GoAwayReceived event = GoAwayReceived.__new__(GoAwayReceived)
    event.last_stream_id, event.error_code, event.debug_data = last, error, text
    return event


cdef ConnectionClosed _connection_closed(uint32_t error, bytes text):
    cdef ConnectionClosed event = ConnectionClosed.__new__(ConnectionClosed)
    event.error_code, event.debug_data = error, text
    return event
