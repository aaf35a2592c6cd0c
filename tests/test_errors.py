"""Errors say what happened, and which gRPC status a client sees."""

import grpc
import pytest
from onelane import errors
from onelane.errors import BadConfig, Draining, Invalid, NotHome, OnelaneError, Overloaded, Refused, TooOften, Transient

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, OnelaneError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_the_status_of_every_error_is_one_of_grpcs(cls: type[OnelaneError]) -> None:
    assert cls.status in grpc.StatusCode.__members__


def test_a_bad_configuration_lists_every_fault() -> None:
    error = BadConfig("onelane.toml", ["line 1: x", "line 2: y"])
    assert str(error) == "onelane.toml: 2 fault(s)\n  line 1: x\n  line 2: y"


@pytest.mark.parametrize(
    ("error", "family", "text"),
    [
        (
            NotHome(epoch=7),
            Transient,
            "not the owner by the placement of epoch 7, and the call was forwarded once already",
        ),
        (
            errors.ForeignKey("k", shard="a-0", owner="a-1"),
            errors.Misuse,
            "the key 'k' belongs to shard a-1, not to a-0",
        ),
        (Overloaded("shard a-0", waiting=3), Refused, "shard a-0 is full: 3 waiting already"),
        (TooOften(per_s=5.0, wait_s=0.2), Refused, "called more often than 5 times a second"),
        (errors.PortTaken("127.0.0.1:80", "nginx"), Invalid, "127.0.0.1:80 is taken by nginx"),
    ],
)
def test_an_error_says_what_happened(error: OnelaneError, family: type[OnelaneError], text: str) -> None:
    assert isinstance(error, family)
    assert text in str(error)


def test_a_client_may_retry_a_refused_call_after_its_pushback() -> None:
    assert TooOften(per_s=5.0, wait_s=0.2).pushback_s == 0.2


def test_a_task_group_is_reported_by_its_first_error_of_this_runtime() -> None:
    consequence, cause = ValueError("a consequence"), Draining("the cause")
    group = ExceptionGroup("tasks", [consequence, ExceptionGroup("inner", [cause])])
    assert errors.first_of(group) is cause


def test_a_task_group_without_errors_of_this_runtime_is_reported_by_its_first() -> None:
    first = ValueError("first")
    assert errors.first_of(ExceptionGroup("tasks", [first, KeyError("second")])) is first
