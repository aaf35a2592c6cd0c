"""The player of scenarios notices every difference."""

import asyncio
from pathlib import Path

import pytest

from tests import scenarios

TEXT = """# What is said is repeated.

say one two
  one
  two
say

say three
  three
"""


class Repeating:
    """Repeats each word of a command."""

    async def run(self, line: str) -> list[str]:
        return line.split()[1:]

    async def aclose(self) -> None:
        """It began nothing."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "repeated.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        pytest.param("  two\n", "", id="a missing line"),
        pytest.param("say\n", "say\n  one\n", id="an extra line"),
        pytest.param("  one\n  two\n", "  two\n  one\n", id="another order"),
        pytest.param("  three\n", "  three \n", id="a space"),
        pytest.param("  three\n", "  three", id="no end of line"),
    ],
)
def test_an_output_that_differs_fails(file: Path, line: str, instead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWRITE", raising=False)
    asyncio.run(scenarios.check(file, Repeating))
    file.write_text(TEXT.replace(line, instead))
    with pytest.raises(AssertionError):
        asyncio.run(scenarios.check(file, Repeating))
    monkeypatch.setenv("REWRITE", "1")
    asyncio.run(scenarios.check(file, Repeating))
    assert file.read_text() == TEXT


async def test_a_command_that_fails_is_named(file: Path) -> None:
    class Failing(Repeating):
        async def run(self, line: str) -> list[str]:
            if "three" in line:
                raise ValueError("three is too much")
            return await super().run(line)

    with pytest.raises(ValueError, match="three is too much") as caught:
        await scenarios.check(file, Failing)
    assert caught.value.__notes__ == ["in line 8 of the scenario: say three"]
