"""What things take in the simulation: measured here, or said where from."""

LOOK_UP_S = 2e-6
"""One look-up of a key's owner, interpreted: 1 µs at 100 lanes, 2.3 at 1,000, whose ring is larger than a cache."""
POINT_S = 1.2e-6
"""One point of a ring that is built: 0.58 s for the 512,000 points of 1,000 lanes, measured, interpreted, and 0.04 s
for the placement that has it."""
MEMBER_S = 1e-6
"""One member of a placement that a process reads."""
CALL_S = 20e-6
"""One call between shards, for either of them: what the native wire takes, and TLS."""
SEND_KEY_S, INSTALL_KEY_S = 10e-6, 7e-6
"""The steps of a key that moves: 17 µs (decision 0024)."""
STORE_S = 5e-3
"""A transaction of etcd, with its flush to disk."""
WATCH_S = 2e-3
"""From there to the supervisor of another machine."""
LATENCY_S, JITTER_S = 0.25e-3, 0.1e-3
"""Between two machines of one site: at least, and the mean of what comes on top."""
LINK_BYTES_PER_S = 1.25e9
"""Of a machine: 10 Gbit/s."""
KEY_BYTES = 1024
"""State of one key."""
CALL_BYTES = 120
"""Of a call, without keys."""
MEMBER_BYTES = 70
"""Of a member in a placement."""
EXPIRY_S = 0.5
"""How late etcd notices that a lease has run out, at most."""
LEASE_S = 5.0
