"""What the players were told, to be compared with what the services say: is anything lost that was acknowledged?

A player's record is durable: never lost. A room moves with its key, and ends with the process that is killed: it may be
lost where a shard that was killed may have owned it. Pure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from onelane.core.placement import Placement


@dataclass
class Crash:
    """A shard that was killed."""

    shard: str
    placements: list[Placement]
    """Of its app at that time: two where a change was under way."""

    def may_have_owned(self, key: str) -> bool:
        return any(placement.owner_of(key).name == self.shard for placement in self.placements)


@dataclass
class RoomPage:
    """A room as its players know it."""

    players: list[str] = field(default_factory=list)
    """Those whose Join was acknowledged, in order."""
    checked: int = 0
    """How many crashes were over before the last call that has seen all of them in the room."""


@dataclass
class PlayerPage:
    """A player's record as the last acknowledged answer has it."""

    rating: float
    games: int
    unknown: int = 0
    """Games whose outcome no answer told: each may be in the record, or not."""
    on_board: float | None = None
    """The rating on the board, after a game won."""


@dataclass(frozen=True)
class RoomLoss:
    """A room whose players are not in it any more."""

    room_id: str
    players: tuple[str, ...]
    crashes: tuple[Crash, ...]
    """Those since its players were seen last."""

    @property
    def is_excused(self) -> bool:
        return any(crash.may_have_owned(self.room_id) for crash in self.crashes)


class Ledger:
    """See the module. Its methods are told answers, and say themselves what does not agree with earlier ones."""

    def __init__(self) -> None:
        self.rooms: dict[str, RoomPage] = {}
        self.players: dict[str, PlayerPage] = {}
        self.crashes: list[Crash] = []
        """Of the app that has the rooms."""
        self.crashes_over = 0
        """How many of these processes have ended: what is sent from now on, none of them answers."""
        self._room_losses: list[RoomLoss] = []
        self._record_losses: list[str] = []

    # Rooms

    def joined(self, room_id: str, player: str, players: Sequence[str], crashes_over: int) -> None:
        """A Join was answered by the players of the room. crashes_over: as it was when the call began."""
        page = self.rooms.setdefault(room_id, RoomPage(checked=crashes_over))
        missing = [name for name in page.players if name not in players]
        if missing:
            self.missed(room_id, missing)
        page.checked = max(page.checked, crashes_over)
        if player not in page.players:
            page.players.append(player)

    def missed(self, room_id: str, players: Sequence[str]) -> None:
        """Players are not in their room. Those whose Join was acknowledged, and who were not missed since, are lost."""
        page = self.rooms[room_id]
        if not (players := [name for name in players if name in page.players]):
            return
        self._room_losses.append(RoomLoss(room_id, tuple(players), tuple(self.crashes[page.checked :])))
        page.players = [name for name in page.players if name not in players]

    def left(self, room_id: str) -> None:
        """The room is finished, or may be."""
        self.rooms.pop(room_id, None)

    # Players

    def read(self, player: str, rating: float, games: int | None = None) -> None:
        """An answer tells a player's record. games: where it tells them."""
        page = self.players.get(player)
        if page is None:
            if games is not None:
                self.players[player] = PlayerPage(rating, games)
            return
        if page.unknown == 0 and rating != page.rating:
            self._record_losses.append(f"{player}: the rating was {page.rating}, and is {rating}")
        if games is not None and not page.games <= games <= page.games + page.unknown:
            expected = f"{page.games}" + (f" to {page.games + page.unknown}" if page.unknown else "")
            self._record_losses.append(f"{player}: expected {expected} games, and they are {games}")

    def rated(self, player: str, rating: float, *, on_board: bool) -> None:
        """A game of the player is over, and acknowledged. on_board: its rating was reported to the board."""
        page = self.players[player]
        page.rating, page.games = rating, page.games + 1
        if on_board:
            page.on_board = rating

    def not_told(self, players: Sequence[str]) -> None:
        """A game of these players may be over, or not."""
        for player in players:
            self.players[player].unknown += 1

    def read_board(self, ratings: dict[str, float]) -> None:
        """What the board says of all players on it."""
        for player, page in self.players.items():
            if page.unknown == 0 and page.on_board is not None and ratings.get(player) != page.on_board:
                line = f"{player}: the board had {page.on_board}, and has {ratings.get(player)}"
                self._record_losses.append(line)

    # The end

    def lost(self) -> Iterator[str]:
        """What was acknowledged and is lost, a line for each."""
        yield from self._record_losses
        for loss in self._room_losses:
            if not loss.is_excused:
                killed = ", ".join(crash.shard for crash in loss.crashes) or "no shard"
                players = f"{len(loss.players)} who joined are not in it, {loss.players[0]} for example"
                yield f"{loss.room_id}: {players}; killed meanwhile: {killed}"

    @property
    def excused(self) -> int:
        """Losses of rooms that ended with a shard that was killed."""
        return sum(loss.is_excused for loss in self._room_losses)
