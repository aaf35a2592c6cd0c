"""A service that tells of the process that it runs in."""

import gc
import json
import os
import random
import signal
import ssl
import uuid
from typing import Any

import grpc.aio
import onelane

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class ProcessFacts(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: onelane.Shard) -> None: ...

    async def Unary(self, request: EchoRequest, context: grpc.aio.ServicerContext[Any, Any]) -> EchoReply:
        facts = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "session": os.getsid(0),
            "random": [random.random(), uuid.uuid4().hex, ssl.RAND_bytes(8).hex()],
            "hangup": str(signal.getsignal(signal.SIGHUP)),
            "collects": gc.isenabled(),
            "variable": os.environ.get("PROCESS_FACTS"),
        }
        return EchoReply(text=json.dumps(facts))
