# Included by `_nghttp2.pyx`.
# Header fields: a block that comes in, and fields for libnghttp2 to send.

cdef enum Kind:
    """What a header field is to us."""
    APPLICATION
    OTHER
    PATH
    POST
    OTHER_METHOD
    GRPC
    OTHER_CONTENT
    TIMEOUT
    STATUS
    ENCODING


class NeverIndexed(tuple):
    """A header field that is secret to its sender: it is sent on as it came. RFC 7541, section 6.2.3."""


cdef struct _Known:
    # A header field that has come before. libnghttp2 hands out the same buffer for every name in HPACK's tables.
    nghttp2_rcbuf *name
    PyObject *value
    PyObject *pair
    Kind kind


cdef object _pair_of(nghttp2_vec name, nghttp2_vec value, uint8_t flags):
    pair = (
        PyBytes_FromStringAndSize(<const char *>name.base, name.len),
        PyBytes_FromStringAndSize(<const char *>value.base, value.len),
    )
    return NeverIndexed(pair) if flags & NO_INDEX else pair


cdef Kind _kind_of(object pair) except *:
    cdef bytes name = <bytes>(<tuple>pair)[0]
    cdef bytes value = _value_of(pair)
    if name not in RESERVED:
        return APPLICATION
    if name == b":path":
        return PATH
    if name == b":method":
        return POST if value == b"POST" else OTHER_METHOD
    if name == b"content-type":
        is_grpc = value.startswith(b"application/grpc") and not value.startswith(b"application/grpc-web")
        return GRPC if is_grpc else OTHER_CONTENT
    if name == b"grpc-timeout":
        return TIMEOUT
    if name == b":status":
        return STATUS
    if name == b"grpc-encoding":
        return ENCODING
    return OTHER


cdef double _seconds(bytes text):
    """The `grpc-timeout`, as `framing.read_timeout` reads it; below zero where it is malformed."""
    cdef const char *digits = PyBytes_AS_STRING(text)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(text) - 1
    cdef double count = 0
    cdef Py_ssize_t at
    if not 1 <= length <= 8:
        return -1
    for at in range(length):
        if not c"0" <= digits[at] <= c"9":
            return -1
        count = count * 10 + (digits[at] - c"0")
    cdef char unit = digits[length]
    if unit == c"n": return count / 1e9
    if unit == c"u": return count / 1e6
    if unit == c"m": return count / 1e3
    if unit == c"S": return count
    if unit == c"M": return count / (1.0 / 60)
    if unit == c"H": return count / (1.0 / 3600)
    return -1


cdef list _pairs_of(headers):
    """Header fields as pairs that hold their bytes. This may run code of whoever made `headers`."""
    cdef list pairs = list(headers)
    cdef Py_ssize_t at
    for at in range(PyList_GET_SIZE(pairs)):
        if not isinstance(pairs[at], tuple):
            pairs[at] = tuple(pairs[at])
        if PyTuple_GET_SIZE(pairs[at]) != 2:
            raise ValueError("a header field is a pair of bytes")
    return pairs


cdef nghttp2_nv *_fields_of(list pairs) except NULL:
    """Header fields for libnghttp2, which copies them: to be freed, and valid as long as `pairs`."""
    cdef Py_ssize_t count = PyList_GET_SIZE(pairs)
    cdef Py_ssize_t at
    cdef nghttp2_nv *fields = <nghttp2_nv *>malloc((count + 1) * sizeof(nghttp2_nv))
    if fields == NULL:
        raise MemoryError
    try:
        for at in range(count):
            _set_field(&fields[at], pairs[at])
    except:
        free(fields)
        raise
    return fields


cdef int _set_field(nghttp2_nv *field, object pair) except -1:
    cdef bytes name = (<tuple>pair)[0]
    cdef bytes value = (<tuple>pair)[1]
    if name is None or value is None:
        raise TypeError("a header field is a pair of bytes")
    field.name, field.namelen = <uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)
    field.value, field.valuelen = <uint8_t *>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
    field.flags = NO_INDEX if type(pair) is NeverIndexed else 0
    return 0


cdef int _set_static_field(nghttp2_nv *field, object pair) except -1:
    """One whose bytes this module holds: libnghttp2 need not copy them."""
    _set_field(field, pair)
    field.flags = STATIC_FIELD
    return 0


# What nearly every answer is sent with.
cdef tuple _FIELDS = ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"0"))
cdef tuple _OK_TRAILERS = (_FIELDS[2],)
cdef nghttp2_nv _RESPONSE[2]
cdef nghttp2_nv _OK[1]
_set_static_field(&_RESPONSE[0], _FIELDS[0])
_set_static_field(&_RESPONSE[1], _FIELDS[1])
_set_static_field(&_OK[0], _FIELDS[2])


cdef inline bytes _value_of(object pair):
    return <bytes>(<tuple>pair)[1]


cdef inline Py_ssize_t _size_of(object pair) noexcept:
    return PyBytes_GET_SIZE(<bytes>(<tuple>pair)[0]) + PyBytes_GET_SIZE(_value_of(pair)) + FIELD_OVERHEAD


cdef _Known *_place_of(_Known *known, nghttp2_rcbuf *name, nghttp2_vec value) noexcept:
    """Where a header field is, or where it is to be put: in place of another that begins at the same place, if need
    be."""
    cdef size_t first = ((<size_t>name >> 4) ^ value.len * 5) % KNOWN_FIELDS
    cdef size_t step
    cdef _Known *place
    for step in range(PROBES):
        place = &known[(first + step) % KNOWN_FIELDS]
        if place.pair == NULL or _is_known(place, name, value):
            return place
    return &known[first]


cdef inline bint _is_known(_Known *known, nghttp2_rcbuf *name, nghttp2_vec value) noexcept:
    cdef PyObject *text = known.value
    return (
        known.name == name
        and <size_t>PyBytes_GET_SIZE(<object>text) == value.len
        and memcmp(bytes_of(text), value.base, value.len) == 0
    )


cdef int _remember(_Known *known, nghttp2_rcbuf *name, object pair, Kind kind) except -1:
    cdef bytes value = _value_of(pair)
    _forget(known)
    nghttp2_rcbuf_incref(name)
    Py_INCREF(pair)
    known.name, known.value, known.pair, known.kind = name, <PyObject *>value, <PyObject *>pair, kind
    return 0


cdef void _forget(_Known *known) noexcept:
    if known.pair != NULL:
        nghttp2_rcbuf_decref(known.name)
        Py_XDECREF(known.pair)
        known.pair = NULL


@cython.final
@cython.no_gc_clear
cdef class _HeaderBlock:
    """The header block that comes in, what it says, and fields that have come before on the connection."""
    cdef _Known *known
    """KNOWN_FIELDS of them."""
    cdef size_t max_size
    cdef size_t max_fields
    cdef list fields
    cdef size_t size
    cdef bytes path
    cdef bytes status
    cdef list application
    """The fields that are none of HTTP's or gRPC's; None for none."""
    cdef object timeout
    cdef bint is_post
    cdef bint is_grpc
    cdef bint is_encoded

    def __cinit__(self, size_t max_size, size_t max_fields):
        self.max_size, self.max_fields = max_size, max_fields
        self.known = <_Known *>calloc(KNOWN_FIELDS, sizeof(_Known))
        if self.known == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int at
        if self.known != NULL:
            for at in range(KNOWN_FIELDS):
                _forget(&self.known[at])
            free(self.known)

    cdef int begin(self) except FAILED:
        self.fields, self.size, self.application = [], 0, None
        self.path, self.status, self.timeout = b"", None, None
        self.is_post = self.is_grpc = self.is_encoded = False
        return 0

    cdef int add(self, nghttp2_rcbuf *name, nghttp2_rcbuf *value, uint8_t flags) except FAILED:
        cdef nghttp2_vec text = nghttp2_rcbuf_get_buf(value)
        cdef _Known *known = _place_of(self.known, name, text)
        cdef object pair
        cdef Kind kind
        if known.pair != NULL and not flags & NO_INDEX and _is_known(known, name, text):
            pair, kind = <object>known.pair, known.kind
        else:
            pair = _pair_of(nghttp2_rcbuf_get_buf(name), text, flags)
            kind = _kind_of(pair)
            if type(pair) is tuple and _size_of(pair) <= MAX_KNOWN:
                _remember(known, name, pair, kind)
        self.size += _size_of(pair)
        if self.size > self.max_size:
            raise _TooMuch("received header list exceeds configured size")
        if <size_t>PyList_GET_SIZE(self.fields) >= self.max_fields:
            raise _TooMuch("received header list exceeds configured count")
        self.fields.append(pair)
        if kind != OTHER:
            self.note(kind, pair)
        return 0

    cdef int note(self, Kind kind, object pair) except FAILED:
        """Where a name comes twice, its last value counts."""
        if kind == APPLICATION:
            if self.application is None:
                self.application = []
            self.application.append(pair)
        elif kind == PATH:
            self.path = _value_of(pair)
        elif kind == POST or kind == OTHER_METHOD:
            self.is_post = kind == POST
        elif kind == GRPC or kind == OTHER_CONTENT:
            self.is_grpc = kind == GRPC
        elif kind == TIMEOUT:
            self.timeout = _seconds(_value_of(pair))
        elif kind == STATUS:
            self.status = _value_of(pair)
        else:
            self.is_encoded = True
        return 0

    cdef bint is_plain_answer(self) noexcept:
        """Of status 200, without metadata, not compressed."""
        return self.is_grpc and self.application is None and not self.is_encoded and self.status == b"200"
