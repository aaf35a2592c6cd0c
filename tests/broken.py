"""Services whose object cannot be made."""

import os
import time
from pathlib import Path

import onelane

from tests.echo import service as echo_service
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


class Unwilling(echo_service.Echo):
    """An `Echo` that cannot be made in the shard that the file `fault` of the working directory names: it `dies`, or it
    `hangs` until the file is gone."""

    FAULT = Path("fault")

    def __init__(self, shard: onelane.Shard) -> None:
        if self.FAULT.exists() and (order := self.FAULT.read_text().split())[1] == shard.name:
            if order[0] == "dies":
                os._exit(1)
            while self.FAULT.exists():
                time.sleep(0.01)
        super().__init__(shard)
