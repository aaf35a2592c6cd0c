"""How long tests wait for what must come: longer than a starved machine takes, since a shorter bound fails with it."""

BOUND_S = 150.0
"""Of a coroutine test as a whole, and so of each thing that it waits for: a call's deadline, a process, a future. Below
the `timeout` of pyproject.toml, whose signal breaks the loop that all tests share."""
LEAST_BOUND_S = 60.0
"""`tests/house` refuses a shorter one, but for deadlines that are to pass, which are under two seconds."""
