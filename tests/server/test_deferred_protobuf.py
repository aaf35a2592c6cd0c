"""protobuf's implementation in Python is not loaded where messages are C; whatever needs it has it."""

import os
import subprocess
import sys

import pytest

DEFERRED = "from onelane.server import deferred_protobuf as d; d.install()\n"
LOADED = "import sys\ndef loaded(): return 'GeneratedProtocolMessageType' in vars(sys.modules[d.PYTHON_MESSAGES])\n"
WORK = (
    "import copy\n"
    "from google.protobuf import any_pb2, json_format, struct_pb2, text_format, timestamp_pb2\n"
    "stamp = timestamp_pb2.Timestamp(); stamp.FromJsonString('2026-11-27T00:00:00Z')\n"
    "packed = any_pb2.Any(); packed.Pack(stamp)\n"
    "fields = struct_pb2.Struct(); fields.update({'a': [1, 'b']})\n"
    "assert text_format.Parse(str(packed), any_pb2.Any()) == packed == copy.deepcopy(packed)\n"
    "assert json_format.Parse(json_format.MessageToJson(fields), struct_pb2.Struct()) == fields\n"
    "assert stamp.ToJsonString() == '2026-11-27T00:00:00Z'\n"
    "try: timestamp_pb2.Timestamp(seconds='x')\n"
    "except (TypeError, ValueError): pass\n"
    "else: raise AssertionError\n"
)
"""What users do with messages, of types that have methods of their own too."""


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=variables).stdout


def test_messages_that_are_c_do_all_without_it() -> None:
    assert run(DEFERRED + LOADED + WORK + "print(loaded())") == "False\n"


def test_messages_that_are_python_load_it() -> None:
    code = (
        DEFERRED
        + LOADED
        + WORK
        + "print(loaded(), type(stamp).__class__ is sys.modules[d.PYTHON_MESSAGES].GeneratedProtocolMessageType)"
    )
    assert run(code, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python") == "True True\n"


@pytest.mark.parametrize(
    "use",
    [
        "from google.protobuf.internal.python_message import GeneratedProtocolMessageType as found",
        "import google.protobuf.internal.python_message as module; found = module.GeneratedProtocolMessageType",
        "from importlib import import_module as i; found = i(d.PYTHON_MESSAGES).GeneratedProtocolMessageType",
    ],
)
def test_who_asks_for_a_name_of_it_has_it(use: str) -> None:
    code = (
        f"import google.protobuf.any_pb2\n{use}\nprint(found.__name__, found.__module__ == d.PYTHON_MESSAGES, loaded())"
    )
    assert run(DEFERRED + LOADED + code) == "GeneratedProtocolMessageType True True\n"


def test_threads_that_ask_at_once_have_one_module() -> None:
    code = (
        "import google.protobuf.any_pb2, threading\n"
        "module = sys.modules[d.PYTHON_MESSAGES]\n"
        "together, found = threading.Barrier(8), []\n"
        "def ask():\n"
        "    together.wait()\n"
        "    found.append(module.GeneratedProtocolMessageType)\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "print(len(found), len(set(map(id, found))), sys.modules[d.PYTHON_MESSAGES] is module)"
    )
    assert run(DEFERRED + LOADED + code) == "8 1 True\n"


def test_tools_that_look_through_all_modules_do_not_load_it() -> None:
    code = (
        "import google.protobuf.any_pb2, inspect, warnings\n"
        "[getattr(module, '__warningregistry__', None) for module in list(sys.modules.values())]\n"
        "module = sys.modules[d.PYTHON_MESSAGES]\n"
        "inspect.getmodule(sys._getframe())\n"
        "print(loaded(), module.__file__ == module.__spec__.origin, 'def ' in inspect.getsource(module))\n"
    )
    assert run(DEFERRED + LOADED + code) == "False True True\n"


def test_a_name_that_it_does_not_have_is_an_attribute_error() -> None:
    code = "import google.protobuf.any_pb2\nprint(hasattr(sys.modules[d.PYTHON_MESSAGES], 'no_such_name'), loaded())"
    assert run(DEFERRED + LOADED + code) == "False True\n"


def test_where_it_is_loaded_already_nothing_changes() -> None:
    code = "import google.protobuf.any_pb2, sys\nmodule = sys.modules['google.protobuf.internal.python_message']\n"
    code += DEFERRED + "print(sys.modules[d.PYTHON_MESSAGES] is module, type(module).__name__)"
    assert run(code) == "True module\n"
