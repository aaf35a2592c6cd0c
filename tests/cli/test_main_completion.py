"""The words that a shell offers for `onelane`, by the lines that its page has for it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class
from onelane.cli.main import main

from tests.bounds import BOUND_S
from tests.running_app import ROOT

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "how-to" / "development-loop.md").read_text()
LINES = {
    shell: line.strip()
    for line, shell in re.findall(r"^(.*_ONELANE_COMPLETE=(\w+)_source.*?)(?: {2,}#.*)?$", PAGE, re.M)
}
"""Shell → its line."""


def run(*command: str, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = os.environ | {"PATH": path} | environment
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=BOUND_S, check=True)
    return done.stdout


def test_bash_completes_commands_and_options() -> None:
    words = (("de", 1), ("up --rel", 2))
    ask = [
        f"COMPREPLY=(); COMP_WORDS=(onelane {line}); COMP_CWORD={index}; "
        "_onelane_completion onelane; echo ${COMPREPLY[@]}"
        for line, index in words
    ]
    assert run("bash", "-c", "\n".join([LINES["bash"], *ask])).splitlines() == ["describe", "--reload --reload-dir"]


@pytest.mark.parametrize(
    ("shell", "word", "answer"), [("zsh", "1", "plain\ndescribe\n"), ("fish", "de", "plain,describe")]
)
def test_zsh_and_fish_ask_for_words_in_their_way(
    shell: str, word: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    completion = get_completion_class(shell)
    assert completion is not None
    asked = completion(main, {}, "onelane", "_ONELANE_COMPLETE")
    assert shell in LINES
    assert f"_ONELANE_COMPLETE={shell}_complete" in asked.source()
    monkeypatch.setenv("COMP_WORDS", "onelane de")
    monkeypatch.setenv("COMP_CWORD", word)
    assert asked.complete().startswith(answer)
