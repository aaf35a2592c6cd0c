"""The wire's extension, built with AddressSanitizer and UBSan, under inputs that chance makes of the corpus.

`python -m tests.fuzz.sanitized [--seconds N] [--seed N]`, or `make fuzz`. A finding ends it; the input that was running
is in `last_input` beside what was built, and belongs into tests/fuzz/corpus under a name that says what it is.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
SANITIZERS = [
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-DCYTHON_USE_FREELISTS=0",
]
"""Without the free lists of Cython, which would hand out at once what is freed too early."""
LONGEST = 4096


def build(folder: Path) -> Path:
    """Build the extension into a copy of the package; returns the folder to import it from."""
    shutil.copytree(ROOT / "runtime" / "onelane", folder / "onelane", ignore=shutil.ignore_patterns("*.so", "*.c"))
    wire = folder / "onelane" / "wire"
    subprocess.run([sys.executable, "-m", "cython", "-3", "_nghttp2.pyx"], cwd=wire, check=True)
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libnghttp2"], capture_output=True, text=True, check=True
    ).stdout.split()
    name = f"_nghttp2{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = f"-I{sysconfig.get_path('include')}"
    command = ["gcc", "-shared", "-fPIC", "-fno-strict-aliasing", "-fwrapv", *SANITIZERS, include, "_nghttp2.c"]
    subprocess.run([*command, "-o", name, *flags], cwd=wire, check=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Python's own allocator off, so that every object is watched; what Python never frees is no finding."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{folder}:{ROOT}",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def changed(data: bytes, chance: random.Random) -> bytes:
    """An input with a few changes: bytes that are others, gone, doubled or put in."""
    changing = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(changing) + 1)
        length = chance.choice((1, 1, 2, 9, 40))
        match chance.randrange(4):
            case 0:
                changing[at : at + length] = chance.randbytes(length)
            case 1:
                del changing[at : at + length]
            case 2:
                changing[at:at] = changing[at : at + length] * chance.choice((1, 3))
            case _:
                changing[at:at] = chance.randbytes(length)
    return bytes(changing[:LONGEST])


def run(seconds: float, seed: int, last_input: Path) -> int:
    """Give the targets inputs for so long; returns how many."""
    from onelane.wire.http2 import Http2

    from tests.fuzz.targets import TARGETS

    assert Http2.__module__ == "onelane.wire._nghttp2", Http2
    chance = random.Random(seed)
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    ends_at = time.monotonic() + seconds
    count = 0
    while time.monotonic() < ends_at or count < len(corpus):
        for name, target in TARGETS.items():
            if count < len(corpus):
                data = corpus[count]
            elif name == "pair" and chance.random() < 0.8:
                data = chance.randbytes(chance.randrange(600))
            else:
                data = changed(chance.choice(corpus), chance)
            last_input.write_bytes(data)
            target(data)
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        print(run(arguments.seconds, arguments.seed, arguments.inside / "last_input"), "inputs of each target")  # noqa: T201
        return
    folder = Path(tempfile.mkdtemp(prefix="onelane-sanitized-"))
    print(f"seed {arguments.seed}, in {folder}", flush=True)  # noqa: T201
    command = [sys.executable, "-m", "tests.fuzz.sanitized", "--inside", str(folder)]
    command += ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
    result = subprocess.run(command, cwd=ROOT, env=environment(build(folder)), check=False)
    if result.returncode == 0:
        shutil.rmtree(folder)
    sys.exit(result.returncode)


if __name__ == "__main__":
    main()
