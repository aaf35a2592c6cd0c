# cython: language_level=3
"""libnghttp2 as far as `_nghttp2.pyx` uses it, and the numbers that both need."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from cpython.ref cimport PyObject


cdef enum:
    # Frames, and their flags.
    DATA = 0x0
    HEADERS = 0x1
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PING = 0x6
    GOAWAY = 0x7
    PRIORITY_UPDATE = 0x10
    END_STREAM = 0x1
    ACK = 0x1
    # Settings.
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    NO_RFC7540_PRIORITIES = 0x9
    # libnghttp2's.
    FAILED = -902
    DEFERRED = -508
    STREAM_CLOSED = -510
    STREAM_CLOSING = -511
    STREAM_SHUT_WR = -512
    REFUSE_STREAM = -521
    FRAME_SIZE_ERROR = -522
    SESSION_CLOSING = -530
    OF_A_REQUEST = 0
    DATA_EOF = 1
    DATA_NO_END_STREAM = 2
    DATA_NO_COPY = 4
    NO_INDEX = 1
    STATIC_FIELD = 2 | 4
    # HTTP/2's errors.
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    # Ours.
    PREFIX = 5
    FRAME_HEAD = 9
    FIELD_OVERHEAD = 32
    LARGEST_FRAME = 65536
    JOINED_COPY = 4096
    FIRST_ROOM = 2048
    MOST_SPARE = 65536
    PROMISED = 16
    MIB = 1048576
    KNOWN_FIELDS = 32
    PROBES = 4
    SERVER_TABLE = 1024
    MAX_KNOWN = 256
    UNSUPPORTED_MEDIA_TYPE = 415
    METHOD_NOT_ALLOWED = 405


cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static void keep_freed(int bytes, int largest) {
        mallopt(M_TRIM_THRESHOLD, bytes);
        mallopt(M_MMAP_THRESHOLD, largest);
    }
    #else
    static void keep_freed(int bytes, int largest) {}
    #endif
    """
    void keep_freed(int bytes, int largest)


cdef extern from "Python.h":
    char *bytes_of "PyBytes_AS_STRING" (PyObject *)
    void Py_SET_SIZE(PyObject *, Py_ssize_t)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1


# The functions with ssize_t: every release has them.
cdef extern from "nghttp2/nghttp2.h":
    ctypedef struct nghttp2_session
    ctypedef struct nghttp2_session_callbacks
    ctypedef struct nghttp2_option
    ctypedef struct nghttp2_rcbuf
    ctypedef struct nghttp2_vec:
        uint8_t *base
        size_t len
    ctypedef struct nghttp2_nv:
        uint8_t *name
        uint8_t *value
        size_t namelen
        size_t valuelen
        uint8_t flags
    ctypedef struct nghttp2_settings_entry:
        int32_t settings_id
        uint32_t value
    ctypedef struct nghttp2_extpri:
        uint32_t urgency
        int inc
    ctypedef union nghttp2_data_source:
        void *ptr
    ctypedef struct nghttp2_data_provider:
        nghttp2_data_source source
        void *read_callback
    ctypedef struct nghttp2_frame_hd:
        size_t length
        int32_t stream_id
        uint8_t type
        uint8_t flags
    ctypedef struct nghttp2_headers:
        int cat
    ctypedef struct nghttp2_rst_stream:
        uint32_t error_code
    ctypedef struct nghttp2_goaway:
        int32_t last_stream_id
        uint32_t error_code
        uint8_t *opaque_data
        size_t opaque_data_len
    ctypedef union nghttp2_frame:
        nghttp2_frame_hd hd
        nghttp2_headers headers
        nghttp2_rst_stream rst_stream
        nghttp2_goaway goaway

    ctypedef struct nghttp2_mem:
        void *mem_user_data
        void *malloc
        void *free
        void *calloc
        void *realloc

    ctypedef struct nghttp2_info:
        const char *version_str
    nghttp2_info *nghttp2_version(int)
    const char *nghttp2_strerror(int)
    nghttp2_vec nghttp2_rcbuf_get_buf(nghttp2_rcbuf *)
    void nghttp2_rcbuf_incref(nghttp2_rcbuf *)
    void nghttp2_rcbuf_decref(nghttp2_rcbuf *)

    int nghttp2_session_callbacks_new(nghttp2_session_callbacks **)
    void nghttp2_session_callbacks_del(nghttp2_session_callbacks *)
    void nghttp2_session_callbacks_set_send_callback(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_send_data_callback(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_on_begin_headers_callback(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_on_header_callback2(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_on_invalid_header_callback2(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_on_frame_recv_callback(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_on_frame_send_callback(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_on_frame_not_send_callback(nghttp2_session_callbacks *, void *)
    void nghttp2_session_callbacks_set_on_stream_close_callback(nghttp2_session_callbacks *, void *)

    int nghttp2_option_new(nghttp2_option **)
    void nghttp2_option_del(nghttp2_option *)
    void nghttp2_option_set_no_auto_window_update(nghttp2_option *, int)
    void nghttp2_option_set_no_closed_streams(nghttp2_option *, int)
    void nghttp2_option_set_peer_max_concurrent_streams(nghttp2_option *, uint32_t)
    void nghttp2_option_set_max_send_header_block_length(nghttp2_option *, size_t)
    void nghttp2_option_set_max_deflate_dynamic_table_size(nghttp2_option *, size_t)
    void nghttp2_option_set_builtin_recv_extension_type(nghttp2_option *, uint8_t)
    void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t)
    void nghttp2_option_set_max_continuations(nghttp2_option *, size_t)

    int nghttp2_session_client_new2(nghttp2_session **, nghttp2_session_callbacks *, void *, nghttp2_option *)
    int nghttp2_session_server_new3(
        nghttp2_session **, nghttp2_session_callbacks *, void *, nghttp2_option *, nghttp2_mem *)
    void nghttp2_session_del(nghttp2_session *)
    ssize_t nghttp2_session_mem_recv(nghttp2_session *, const uint8_t *, size_t) except? FAILED
    int nghttp2_session_send(nghttp2_session *) except? FAILED
    uint32_t nghttp2_session_get_next_stream_id(nghttp2_session *)
    int nghttp2_session_want_read(nghttp2_session *)
    int nghttp2_session_want_write(nghttp2_session *)
    int nghttp2_session_check_request_allowed(nghttp2_session *)
    uint32_t nghttp2_session_get_remote_settings(nghttp2_session *, int)
    int32_t nghttp2_session_get_last_proc_stream_id(nghttp2_session *)
    int32_t nghttp2_session_get_remote_window_size(nghttp2_session *)
    int32_t nghttp2_session_get_stream_remote_window_size(nghttp2_session *, int32_t)
    int nghttp2_session_set_stream_user_data(nghttp2_session *, int32_t, void *)
    void *nghttp2_session_get_stream_user_data(nghttp2_session *, int32_t)
    int nghttp2_session_set_local_window_size(nghttp2_session *, uint8_t, int32_t, int32_t)
    int nghttp2_session_consume(nghttp2_session *, int32_t, size_t)
    int nghttp2_session_resume_data(nghttp2_session *, int32_t)
    int nghttp2_session_change_extpri_stream_priority(nghttp2_session *, int32_t, const nghttp2_extpri *, int)
    int nghttp2_session_terminate_session(nghttp2_session *, uint32_t)

    int nghttp2_submit_settings(nghttp2_session *, uint8_t, nghttp2_settings_entry *, size_t)
    int32_t nghttp2_submit_request(
        nghttp2_session *, void *, const nghttp2_nv *, size_t, const nghttp2_data_provider *, void *)
    int nghttp2_submit_response(
        nghttp2_session *, int32_t, const nghttp2_nv *, size_t, const nghttp2_data_provider *)
    int nghttp2_submit_trailer(nghttp2_session *, int32_t, const nghttp2_nv *, size_t)
    int nghttp2_submit_rst_stream(nghttp2_session *, uint8_t, int32_t, uint32_t)
    int nghttp2_submit_ping(nghttp2_session *, uint8_t, const uint8_t *)
    int nghttp2_submit_goaway(nghttp2_session *, uint8_t, int32_t, uint32_t, const uint8_t *, size_t)
    int nghttp2_submit_shutdown_notice(nghttp2_session *)
