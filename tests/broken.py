"""Services whose object cannot be made."""

import time

import onelane

from tests.echo.v1 import echo_pb2_grpc


class Broken(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        raise self.error()

    def error(self) -> Exception:
        return RuntimeError("this service cannot be made")


class Grouped(Broken):
    """As what a task group raises."""

    def error(self) -> Exception:
        return ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("inner", [OSError("disk full")])])


class Noted(Broken):
    def error(self) -> Exception:
        error = ValueError("first line\nsecond line")
        error.add_note("see the manual")
        return error


class Misspelt(Broken):
    def error(self) -> Exception:
        return SyntaxError("invalid syntax", ("here.py", 3, 1, "def def", 3, 5))


class Hanging(Broken):
    def error(self) -> Exception:
        time.sleep(600)
        return TimeoutError("nobody ended it")
