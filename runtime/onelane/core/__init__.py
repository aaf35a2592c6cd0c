"""What every room speaks about: keys, the ring, placements, turns, deadlines. Pure: no clock, no socket, no loop.

Imports: `errors`. Main types: `placement.Placement` (who owns a key) and `turns.Turns` (whose call runs next).
"""
