"""`python -m tests.cluster.xds.grpcio_client TARGET METHOD`: a stock client, grpcio's.

It calls METHOD for each key of a line "FIRST COUNT" on its stdin, the keys FIRST to FIRST + COUNT - 1, and prints the
answers, or the errors with a `!` before them, as one line of JSON. So do the clients of tests/grpc_xds and tests/java.
"""

import asyncio
import json
import sys

import grpc
import grpc.aio

CALLS_AT_ONCE = 100
CAP = 1 << 20
"""Points of the largest ring that is built; the default, 4096, is the ring of 8 shards."""


async def serve(target: str, method: str) -> None:
    async with grpc.aio.insecure_channel(target, options=[("grpc.lb.ring_hash.ring_size_cap", CAP)]) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        places = asyncio.Semaphore(CALLS_AT_ONCE)

        async def answer(key: str) -> str:
            async with places:
                request = b"\x0a" + bytes([len(key)]) + key.encode()
                try:
                    response: bytes = await call(
                        request, metadata=[("onelane-key", key)], timeout=60, wait_for_ready=True
                    )
                except grpc.aio.AioRpcError as error:
                    return f"!{error.code()} {error.details()}"
                return response.decode(errors="replace")

        while line := await asyncio.to_thread(sys.stdin.readline):
            first, count = map(int, line.split())
            answers = await asyncio.gather(*(answer(str(key)) for key in range(first, first + count)))
            sys.stdout.write(json.dumps(answers) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
