"""Bytes that coverage chooses, at the server's end of the wire: a fixed number of them, from a seed that is printed.

What is found goes into tests/fuzz/corpus, which is run first ever after.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tools
from tests.fuzz.sanitized import changed
from tests.fuzz.targets import TARGETS
from tests.running_app import ROOT

pytestmark = pytest.mark.slow

RUNS = 10_000
CHANGED = 1_000
CORPUS = Path(__file__).parent / "corpus"


def test_no_bytes_of_a_client_make_the_wire_raise(tmp_path: Path) -> None:
    tools.module("atheris", "it has wheels for Linux on x86-64 alone")
    seed = random.randrange(2**31)
    new_inputs = tmp_path / "found"
    new_inputs.mkdir()
    options = [f"-runs={RUNS}", f"-seed={seed}", "-max_len=4096", "-max_total_time=20", "-timeout=10"]
    options.append(f"-artifact_prefix={tmp_path}/")
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.server", *options, str(new_inputs), str(CORPUS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    print(f"seed {seed}\n{run.stderr[-2000:]}")  # noqa: T201
    failing = [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()]
    assert (run.returncode, failing) == (0, []), run.stdout[-2000:]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_once_failed_and_what_chance_makes_of_it_goes_well_at_either_end(name: str) -> None:
    """The same functions as `make fuzz` gives to the extension under sanitizers."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    for data in [*corpus, *(changed(chance.choice(corpus), chance) for _ in range(CHANGED))]:
        TARGETS[name](data)
