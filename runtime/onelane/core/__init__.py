"""Concepts that all other rooms share: keys, the ring, placements, turns, deadlines. Pure: no clock, socket or loop.

Imports: `errors`. Main types: `placement.Placement` (who owns a key) and `turns.Turns` (whose call runs next).
"""
