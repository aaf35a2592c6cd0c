"""The line that a log line names is the service's own, not the library's and not ours."""

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
from onelane.core.keys import ANY
from onelane.server import payloads, user_code
from onelane.server.arguments import BadHandler
from onelane.server.methods import Method
from onelane.testing.listener import MemoryCall


def raised(work: Callable[[], Any]) -> BaseException:
    try:
        work()
    except BaseException as error:
        return error
    raise AssertionError


def line(function: Any, offset: int = 0) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno + offset}"


def calls_a_library() -> None:
    json.loads("{")


def calls_us() -> None:
    call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
    call.set_details(b"bytes")  # type: ignore[arg-type]


@pytest.mark.parametrize(("function", "offset"), [(calls_a_library, 1), (calls_us, 2)])
def test_the_line_of_an_error_is_the_innermost_of_the_service(function: Callable[[], None], offset: int) -> None:
    assert user_code.line_of(raised(function)) == line(function, offset)


def test_an_error_without_a_line_of_the_service_has_the_one_of_its_cause() -> None:
    error = RuntimeError()
    error.__cause__ = raised(calls_a_library)
    assert user_code.line_of(error) == line(calls_a_library, 1)


class Servicer:
    def method(self, request: Any, context: Any) -> None:
        """A handler."""

    __call__ = method


@pytest.mark.parametrize(
    "handler_",
    [Servicer.method, Servicer().method, functools.partial(Servicer().method, None), Servicer()],
    ids=["function", "method", "partial", "object"],
)
def test_a_handler_of_any_kind_has_a_definition(handler_: Any) -> None:
    assert user_code.definition_of(handler_) == line(Servicer.method)
    assert user_code.definition_of("no function") == ""


def test_an_answer_is_blamed_on_the_handler_that_gave_it() -> None:
    method = Method("/t.T/M", Servicer().method, False, False, False, None, None, ANY)
    error = raised(lambda: payloads.bytes_of(method, MemoryCall("/t.T/M", (), trusted=False, deadline_s=None), None))
    assert isinstance(error, BadHandler)
    assert error.line == line(Servicer.method)


def test_a_summary_is_one_line_whatever_the_error_is() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert "\n" not in user_code.summary(ValueError("two\nlines"))
    assert "Hostile" in user_code.summary(Hostile())
    assert len(user_code.summary(ValueError("x" * 10_000))) < 1000
