"""A kind that cannot be encoded is refused by each field that is at fault."""

import asyncio
import collections
import datetime
import enum
import threading
import uuid
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import msgspec
import pytest
from onelane.state.kinds import encodable_faults

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Address(TypedDict, total=False):
    street: str
    since: datetime.date


class Tag(msgspec.Struct):
    name: str
    colour: Colour = Colour.RED


@dataclass
class Tree:
    """Refers to itself, and has what is no field."""

    children: "list[Tree]" = field(default_factory=list)
    _parent: int = 0
    LIMIT: ClassVar[threading.Lock]


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Player:
    name: str
    lock: threading.Lock


@dataclass
class Room:
    players: dict[str, Player]
    best: Player | None
    queue: asyncio.Queue[int] | None = None
    talk: "collections.deque[str]" = field(default_factory=collections.deque)
    size: int = 0


@dataclass
class Unresolved:
    name: "Missing"  # type: ignore[name-defined]  # noqa: F821


@dataclass
class Seeded:
    value: int
    seed: InitVar[int] = 0


class Plain: ...


ENCODABLE: list[Any] = [
    int,
    list,
    dict[str, float],
    set[bytes],
    tuple[int, ...],
    tuple[()],
    tuple[int, str],
    Any,
    object,
    Literal["a", 1],
    Annotated[int, msgspec.Meta(ge=0)],
    NewType("UserId", int),
    datetime.date,
    datetime.datetime | None,
    uuid.UUID,
    Colour,
    Point,
    Address,
    Tag,
    Tree,
    Box,
    Box[Tree],
]
REFUSED: list[tuple[Any, list[str]]] = [
    (
        Room,
        [
            "Player.lock: threading.Lock",
            "Room.queue: asyncio.queues.Queue[int]",
            "Room.talk: collections.deque[str]",
        ],
    ),
    (list[Plain], ["tests.state.test_kinds.Plain"]),
    (Box[Plain], ["tests.state.test_kinds.Plain"]),
    (Seeded, ["Seeded.seed: dataclasses.InitVar[int]"]),
    (Unresolved, ["tests.state.test_kinds.Unresolved (name 'Missing' is not defined)"]),
    (Tree | Point | Box, ["tests.state.test_kinds.Tree | tests.state.test_kinds.Point | tests.state.test_kinds.Box "
        "(Type unions may not contain more than one dataclass or attrs type)"]),
    (lambda: 0, ["tests.state.test_kinds.<lambda>"]),
    ("Room", ["Room"]),
]  # fmt: skip


@pytest.mark.parametrize("kind", ENCODABLE, ids=str)
def test_data_is_encodable(kind: Any) -> None:
    assert encodable_faults(kind) == []


@pytest.mark.parametrize(("kind", "faults"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_faults_are_named_by_field(kind: Any, faults: list[str]) -> None:
    assert encodable_faults(kind) == faults
