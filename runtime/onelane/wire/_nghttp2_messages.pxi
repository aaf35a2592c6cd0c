# Included by `_nghttp2.pyx`.
# Bytes of messages: buffers, their frames, and what a stream sends.

cdef struct _Buffer:
    # Bytes that are being written: an object of `bytes` with room for more than has been.
    PyObject *bytes
    Py_ssize_t size
    Py_ssize_t room


cdef char *_room_for(_Buffer *buffer, Py_ssize_t amount, Py_ssize_t further) except NULL:
    """Where the next bytes are to be written, which as many as `further` will probably follow."""
    cdef bytes fresh
    if buffer.bytes == NULL:
        buffer.size, buffer.room = 0, amount + further
        fresh = PyBytes_FromStringAndSize(NULL, buffer.room)
        Py_INCREF(fresh)
        buffer.bytes = <PyObject *>fresh
    elif buffer.size + amount > buffer.room:
        # Of large messages not twice as much: fresh pages cost more than the copy.
        buffer.room = buffer.size + amount + max(further, min(buffer.size, <Py_ssize_t>MOST_SPARE))
        _PyBytes_Resize(&buffer.bytes, buffer.room)
    cdef char *target = bytes_of(buffer.bytes) + buffer.size
    buffer.size += amount
    return target


cdef bytes _taken(_Buffer *buffer):
    """What has been written, once."""
    if buffer.bytes == NULL:
        return b""
    if buffer.room - buffer.size > MOST_SPARE or buffer.size < MOST_SPARE:
        if buffer.size < buffer.room:
            _PyBytes_Resize(&buffer.bytes, buffer.size)
    else:
        # To give back a page of a large block, the C library would map the next one anew, page by page.
        Py_SET_SIZE(buffer.bytes, buffer.size)
        bytes_of(buffer.bytes)[buffer.size] = 0
    cdef bytes data = <bytes>buffer.bytes
    Py_DECREF(data)
    buffer.bytes = NULL
    return data


@cython.final
cdef class Body:
    """The bytes so far of a message that is not complete, where they stay."""
    cdef _Buffer _buffer
    cdef Py_ssize_t _full

    def __cinit__(self, Py_ssize_t full):
        """full: its bytes in the end."""
        self._full = full

    def __dealloc__(self):
        Py_XDECREF(self._buffer.bytes)

    def __len__(self):
        return self._buffer.size if self._buffer.bytes != NULL else 0

    def add(self, data):
        """Room is made for no more than a few times what has come: a peer may promise much, and send little."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        cdef Py_ssize_t size = (0 if self._buffer.bytes == NULL else self._buffer.size) + view.len
        try:
            if view.len:
                memcpy(
                    _room_for(&self._buffer, view.len, min(max(self._full - size, 0), PROMISED * size)),
                    view.buf,
                    view.len,
                )
        finally:
            PyBuffer_Release(&view)

    def take(self):
        """The message."""
        return _taken(&self._buffer)


@cython.final
@cython.no_gc_clear
@cython.freelist(64)
cdef class _Stream:
    """What a stream sends, and what of it may still be put into the event that began it."""
    cdef int32_t id
    # To send.
    cdef bytes chunk
    """The first that has not been copied into frames in full; None for none."""
    cdef Py_ssize_t offset
    """Bytes of it that have been."""
    cdef object further
    """The chunks after it: a deque, or None."""
    cdef size_t queued
    """Bytes of all of them."""
    cdef bint has_begun
    """Its headers have been submitted."""
    cdef bint takes_data
    cdef bint waits
    """libnghttp2 is to be told when there is something to send."""
    cdef list trailers
    cdef bint ends_ok
    """It ends with the trailers of the status OK."""
    cdef bint is_unary
    """On a client: its answer may be an `AnswerReceived`."""
    cdef bint is_told
    """Its end needs no event of its own."""
    cdef object send_error
    """Why its headers could not be sent, until it closes."""
    # Received.
    cdef uint64_t fresh_in
    """The `receive` which its first headers came in, as long as they, and what followed, are those of an ordinary
    unary call; 0 otherwise."""
    cdef object request
    """On a server, the object of its request, whose message may follow; on a client, the `AnswerReceived`, whose
    message and end may follow."""

    cdef int push(self, bytes chunk) except -1:
        if not PyBytes_GET_SIZE(chunk):
            return 0
        if self.chunk is None:
            self.chunk = chunk
        else:
            if self.further is None:
                self.further = deque()
            self.further.append(chunk)
        self.queued += PyBytes_GET_SIZE(chunk)
        return 0

    cdef int copy_to(self, char *target, size_t length) except -1:
        """Move bytes into a frame: at most `queued`."""
        cdef size_t size
        while length:
            size = min(length, <size_t>(PyBytes_GET_SIZE(self.chunk) - self.offset))
            memcpy(target, PyBytes_AS_STRING(self.chunk) + self.offset, size)
            target += size
            length -= size
            self.queued -= size
            self.offset += size
            if self.offset == PyBytes_GET_SIZE(self.chunk):
                self.chunk = self.further.popleft() if self.further else None
                self.offset = 0
        return 0


cdef inline uint32_t _number(const uint8_t *data) noexcept:
    return (<uint32_t>data[0] << 24) | (<uint32_t>data[1] << 16) | (<uint32_t>data[2] << 8) | data[3]


cdef bytes _framed(bytes message):
    """A message with its prefix; of a large one, the prefix alone, so that it is not copied."""
    return _framed_whole(message) if PyBytes_GET_SIZE(message) <= JOINED_COPY else _prefix_and(message, 0)


cdef bytes _framed_whole(bytes message):
    return _prefix_and(message, PyBytes_GET_SIZE(message))


cdef bytes _prefix_and(bytes message, Py_ssize_t size):
    """The prefix of a message, and its first `size` bytes."""
    cdef Py_ssize_t length = PyBytes_GET_SIZE(message)
    if length > 0xFFFFFFFF:
        raise OverflowError("a message has 4 GiB at most")
    cdef bytes framed = PyBytes_FromStringAndSize(NULL, PREFIX + size)
    cdef uint8_t *target = <uint8_t *>PyBytes_AS_STRING(framed)
    target[0] = 0
    target[1], target[2] = <uint8_t>(length >> 24), <uint8_t>(length >> 16)
    target[3], target[4] = <uint8_t>(length >> 8), <uint8_t>length
    memcpy(target + PREFIX, PyBytes_AS_STRING(message), size)
    return framed
