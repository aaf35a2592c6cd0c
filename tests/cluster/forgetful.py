"""A lobby whose rooms do not move: what a restart does to state that nobody carries."""

import onelane

from services.arena.lobby import Lobby, Room


class ForgetfulLobby(Lobby):
    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard)
        self.rooms = shard.keyed("forgotten", Room, moves=False)
