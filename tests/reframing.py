"""The same HTTP/2 exchange in other frames, and in other pieces: what no outcome may depend on."""

import itertools
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tests.frames import CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, frame

PADDED = 0x8
MAX_FRAME = 16_384


@dataclass(frozen=True)
class Piece:
    """Bytes that are written at once, and the turns of the loop until the next."""

    data: bytes
    turns: int


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    def __bytes__(self) -> bytes:
        return frame(self.kind, self.payload, flags=self.flags, stream=self.stream)


def frames_of(data: bytes) -> Iterator[Frame]:
    while data:
        size = int.from_bytes(data[:3], "big")
        yield Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size])
        data = data[9 + size :]


def cut(rng: Random, data: bytes, most: int) -> list[bytes]:
    """`data` in up to `most` pieces, none of them empty."""
    if len(data) < 2:
        return [data] if data else []
    borders = sorted({rng.randrange(1, len(data)) for _ in range(rng.randrange(most))})
    return [data[start:end] for start, end in itertools.pairwise([0, *borders, len(data)])]


def reframed(rng: Random, original: Frame, *, pads: bool) -> list[Frame]:
    """The same HEADERS or DATA in other frames."""
    if original.kind == HEADERS:
        first, *rest = cut(rng, original.payload, 3)
        kinds = [(HEADERS, original.flags & END_STREAM), *((CONTINUATION, 0) for _ in rest)]
        blocks = zip(kinds, (first, *rest), strict=True)
        frames = [Frame(kind, flags, original.stream, block) for (kind, flags), block in blocks]
        last = frames[-1]
        return [*frames[:-1], Frame(last.kind, last.flags | END_HEADERS, last.stream, last.payload)]
    frames = [Frame(DATA, 0, original.stream, piece) for piece in cut(rng, original.payload, 4)]
    if pads:
        frames = [padded(rng, each) for each in frames]
    for _ in range(rng.randrange(3)):
        frames.insert(rng.randint(0, len(frames)), Frame(DATA, 0, original.stream, b""))
    if original.flags & END_STREAM:
        if rng.random() < 0.5 or not frames:
            frames.append(Frame(DATA, 0, original.stream, b""))
        last = frames.pop()
        frames.append(Frame(DATA, last.flags | END_STREAM, last.stream, last.payload))
    return frames


def padded(rng: Random, plain: Frame) -> Frame:
    size = rng.randint(-20, 20)
    if size < 0 or len(plain.payload) + 1 + size > MAX_FRAME:
        return plain
    return Frame(plain.kind, plain.flags | PADDED, plain.stream, bytes([size]) + plain.payload + bytes(size))


def interleaved(rng: Random, frames: list[Frame]) -> list[Frame]:
    """The frames in another order: that within each stream stays, and that of all header blocks, as HPACK needs it."""
    queues: dict[int, deque[list[Frame]]] = defaultdict(deque)
    blocks: deque[int] = deque()
    """The streams of the header blocks that are still to come."""
    for each in frames:
        if each.kind == CONTINUATION:
            queues[each.stream][-1].append(each)
            continue
        queues[each.stream].append([each])
        if each.kind == HEADERS:
            blocks.append(each.stream)
    mixed: list[Frame] = []
    while queues:
        ready = [stream for stream, queue in queues.items() if queue[0][0].kind != HEADERS or stream == blocks[0]]
        stream = rng.choice(ready)
        group = queues[stream].popleft()
        if group[0].kind == HEADERS:
            blocks.popleft()
        if not queues[stream]:
            del queues[stream]
        mixed += group
    return mixed


def pieces(rng: Random, data: bytes, *, pads: bool = True) -> list[Piece]:
    """What one end of a connection sends, framed in another way, and cut into pieces anywhere.

    data: whole frames. Those of the connection come first, in their order. pads: some frames have padding.
    """
    frames = list(frames_of(data))
    connection = [each for each in frames if not each.stream]
    streams = [part for each in frames if each.stream for part in reframed(rng, each, pads=pads)]
    whole = b"".join(map(bytes, (*connection, *interleaved(rng, streams))))
    return [Piece(part, rng.randint(0, 4)) for part in cut(rng, whole, 12)]
