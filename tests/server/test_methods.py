"""What a servicer serves, as it is found through the code that grpcio generates."""

import sys

import pytest
from onelane.core.keys import ANY, FieldKey
from onelane.errors import BadService
from onelane.server import methods

from tests.echo.service import Echo
from tests.echo.v1 import echo_pb2_grpc
from tests.greeter.service import Greeter
from tests.greeter.v1 import greeter_pb2_grpc
from tests.greeter.v1.greeter_pb2 import DESCRIPTOR


def test_every_method_of_a_servicer_is_found_with_its_shape_and_its_key() -> None:
    served = {method.name: method for method in methods.methods_of(Echo.__new__(Echo), configured={})}
    declared = {name for name in vars(echo_pb2_grpc.EchoServicer) if name[0].isupper()}
    assert {name.rpartition("/")[2] for name in served} == declared
    chat = next(method for name, method in served.items() if name.endswith("/Chat"))
    assert (chat.request_streaming, chat.response_streaming) == (True, True)
    unary = next(method for name, method in served.items() if name.endswith("/Unary"))
    assert isinstance(unary.rule, FieldKey)


def test_methods_without_a_key_are_refused_all_at_once_and_say_what_to_do() -> None:
    with pytest.raises(BadService) as raised:
        methods.methods_of(Greeter(), configured={})
    declared = [name for name in vars(greeter_pb2_grpc.GreeterServicer) if name[0].isupper()]
    assert all(f"/{name}: has no key; annotate a field" in str(raised.value) for name in declared)


def test_configuration_gives_keys_to_a_whole_service() -> None:
    service = DESCRIPTOR.services_by_name["Greeter"].full_name
    served = methods.methods_of(Greeter(), configured={f"{service}/*": "ANY"})
    assert {method.rule for method in served} == {ANY}


@pytest.mark.parametrize(
    ("plug", "words"),
    [
        ("tests.no_such_module:Echo", "no module 'tests.no_such_module'"),
        ("tests.echo.service:Nobody", "has no class 'Nobody'; it has"),
        ("tests.running_app:RunningApp", "derives from no generated …Servicer"),
    ],
)
def test_a_plug_that_names_no_servicer_says_what_was_found_instead(plug: str, words: str) -> None:
    with pytest.raises(BadService, match=words):
        methods.servicer_class(plug)


def test_a_service_that_takes_no_shard_is_made_without_one() -> None:
    class TakesShard(greeter_pb2_grpc.GreeterServicer):
        def __init__(self, shard: object) -> None:
            self.shard = shard

    assert methods.make(TakesShard, "the shard").shard == "the shard"  # type: ignore[attr-defined]
    assert isinstance(methods.make(Greeter, "the shard"), Greeter)


def test_a_method_is_known_by_the_function_that_defines_it() -> None:
    service = Echo.__new__(Echo)
    unary = next(m for m in methods.methods_of(service, configured={}) if m.path.endswith("/Unary"))
    assert methods.is_of(unary, Echo.Unary)
    assert methods.is_of(unary, echo_pb2_grpc.EchoServicer.Unary)
    assert not methods.is_of(unary, Echo.Chat)
    assert not methods.is_of(unary, sys.exit)
