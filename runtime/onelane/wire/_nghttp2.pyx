# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""HTTP/2 on libnghttp2's own callbacks, with the interface of `ngh2_session`: see `http2`.

How the two meet. libnghttp2 calls back only within `receive` and `take`, with the GIL held, and everything here belongs
to one `Session`. A callback that fails leaves its Python exception set and returns FAILED; libnghttp2 then returns
FAILED at once, from which the exception goes on. What Python code a callback may run (an allocation may collect garbage,
and so call anything) can submit frames, as libnghttp2 allows; `receive` and `take` themselves do nothing meanwhile.
libnghttp2 knows a `_Stream` by a borrowed pointer: `_streams` owns it until `_on_stream_close`, the last callback of a
stream. Bytes to send are held by the `_Stream` until they have been copied into a frame.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.list cimport PyList_AsTuple, PyList_GET_SIZE
from cpython.tuple cimport PyTuple_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy

from collections import deque

from onelane.wire.framing import RESERVED
from onelane.wire.limits import UNLIMITED

include "_nghttp2_events.pxi"
include "_nghttp2_headers.pxi"
include "_nghttp2_messages.pxi"
include "_nghttp2_memory.pxi"


ENGINE = f"onelane.wire._nghttp2 on libnghttp2 {nghttp2_version(0).version_str.decode()}"


def keep_freed_memory():
    """Have this process keep what large messages have left, at most 16 MiB, for the next ones. By default glibc gives
    it back to the system, which maps it anew page by page: half of what a call of 1 MiB cost."""
    keep_freed(16 * MIB, 4 * MIB)


class WireError(Exception):
    """The connection does not allow this now."""


class StreamEnded(WireError):
    """The stream has ended, or its last bytes have been queued."""


class _TooMuch(Exception):
    """The peer has sent more than the limits allow: the connection ends."""


@cython.final
@cython.no_gc_clear
cdef class Session:
    """One end of one connection: bytes in, events out, bytes to send."""

    cdef nghttp2_session *_session
    cdef readonly bint is_over
    """Nothing more is read or written. Set by the `take` that returns the last bytes."""
    cdef public uint32_t sent_error
    """The error of the GOAWAY with which libnghttp2 has ended the connection: its peer has broken HTTP/2."""
    cdef bint _is_server
    cdef bint _is_busy
    """libnghttp2 is in the middle of a call."""
    cdef bint _is_ending
    """A GOAWAY was sent or has come."""
    cdef uint32_t _sent_goaway
    """The error of a GOAWAY in the bytes that are taken; 0 without one."""
    cdef uint32_t _goaway_error
    """Of the last GOAWAY, and its text."""
    cdef bytes _goaway_text
    cdef dict _streams
    cdef list _events
    """None where nothing has come up, as on an idle connection."""
    cdef size_t _queued
    cdef uint64_t _round
    """Counts the calls of `receive`."""
    # Limits.
    cdef object _opens
    cdef Py_ssize_t _max_joined
    cdef size_t _max_metadata
    cdef size_t _max_fields
    cdef int32_t _window
    cdef int32_t _wide_window
    cdef Py_ssize_t _wide_streams
    cdef set _wide
    """Streams with a wide window; of those that have ended, some. None before the first."""
    cdef _HeaderBlock _block
    """The one that comes in; None before the first."""
    # The message that comes in.
    cdef _Stream _joining
    """The stream whose only message has come, before it is known that its frame ends with it."""
    cdef bytes _message
    # Other data that comes in: pieces of one stream, which are told together.
    cdef _Stream _run
    cdef _Buffer _data
    cdef const uint8_t *_input_end
    # Bytes to send, while they are gathered.
    cdef _Buffer _out

    def __cinit__(self, *, bint server, limits, opens=None, Py_ssize_t max_joined=-1):
        """See `ngh2_session.Session`."""
        self._is_server = server
        self._goaway_text = b""
        self._streams = {}
        self._opens = opens
        self._max_joined = max_joined
        self._max_metadata, self._max_fields = limits.max_metadata, limits.max_headers
        self._window, self._wide_window, self._wide_streams = limits.window, limits.wide_window, limits.wide_streams
        self._start(limits)
        self._submit_settings(limits)
        _check(nghttp2_session_set_local_window_size(self._session, 0, 0, limits.connection_window))

    cdef int _start(self, limits) except -1:
        cdef nghttp2_session_callbacks *callbacks = NULL
        cdef nghttp2_option *option = NULL
        cdef nghttp2_mem *memory
        try:
            _check(nghttp2_session_callbacks_new(&callbacks))
            _set_callbacks(callbacks)
            _check(nghttp2_option_new(&option))
            _set_options(option, limits, self._is_server)
            if self._is_server:
                memory = _memory_of_new_server()
                _check(nghttp2_session_server_new3(&self._session, callbacks, <void *>self, option, memory))
            else:
                _check(nghttp2_session_client_new2(&self._session, callbacks, <void *>self, option))
        finally:
            nghttp2_option_del(option)
            nghttp2_session_callbacks_del(callbacks)
        return 0

    cdef int _submit_settings(self, limits) except -1:
        cdef nghttp2_settings_entry entries[5]
        cdef size_t count = 4
        entries[0].settings_id, entries[0].value = INITIAL_WINDOW_SIZE, limits.window
        entries[1].settings_id, entries[1].value = MAX_HEADER_LIST_SIZE, limits.max_metadata
        entries[2].settings_id, entries[2].value = MAX_FRAME_SIZE, LARGEST_FRAME
        if self._is_server:
            entries[3].settings_id, entries[3].value = MAX_CONCURRENT_STREAMS, limits.max_streams
            # `share_window` needs the priorities of RFC 9218.
            entries[4].settings_id, entries[4].value = NO_RFC7540_PRIORITIES, 1
            count = 5
        else:
            entries[3].settings_id, entries[3].value = ENABLE_PUSH, 0
        _check(nghttp2_submit_settings(self._session, 0, entries, count))
        return 0

    def __dealloc__(self):
        nghttp2_session_del(self._session)
        Py_XDECREF(self._out.bytes)
        Py_XDECREF(self._data.bytes)

    # Bytes

    def receive(self, data):
        """Take bytes from the peer; returns the events in them."""
        cdef Py_buffer view
        cdef ssize_t result
        if self.is_over or self._is_busy:
            return []
        self._begin_events()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        self._round += 1
        self._input_end = <const uint8_t *>view.buf + view.len
        self._is_busy = True
        try:
            result = nghttp2_session_mem_recv(self._session, <const uint8_t *>view.buf, view.len)
            self._tell_data()
            failure = _text(<int>result) if result < 0 else None
        except _TooMuch as error:
            self._tell_data()
            failure = str(error)
        except:
            self._end()
            raise
        finally:
            self._is_busy = False
            PyBuffer_Release(&view)
        if failure is not None:
            return self._broken(failure)
        if self._is_ending:
            self._close_if_done()
        return self.events()

    def events(self):
        """Takes the events that have come up since the last `receive`: what libnghttp2 itself refuses to send or to
        accept, it says while it writes."""
        if self._is_busy or self._events is None:
            return []
        events, self._events = self._events, None
        return events

    cdef int _begin_events(self) except -1:
        if self._events is None:
            self._events = []
        return 0

    def take(self):
        """The bytes to send now."""
        if self.is_over or self._is_busy:
            return b""
        cdef int result
        self._begin_events()
        self._sent_goaway = 0
        self._is_busy = True
        try:
            result = nghttp2_session_send(self._session)
        except:
            self._end()
            raise
        finally:
            self._is_busy = False
        if result < 0:
            self._end()
            return b""
        if self._is_ending:
            self._close_if_done()
        if not nghttp2_session_want_read(self._session):
            # The last bytes: a GOAWAY for a protocol error of the peer, or the end after an orderly shutdown.
            self.sent_error = self._sent_goaway
            self._end()
        return _taken(&self._out)

    cdef list _broken(self, str text):
        """The connection ends here: libnghttp2 cannot go on."""
        self._end()
        events = self.events()
        events.append(_connection_closed(PROTOCOL_ERROR, text.encode()))
        return events

    cdef int _close_if_done(self) except -1:
        """After a GOAWAY: tell when nothing is to be read or written any more."""
        if not nghttp2_session_want_read(self._session) and not nghttp2_session_want_write(self._session):
            self._is_ending = False
            self._events.append(_connection_closed(self._goaway_error, self._goaway_text))
        return 0

    cdef void _end(self):
        """Let every later call do nothing: a call may be answered after its connection is lost."""
        self.is_over = True
        nghttp2_session_del(self._session)
        self._session = NULL
        self._streams.clear()
        self._queued = 0

    # Requests and answers

    def send_request(self, headers, *, bint end_stream=False):
        """Open a stream; returns its number."""
        return self._request(headers, None, end_stream)

    def request(self, headers, bytes message not None):
        """Send a whole unary request, and return the number of its stream. message: framed."""
        return self._request(headers, message, True)

    cdef int32_t _request(self, headers, bytes message, bint ends) except -1:
        cdef nghttp2_data_provider provider
        cdef nghttp2_nv *fields
        cdef _Stream stream = _Stream.__new__(_Stream)
        cdef list pairs = _pairs_of(headers)
        if self.is_over or not nghttp2_session_check_request_allowed(self._session):
            raise WireError("the connection cannot create another request stream")
        provider.source.ptr = NULL
        provider.read_callback = <void *>_read_body
        stream.has_begun, stream.takes_data = True, not ends
        if message is not None:
            stream.is_unary = True
            stream.push(message)
        fields = _fields_of(pairs)
        try:
            stream.id = nghttp2_session_get_next_stream_id(self._session)
            self._streams[stream.id] = stream
            _check(nghttp2_submit_request(
                self._session, NULL, fields, PyList_GET_SIZE(pairs), NULL if ends and message is None else &provider,
                <void *>stream,
            ))
        except:
            self._streams.pop(stream.id, None)
            raise
        finally:
            free(fields)
        self._queued += stream.queued
        return stream.id

    def send_response(self, int32_t number, headers, *, bint end_stream=False):
        """Send the headers of an answer, or with `end_stream` all of it."""
        cdef _Stream stream
        cdef list pairs = _pairs_of(headers)
        if self.is_over:
            return
        stream = self._beginning(number)
        cdef nghttp2_nv *fields = _fields_of(pairs)
        try:
            self._respond(stream, fields, PyList_GET_SIZE(pairs), end_stream)
        finally:
            free(fields)

    cdef int _respond(self, _Stream stream, const nghttp2_nv *fields, size_t count, bint ends) except -1:
        cdef nghttp2_data_provider provider
        provider.source.ptr = NULL
        provider.read_callback = <void *>_read_body
        _check(nghttp2_submit_response(self._session, stream.id, fields, count, NULL if ends else &provider))
        stream.has_begun = True
        stream.takes_data = not ends
        return 0

    def send_data(self, int32_t number, data, *, bint end_stream=False):
        """Send bytes after what has been queued, and with `end_stream` end this side of the stream."""
        cdef _Stream stream
        cdef bytes chunk = data if type(data) is bytes else bytes(memoryview(data))
        if self.is_over:
            return
        stream = self._writable(number)
        self._push(stream, chunk)
        stream.takes_data = not end_stream
        self._wake(stream)

    def send_message(self, int32_t number, message):
        """Send one message, not compressed, with its prefix, after what has been queued. Returns the bytes of the
        stream that wait for the peer's flow-control windows."""
        cdef bytes body = message if type(message) is bytes else b"" + message
        cdef _Stream stream
        if self.is_over:
            return 0
        stream = self._writable(number)
        self._push_message(stream, body, _framed(body))
        self._wake(stream)
        return stream.queued

    def send_trailers(self, int32_t number, headers):
        """End this side of the stream, after what has been queued."""
        cdef _Stream stream
        cdef list pairs = _pairs_of(headers)
        if self.is_over:
            return
        stream = self._writable(number)
        stream.trailers = pairs
        stream.takes_data = False
        self._wake(stream)

    def end_stream(self, int32_t number):
        """End this side of the stream, after what has been queued."""
        self.send_data(number, b"", end_stream=True)

    def answer(self, int32_t number, message, size_t unread):
        """Answer a unary call with a message and the status OK, unless its stream has ended, and acknowledge the
        `unread` bytes of its request. Whatever is no message raises, and then nothing has been sent."""
        cdef bytes body = message if type(message) is bytes else b"" + message
        cdef _Stream stream
        cdef bytes framed = _framed(body)
        if self.is_over:
            return
        stream = self._streams.get(number)
        if stream is not None and not stream.has_begun:
            # First what may collect garbage, whose finalizers may end the connection.
            self._push_message(stream, body, framed)
            if self.is_over:
                return
            self._respond(stream, _RESPONSE, 2, False)
            stream.takes_data = False
            stream.ends_ok = True
        if unread:
            nghttp2_session_consume(self._session, number, unread)

    cdef _Stream _beginning(self, int32_t number):
        """The stream, which has not been answered."""
        cdef _Stream stream = self._streams.get(number)
        if stream is None or stream.has_begun:
            raise StreamEnded("the stream has been answered, or has ended")
        return stream

    cdef _Stream _writable(self, int32_t number):
        """The stream, which takes more."""
        cdef _Stream stream = self._streams.get(number)
        if stream is None or not stream.takes_data:
            raise StreamEnded("this side of the stream has ended")
        return stream

    cdef int _push_message(self, _Stream stream, bytes body, bytes framed) except -1:
        """framed: of a large message the prefix alone, see `_framed`."""
        self._push(stream, framed)
        if PyBytes_GET_SIZE(framed) == PREFIX:
            self._push(stream, body)
        return 0

    cdef int _push(self, _Stream stream, bytes chunk) except -1:
        stream.push(chunk)
        self._queued += PyBytes_GET_SIZE(chunk)
        return 0

    cdef int _wake(self, _Stream stream) except -1:
        if stream.waits and not self.is_over:
            stream.waits = False
            _check(nghttp2_session_resume_data(self._session, stream.id))
        return 0

    # Flow control

    def acknowledge(self, size_t amount, int32_t number):
        """Let the peer send `amount` more bytes, on one stream and on the connection."""
        if not self.is_over:
            nghttp2_session_consume(self._session, number, amount)

    def widen(self, int32_t number, open_streams):
        """Let the peer send more at once on a stream that its window holds up, if not too many streams have more.

        open_streams: the streams that have not ended.
        """
        if self._wide is None:
            self._wide = set()
        if self.is_over or self._wide_window <= self._window or number in self._wide:
            return
        if len(self._wide) >= self._wide_streams:
            self._wide = {wide for wide in self._wide if wide in open_streams}
            if len(self._wide) >= self._wide_streams:
                return
        if number in self._streams:
            nghttp2_session_set_local_window_size(self._session, 0, number, self._wide_window)
            self._wide.add(number)

    def is_filled(self, Py_ssize_t amount):
        """Whether `amount` bytes, of one stream and not acknowledged, leave the peer little of its window."""
        return amount * 2 >= self._window

    def queued(self, int32_t number):
        """Bytes of one stream that wait for the peer's flow-control windows."""
        cdef _Stream stream = self._streams.get(number)
        return 0 if stream is None else stream.queued

    def queued_in_all(self):
        """Bytes of all streams that wait for the peer's flow-control windows."""
        return self._queued

    def share_window(self, int32_t number):
        """Let a stream of this server take turns with others in what the peer's connection window lets through. By
        default libnghttp2 sends all that the oldest stream has before the next one's: an endless stream would starve
        the others. RFC 9218, section 4.2. Does nothing on a client, where HTTP/2 has no such choice."""
        cdef nghttp2_extpri in_turns
        in_turns.urgency, in_turns.inc = 3, 1
        if self._is_server and number in self._streams:
            nghttp2_session_change_extpri_stream_priority(self._session, number, &in_turns, 0)

    def connection_room(self):
        """Bytes of all streams that the peer lets this end send now."""
        return 0 if self.is_over else nghttp2_session_get_remote_window_size(self._session)

    def has_stream(self, int32_t number):
        """Whether a stream has not closed: its end is still to be told."""
        return number in self._streams

    # The connection. Nothing is sent where it is over, or has begun to end.

    def reset(self, int32_t number, uint32_t error):
        if not self.is_over:
            nghttp2_submit_rst_stream(self._session, 0, number, error)

    def ping(self, bytes payload not None):
        """payload: 8 bytes."""
        if PyBytes_GET_SIZE(payload) != 8:
            raise ValueError("a PING has 8 bytes")
        if not self.is_over:
            nghttp2_submit_ping(self._session, 0, <const uint8_t *>PyBytes_AS_STRING(payload))

    def shutdown_notice(self):
        """Announce a GOAWAY; streams that the peer opens until it has read this are still accepted."""
        if not self.is_over:
            nghttp2_submit_shutdown_notice(self._session)

    def go_away(self, uint32_t error=0):
        """Send GOAWAY: accept no further stream; open streams go on."""
        if not self.is_over:
            last = nghttp2_session_get_last_proc_stream_id(self._session)
            nghttp2_submit_goaway(self._session, 0, last, error, NULL, 0)

    @property
    def can_open(self):
        """Whether the peer's limits allow one more stream now."""
        return not self.is_over and bool(nghttp2_session_check_request_allowed(self._session))

    def max_streams(self):
        """The peer's SETTINGS_MAX_CONCURRENT_STREAMS."""
        return self._remote(MAX_CONCURRENT_STREAMS)

    def max_header_list(self):
        """The peer's SETTINGS_MAX_HEADER_LIST_SIZE."""
        return self._remote(MAX_HEADER_LIST_SIZE)

    cdef uint32_t _remote(self, int setting) except? 0:
        return UNLIMITED if self.is_over else nghttp2_session_get_remote_settings(self._session, setting)

    # Callbacks: headers

    cdef int _begin_headers(self, const nghttp2_frame *frame) except FAILED:
        cdef _Stream stream
        if self._block is None:
            self._block = _HeaderBlock.__new__(_HeaderBlock, self._max_metadata * 4, self._max_fields)
        self._block.begin()
        if self._is_server and frame.headers.cat == OF_A_REQUEST:
            stream = _Stream.__new__(_Stream)
            stream.id = frame.hd.stream_id
            self._streams[stream.id] = stream
            nghttp2_session_set_stream_user_data(self._session, stream.id, <void *>stream)
        return 0

    cdef int _end_headers(self, const nghttp2_frame *frame) except FAILED:
        cdef tuple headers = PyList_AsTuple(self._block.fields)
        cdef bint ended = frame.hd.flags & END_STREAM
        cdef _Stream stream = self._streams.get(frame.hd.stream_id)
        if stream is None:
            return 0
        if self._is_server and frame.headers.cat == OF_A_REQUEST:
            self._open(stream, headers, ended)
        elif self._block.status is None:
            self._trailers(stream, headers)
        elif not self._block.status.startswith(b"1"):
            self._answered(stream, headers, ended)
        return 0

    cdef int _open(self, _Stream stream, tuple headers, bint ended) except FAILED:
        """A request has begun. See `wire.server.Stream`."""
        cdef _HeaderBlock block = self._block
        cdef int refusal = 0
        if self._opens is None:
            self._events.append(_request_received(stream.id, headers, ended))
            return 0
        if not block.is_grpc:
            refusal = UNSUPPORTED_MEDIA_TYPE
        elif not block.is_post:
            refusal = METHOD_NOT_ALLOWED
        application = () if block.application is None else tuple(block.application)
        request = self._opens(
            stream.id, ended, headers, None, block.path, application, block.timeout, block.size, refusal
        )
        self._events.append(request)
        if not (ended or refusal) and block.size <= self._max_metadata:
            stream.fresh_in, stream.request = self._round, request
        return 0

    cdef int _answered(self, _Stream stream, tuple headers, bint ended) except FAILED:
        cdef AnswerReceived answer
        if self._block.is_plain_answer() and stream.is_unary and not ended:
            answer = AnswerReceived.__new__(AnswerReceived)
            answer.stream_id = stream.id
            stream.fresh_in, stream.request = self._round, answer
            self._events.append(answer)
        else:
            self._events.append(_response_received(stream.id, headers, ended))
        return 0

    cdef int _trailers(self, _Stream stream, tuple headers) except FAILED:
        if stream.fresh_in == self._round and type(stream.request) is AnswerReceived and headers == _OK_TRAILERS:
            (<AnswerReceived>stream.request).is_ok = stream.is_told = True
            stream.request = None
        else:
            self._events.append(_trailers_received(stream.id, headers))
        return 0

    # Callbacks: data

    cdef int _add_data(self, _Stream stream, uint8_t flags, const uint8_t *data, size_t length) except FAILED:
        cdef AnswerReceived answer
        if self._joining is not None:
            self._part_message()
        if stream.request is not None and stream.fresh_in == self._round and self._is_one_message(data, length):
            if not self._is_server:
                answer = <AnswerReceived>stream.request
                if answer.data is None:
                    answer.data = PyBytes_FromStringAndSize(<const char *>data, length)
                    return 0
            elif flags & END_STREAM:
                self._joining = stream
                self._message = PyBytes_FromStringAndSize(<const char *>data + PREFIX, length - PREFIX)
                return 0
        stream.request = None
        if self._run is not stream:
            self._end_run(False)
            self._run = stream
        further = 0 if self._data.bytes == NULL else self._input_end - data - length
        memcpy(_room_for(&self._data, length, further), data, length)
        return 0

    cdef int _tell_data(self) except FAILED:
        """Tell of the data that has come, whose frame has not ended, or ends no stream."""
        self._part_message()
        return self._end_run(False)

    cdef int _end_run(self, bint ended) except FAILED:
        cdef _Stream stream = self._run
        if stream is not None:
            self._run = None
            self._events.append(_data_received(stream.id, _taken(&self._data), ended))
        return 0

    cdef bint _is_one_message(self, const uint8_t *data, size_t length) noexcept:
        """See `framing.is_one_message`."""
        return (
            length >= PREFIX
            and data[0] == 0
            and length - PREFIX == _number(data + 1)
            and <Py_ssize_t>(length - PREFIX) <= self._max_joined
        )

    cdef int _part_message(self) except FAILED:
        """A message is not the only one, or its frame has not ended: tell of it as of any other bytes."""
        cdef _Stream stream = self._joining
        if stream is not None:
            stream.request = self._joining = None
            self._events.append(_data_received(stream.id, _framed_whole(self._message), False))
        return 0

    cdef int _end_data(self, const nghttp2_frame *frame) except FAILED:
        """A DATA frame has come in full."""
        if not frame.hd.flags & END_STREAM:
            return 0
        if self._joining is not None and self._joining.id != frame.hd.stream_id:
            # libnghttp2 does not tell the end of a frame where its stream breaks a rule of HTTP, as content-length.
            self._part_message()
        if self._joining is not None:
            request, self._joining.request, self._joining = self._joining.request, None, None
            request.message, self._message = self._message, None
            return 0
        if self._run is not None and self._run.id == frame.hd.stream_id:
            self._end_run(True)
        else:
            self._events.append(_data_received(frame.hd.stream_id, b"", True))
        return 0

    # Callbacks: the rest

    cdef int _frame_received(self, const nghttp2_frame *frame) except FAILED:
        if frame.hd.type == DATA:
            return self._end_data(frame)
        self._tell_data()
        if frame.hd.type == HEADERS:
            self._end_headers(frame)
        elif frame.hd.type == RST_STREAM:
            self._events.append(_stream_reset(frame.hd.stream_id, frame.rst_stream.error_code))
        elif frame.hd.type == SETTINGS:
            if not frame.hd.flags & ACK:
                self._events.append(SettingsReceived.__new__(SettingsReceived))
        elif frame.hd.type == PING:
            if frame.hd.flags & ACK:
                self._events.append(PingAcknowledged.__new__(PingAcknowledged))
        elif frame.hd.type == GOAWAY:
            self._note_goaway(&frame.goaway)
            self._events.append(_goaway_received(frame.goaway.last_stream_id, self._goaway_error, self._goaway_text))
        return 0

    cdef int _note_goaway(self, const nghttp2_goaway *frame) except FAILED:
        self._is_ending = True
        self._goaway_error = frame.error_code
        self._goaway_text = PyBytes_FromStringAndSize(<const char *>frame.opaque_data, frame.opaque_data_len)
        return 0

    cdef int _stream_closed(self, int32_t number, uint32_t error) except FAILED:
        self._tell_data()
        cdef _Stream stream = self._streams.pop(number, None)
        if stream is None:
            return 0
        self._queued -= stream.queued
        if not stream.is_told:
            self._events.append(_stream_closed(number, error, stream.send_error))
        return 0

    cdef int _not_sent(self, const nghttp2_frame *frame, int error) except FAILED:
        """libnghttp2 refuses to send headers: the stream ends."""
        if error in (STREAM_CLOSED, STREAM_CLOSING, STREAM_SHUT_WR, SESSION_CLOSING):
            return 0
        cdef _Stream stream = self._streams.get(frame.hd.stream_id)
        if stream is not None:
            is_large = error == FRAME_SIZE_ERROR
            stream.send_error = WireError("the header block is larger than this end sends" if is_large else _text(error))
        if frame.headers.cat != OF_A_REQUEST:
            # A stream that could not be opened is closed by libnghttp2.
            nghttp2_submit_rst_stream(self._session, 0, frame.hd.stream_id, INTERNAL_ERROR)
        return 0

    cdef int _submit_trailers(self, _Stream stream) except FAILED:
        cdef nghttp2_nv *fields = _fields_of(stream.trailers)
        cdef int result = nghttp2_submit_trailer(self._session, stream.id, fields, PyList_GET_SIZE(stream.trailers))
        free(fields)
        stream.trailers = None
        _check(result)
        return 0


cdef int _check(int result) except -1:
    """Raise for an error of libnghttp2."""
    if result < 0:
        raise WireError(_text(result))
    return 0


cdef str _text(int error):
    return f"HTTP/2 engine error: {nghttp2_strerror(error).decode()}"


include "_nghttp2_callbacks.pxi"
