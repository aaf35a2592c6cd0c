"""The files of a new project, and the names that it may have."""

import keyword
import re
import sys
from importlib.machinery import PathFinder
from string import Template

MAX_PROJECT_NAME = 63
"""Characters, as of an app."""
_OWN_NAMES = {"service", "client", "test_service", "proto"}
"""Modules and folders of the project itself."""
_OWN_CLASSES = {"AddRequest", "AddReply"}
"""Messages of its proto."""

_PROTO = """\
syntax = "proto3";

package $name.v1;

import "onelane/v1/options.proto";

service $Service {
  rpc Add(AddRequest) returns (AddReply);
}

message AddRequest {
  // The key: calls with the same name run in the same lane, one after the other.
  string name = 1 [(onelane.v1.key) = true];
  int64 amount = 2;
}

message AddReply {
  int64 total = 1;
}
"""

_SERVICE = '''\
"""The service $name. Each shard has one object of it, whose methods run on one thread: it needs no lock."""

import grpc.aio
import onelane
from $name.v1 import ${name}_pb2, ${name}_pb2_grpc


class $Service(${name}_pb2_grpc.${Service}Servicer):
    def __init__(self, shard: onelane.Shard) -> None:
        # A plain dict, whose keys are routing keys. With durable=True it survives crashes.
        self.totals = shard.keyed("totals", int)

    async def Add(
        self, request: ${name}_pb2.AddRequest, context: grpc.aio.ServicerContext
    ) -> ${name}_pb2.AddReply:
        total = self.totals.get(request.name, 0) + request.amount
        self.totals[request.name] = total
        return ${name}_pb2.AddReply(total=total)
'''

_SETTINGS = """\
# Every setting: `App` in onelane/config/app.py. `onelane check` finds its faults.

[apps.$app]
services = ["service:$Service"]
listen = "127.0.0.1:50051"
shards = 2                       # or "auto": one per core
"""

_TEST = '''\
"""The service runs in the test's own process, without ports: see `onelane.testing.Cluster`."""

from $name.v1.${name}_pb2 import AddRequest
from $name.v1.${name}_pb2_grpc import ${Service}Stub


async def test_the_amounts_of_a_name_add_up(onelane_cluster):
    async with onelane_cluster("service:$Service", shards=3) as cluster:
        stub = cluster.stub(${Service}Stub)
        assert (await stub.Add(AddRequest(name="apples", amount=2))).total == 2
        assert (await stub.Add(AddRequest(name="apples", amount=3))).total == 5
        assert (await stub.Add(AddRequest(name="pears", amount=1))).total == 1


async def test_totals_move_with_their_name_when_a_shard_is_restarted(onelane_cluster):
    async with onelane_cluster("service:$Service", shards=2) as cluster:
        stub = cluster.stub(${Service}Stub)
        await stub.Add(AddRequest(name="apples", amount=2))
        await cluster.restart(cluster.owner_of("apples"))
        assert (await stub.Add(AddRequest(name="apples", amount=3), wait_for_ready=True)).total == 5
'''

_CLIENT = '''\
"""python client.py [ADDRESS]: adds, and prints the total. Each call goes to the owner of its key."""

import asyncio
import sys

import onelane
from $name.v1 import ${name}_pb2, ${name}_pb2_grpc


async def main(address: str) -> None:
    async with onelane.connect(address) as channel:
        stub = ${name}_pb2_grpc.${Service}Stub(channel)
        reply = await stub.Add(${name}_pb2.AddRequest(name="apples", amount=2))
        print(f"apples: {reply.total}")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"))
'''

_PAGE = """\
# $name

    pip install 'onelane[proto,reload]' pytest
    onelane proto                # generates the modules of $name/v1 from proto/
    pytest                       # the service in the test's own process
    onelane up --reload          # serves on 127.0.0.1:50051, and follows changes of these files

In another terminal:

    python client.py
    onelane call 127.0.0.1:50051 $Service/Add '{"name": "apples", "amount": 1}'
    onelane status
"""

_IGNORED = """\
__pycache__/
.pytest_cache/
.venv/
/state/
"""


def fault_of_name(name: str) -> str:
    """Why no project can be called so, or ""."""
    if not _is_plain(name):
        near = _like(name)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"expected a Python identifier of lower-case letters, digits and single underscores{hint}"
    if len(name) > MAX_PROJECT_NAME:
        return f"it has {len(name)} characters, expected at most {MAX_PROJECT_NAME}"
    if keyword.iskeyword(name):
        return "it is a keyword of Python, so it cannot be imported"
    service = _service_of(name)
    if keyword.iskeyword(service):
        return f"its service would be {service}, a keyword of Python"
    if name in _OWN_NAMES or service in _OWN_CLASSES:
        return "a part of the project itself is called so; choose another name"
    if _is_taken(name):
        return f"it would hide the module {name!r} that is installed; choose another name"
    return ""


def project_files(name: str) -> dict[str, str]:
    """Path below the project's folder → text. name: one that `fault_of_name` finds no fault in."""
    texts = {
        f"proto/{name}/v1/{name}.proto": _PROTO,
        "service.py": _SERVICE,
        "onelane.toml": _SETTINGS,
        "test_service.py": _TEST,
        "client.py": _CLIENT,
        "README.md": _PAGE,
        ".gitignore": _IGNORED,
    }
    words = {"name": name, "Service": _service_of(name), "app": name.replace("_", "-")}
    return {path: Template(text).substitute(words) for path, text in texts.items()}


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) is not None


def _service_of(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _like(name: str) -> str:
    """The name with underscores between its words and without capital letters; "" where that is no name either."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)
    plain = "_".join(words).lower()
    is_like = plain.replace("_", "") == re.sub(r"[\s._-]", "", name).lower()
    return plain if is_like and _is_plain(plain) else ""


def _is_taken(name: str) -> bool:
    """Whether an import of this name leads to a module of Python, or of an installed package."""
    installed = [path for path in sys.path if path.rstrip("/").endswith(("site-packages", "dist-packages"))]
    return name in sys.stdlib_module_names or name == "onelane" or PathFinder.find_spec(name, installed) is not None
