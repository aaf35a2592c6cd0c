"""The fuzz target: any bytes of a client, and what a listener does with what they amount to. Nothing may raise.

The first byte of an input chooses the size of the pieces. `python -m tests.fuzz.server -runs=20000 tests/fuzz/corpus`
"""

import sys

import atheris

with atheris.instrument_imports(include=["onelane.wire"]):
    from tests.fuzz import targets


def main() -> None:
    atheris.Setup(sys.argv, targets.server)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
