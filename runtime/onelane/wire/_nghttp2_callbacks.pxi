# Included by `_nghttp2.pyx`.
# The callbacks of libnghttp2, and its options. FAILED means that an exception is set.

cdef int _set_options(nghttp2_option *option, limits, bint is_server) except -1:
    nghttp2_option_set_no_auto_window_update(option, 1)
    nghttp2_option_set_no_closed_streams(option, 1)
    nghttp2_option_set_peer_max_concurrent_streams(option, 100)
    nghttp2_option_set_max_send_header_block_length(option, limits.max_sent_metadata)
    # Older releases count the reads in which the head of a frame comes, as many as it has bytes.
    nghttp2_option_set_max_continuations(option, limits.continuations * FRAME_HEAD)
    nghttp2_option_set_stream_reset_rate_limit(option, limits.resets[0], limits.resets[1])
    nghttp2_option_set_builtin_recv_extension_type(option, PRIORITY_UPDATE)
    if is_server:
        # Answers have few fields that recur, and every connection holds the table.
        nghttp2_option_set_max_deflate_dynamic_table_size(option, SERVER_TABLE)
    return 0


cdef void _set_callbacks(nghttp2_session_callbacks *callbacks) noexcept:
    nghttp2_session_callbacks_set_send_callback(callbacks, <void *>_on_send)
    nghttp2_session_callbacks_set_send_data_callback(callbacks, <void *>_on_send_data)
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, <void *>_on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback2(callbacks, <void *>_on_header)
    nghttp2_session_callbacks_set_on_invalid_header_callback2(callbacks, <void *>_on_invalid_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, <void *>_on_data)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, <void *>_on_frame)
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, <void *>_on_frame_sent)
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, <void *>_on_frame_not_sent)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, <void *>_on_stream_close)


cdef ssize_t _on_send(
    nghttp2_session *session, const uint8_t *data, size_t length, int flags, void *user_data
) except FAILED:
    memcpy(_room_for(&(<Session>user_data)._out, length, FIRST_ROOM), data, length)
    return length


cdef int _on_send_data(
    nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t length, nghttp2_data_source *source,
    void *user_data,
) except FAILED:
    """Write a whole DATA frame; no padding is asked for."""
    cdef Session self = <Session>user_data
    cdef _Stream stream = <_Stream>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    cdef size_t window = max(0, nghttp2_session_get_stream_remote_window_size(session, stream.id))
    cdef size_t further = min(stream.queued - length, window)
    cdef char *target = _room_for(&self._out, FRAME_HEAD + length, further + further // 1024 + FIRST_ROOM)
    memcpy(target, head, FRAME_HEAD)
    stream.copy_to(target + FRAME_HEAD, length)
    self._queued -= length
    return 0


cdef ssize_t _read_body(
    nghttp2_session *session, int32_t number, uint8_t *buffer, size_t length, uint32_t *flags,
    nghttp2_data_source *source, void *user_data,
) except FAILED:
    """How much of a stream's bytes the next DATA frame takes, and whether it is the last."""
    cdef _Stream stream = <_Stream>nghttp2_session_get_stream_user_data(session, number)
    cdef size_t size = min(length, stream.queued)
    flags[0] |= DATA_NO_COPY
    if size < stream.queued or stream.takes_data:
        if size:
            return size
        stream.waits = True
        return DEFERRED
    flags[0] |= DATA_EOF
    if stream.ends_ok:
        flags[0] |= DATA_NO_END_STREAM
        _check(nghttp2_submit_trailer(session, number, _OK, 1))
    elif stream.trailers is not None:
        flags[0] |= DATA_NO_END_STREAM
        (<Session>user_data)._submit_trailers(stream)
    return size


cdef int _on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) except FAILED:
    return (<Session>user_data)._begin_headers(frame)


cdef int _on_header(
    nghttp2_session *session, const nghttp2_frame *frame, nghttp2_rcbuf *name, nghttp2_rcbuf *value, uint8_t flags,
    void *user_data,
) except FAILED:
    return (<Session>user_data)._block.add(name, value, flags)


cdef int _on_invalid_header(
    nghttp2_session *session, const nghttp2_frame *frame, nghttp2_rcbuf *name, nghttp2_rcbuf *value, uint8_t flags,
    void *user_data,
) noexcept:
    """A field that is no valid one resets its stream; libnghttp2 would leave it out."""
    return REFUSE_STREAM


cdef int _on_data(
    nghttp2_session *session, uint8_t flags, int32_t number, const uint8_t *data, size_t length, void *user_data
) except FAILED:
    cdef void *stream = nghttp2_session_get_stream_user_data(session, number)
    return 0 if stream == NULL else (<Session>user_data)._add_data(<_Stream>stream, flags, data, length)


cdef int _on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) except FAILED:
    return (<Session>user_data)._frame_received(frame)


cdef int _on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) except FAILED:
    if frame.hd.type == GOAWAY:
        (<Session>user_data)._sent_goaway = frame.goaway.error_code
        return (<Session>user_data)._note_goaway(&frame.goaway)
    if frame.hd.type == RST_STREAM and frame.rst_stream.error_code == FLOW_CONTROL_ERROR:
        # Older releases read on for ever from a peer that sends more than its window; newer ones do this themselves.
        nghttp2_session_terminate_session(session, FLOW_CONTROL_ERROR)
    return 0


cdef int _on_frame_not_sent(
    nghttp2_session *session, const nghttp2_frame *frame, int error, void *user_data
) except FAILED:
    return (<Session>user_data)._not_sent(frame, error) if frame.hd.type == HEADERS else 0


cdef int _on_stream_close(nghttp2_session *session, int32_t number, uint32_t error, void *user_data) except FAILED:
    return (<Session>user_data)._stream_closed(number, error)
