"""A process that serves by the native listener has grpcio's names without its C core; what needs the core loads it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, running

CALLERS = '[apps.callers]\nservices = ["tests.server.grpcio_caller:GrpcioCaller"]\nlisten = "127.0.0.1:0"\nshards = 1\n'
CORE = "from onelane.server import deferred_core as core; core.install()\n"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("core"), f"{CALLERS}{echo(1)}") as app:
        yield app


def has_core(app: RunningApp, name: str) -> bool:
    """Whether the only shard of an app has the file of grpcio's core in its memory."""
    return "cygrpc" in Path(f"/proc/{app.shards(name)[0]['pid']}/maps").read_text()


async def test_a_shard_on_the_native_listener_serves_without_the_core_until_a_handler_needs_it(app: RunningApp) -> None:
    async with grpc.aio.insecure_channel(app.listen["callers"]) as channel:
        assert not has_core(app, "callers")
        order = EchoRequest(text="hello", key="a", order=app.listen["echo"])
        assert (await echo_pb2_grpc.EchoStub(channel).Unary(order)).text == "hello"
    # Echo's services do without it: so do reflection, health and telemetry, which every shard has.
    assert (has_core(app, "callers"), has_core(app, "echo")) == (True, False)


def run(code: str, *, first: str = "") -> str:
    """What a fresh interpreter prints for `code`, where the core is deferred. first: what it runs before."""
    command = [sys.executable, "-c", first + CORE + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=True).stdout


def test_what_grpcio_exports_of_the_core_is_the_same_object_before_and_after() -> None:
    assert run(
        "import asyncio, grpc, grpc.aio\n"
        "end, abort, status = grpc.aio.EOF, grpc.aio.AbortError, grpc.StatusCode.NOT_FOUND\n"
        "caught = []\n"
        "async def download(request, context):\n"
        "    yield b'one'\n"
        "async def unary(request, context):\n"
        "    try:\n"
        "        await context.abort(status)\n"
        "    except abort as error:\n"
        "        caught.append(type(error).__name__)\n"
        "        raise\n"
        "async def main():\n"
        "    handlers = {'Download': grpc.unary_stream_rpc_method_handler(download),\n"
        "                'Unary': grpc.unary_unary_rpc_method_handler(unary)}\n"
        "    print(core.is_loaded())\n"
        "    server = grpc.aio.server()\n"
        "    print(core.is_loaded())\n"
        "    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('Echo', handlers),))\n"
        "    port = server.add_insecure_port('127.0.0.1:0')\n"
        "    await server.start()\n"
        "    async with grpc.aio.insecure_channel(f'127.0.0.1:{port}') as channel:\n"
        "        call = channel.unary_stream('/Echo/Download')(b'')\n"
        "        print(await call.read(), await call.read() is end, bool(end), repr(end))\n"
        "        try:\n"
        "            await channel.unary_unary('/Echo/Unary')(b'')\n"
        "        except grpc.aio.AioRpcError as error:\n"
        "            print(error.code() is status)\n"
        "    await server.stop(20)\n"
        "    print(caught)\n"
        "asyncio.run(main())\n"
    ).splitlines() == ["False", "True", "b'one' True False <grpc.aio.EOF>", "True", "['AbortError']"]


def test_the_core_itself_agrees_with_what_was_said_for_it() -> None:
    # `_loaded` compares the constants; here, that each name that is put off is the core's.
    assert run(
        "import grpc\n"
        "held = __import__('grpc._cython.cygrpc', fromlist=['x'])\n"
        "print(grpc.Compression.Gzip, isinstance(1, held.AioChannel), core.is_loaded())\n"
        "held.OperationType\n"
        "real = __import__('sys').modules['grpc._cython.cygrpc']\n"
        "print(core.is_loaded(), [name for name in core.NAMED if not hasattr(real, name)])\n"
        "print(all(issubclass(getattr(real, name), real.BaseError) for name in core.EXCEPTIONS))\n"
        "print(grpc._cython.cygrpc is grpc._common.cygrpc is real)\n"
        "print(isinstance(real.CallCredentials(), held.CallCredentials))\n"
    ).splitlines() == ["2 False False", "True []", "True", "True", "True"]


def test_a_core_whose_constants_differ_is_refused_by_name() -> None:
    assert run(
        "import grpc, grpc.aio\n"
        "core.CONSTANTS['StatusCode']['aborted'] = 99\n"
        "try:\n"
        "    grpc.aio.insecure_channel('127.0.0.1:1')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    ).startswith("grpcio's core has another StatusCode.aborted than 99")


def test_a_process_that_has_the_core_already_keeps_it() -> None:
    assert run("print(core.is_loaded())", first="import grpc\n") == "True\n"


def test_a_class_of_the_core_that_was_named_before_can_be_a_base_and_is_asked_about_subclasses() -> None:
    assert (
        run(
            "import grpc\n"
            "from grpc._cython.cygrpc import ChannelCredentials as early\n"
            "class Own(early):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.mark = 'own'\n"
            "from grpc._cython.cygrpc import ChannelCredentials as late\n"
            "print(Own().mark, isinstance(Own(), Own), issubclass(Own, early), issubclass(late, early))\n"
            "print(issubclass(int, early), issubclass(early, early))\n"
        )
        == "own True True True\nFalse True\n"
    )
