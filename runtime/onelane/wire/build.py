"""What runs here: code that mypyc has compiled, or the same source interpreted; and which of the two wires."""

from dataclasses import dataclass

from onelane.wire import framing
from onelane.wire.http2 import Http2

COMPILED, PURE = "compiled", "pure"


@dataclass(frozen=True, slots=True)
class Build:
    """As `onelane check` and `onelane status` say it."""

    code: str
    """`compiled` or `pure`. All modules of the list in pyproject.toml are compiled, or none is."""
    wire: str
    """`libnghttp2`, the extension; or `ngh2`, the package."""

    def __str__(self) -> str:
        return f"{'compiled code' if self.code == COMPILED else 'pure Python'}, wire on {self.wire}"


def running_build() -> Build:
    """Of this process."""
    code = PURE if (framing.__file__ or "").endswith(".py") else COMPILED
    return Build(code, "libnghttp2" if Http2.__module__.endswith("._nghttp2") else "ngh2")
