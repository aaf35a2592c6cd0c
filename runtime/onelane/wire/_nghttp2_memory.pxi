# Included by `_nghttp2.pyx`.
# The memory of libnghttp2's sessions. Each writes its frames, one after the other, into a buffer of 16 KiB. Servers share
# one: a frame is copied out of it (`_on_send`, `_on_send_data`) before any Python code can run, and so before another
# session or thread can write. It spares an idle connection the page that its SETTINGS would have touched.
# A client has its own: the preface of HTTP/2 lies in it from the beginning on.

cdef size_t FRAME_BUFFER = 16 * 1024
"""The buffer has at least so many bytes. Nothing else that is allocated for a new session is as large."""
cdef void *_frame_buffer = NULL
"""Allocated once, and never freed."""
cdef size_t _frame_buffer_size = 0
cdef bint _wants_frame_buffer = False
"""A server's session is being made, and has not got its buffer. What it allocates later, for large header blocks, is its own."""
cdef nghttp2_mem _allocator


cdef nghttp2_mem *_memory_of_new_server() noexcept:
    """The allocator of the server's session that is made next."""
    global _wants_frame_buffer
    _wants_frame_buffer = True
    _allocator.malloc, _allocator.free = <void *>_malloc, <void *>_free
    _allocator.calloc, _allocator.realloc = <void *>_calloc, <void *>_realloc
    return &_allocator


cdef void *_malloc(size_t size, void *_) noexcept:
    return malloc(size)


cdef void *_calloc(size_t count, size_t size, void *_) noexcept:
    return calloc(count, size)


cdef void *_realloc(void *block, size_t size, void *_) noexcept:
    """Buffers of libnghttp2 begin as a block of nothing that grows."""
    global _wants_frame_buffer
    if block == NULL and _wants_frame_buffer and size >= FRAME_BUFFER:
        _wants_frame_buffer = False
        return _shared_frame_buffer(size)
    if block != NULL and block == _frame_buffer:
        return _copied_frame_buffer(size)
    return realloc(block, size)


cdef void _free(void *block, void *_) noexcept:
    if block != _frame_buffer:
        free(block)


cdef void *_shared_frame_buffer(size_t size) noexcept:
    """The buffer of all; one of its own for a session that wants a larger one than those before it."""
    global _frame_buffer, _frame_buffer_size
    if _frame_buffer == NULL:
        _frame_buffer, _frame_buffer_size = malloc(size), size
    return _frame_buffer if size <= _frame_buffer_size else malloc(size)


cdef void *_copied_frame_buffer(size_t size) noexcept:
    """A buffer of its own for a session that wants a larger one."""
    cdef void *larger = malloc(size)
    if larger != NULL:
        memcpy(larger, _frame_buffer, min(size, _frame_buffer_size))
    return larger
