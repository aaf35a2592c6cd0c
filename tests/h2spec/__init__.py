"""h2spec: what it runs against, and what it found."""

import asyncio
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from onelane.config import App
from onelane.core import keys
from onelane.server.call import Call
from onelane.server.listener import Bind, Serving
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener

from tests.ports import reserved

PATH = "/h2.Spec/Answer"
HELD_S = 0.05
"""What h2spec sends after a request, in a write of its own, is meant to find the stream open."""


class Answering(Serving):
    """One method that answers with some bytes once the client has ended: what h2spec expects of a server."""

    def methods(self) -> Sequence[Method]:
        return [Method(PATH, lambda _, __: None, True, True, False, None, None, keys.ANY)]

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        while await call.receive() is not None:
            pass
        await asyncio.sleep(HELD_S)
        return b"x" * 100


@asynccontextmanager
async def answering() -> AsyncIterator[int]:
    """A native listener for h2spec, with a shard's own settings; its port."""
    listener = NativeListener()
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        await listener.start([Bind(address)], Answering(), App(services=("a:B",), listen=address))
        try:
            yield port
        finally:
            await listener.stop(0)


@dataclass(frozen=True)
class Case:
    """One case of a report: its section, as `http2/5.1`, its words, and what h2spec expected but did not see."""

    section: str
    description: str
    failure: str | None
    skipped: bool


def cases(report: Path) -> list[Case]:
    """The cases of a JUnit report. h2spec writes a control character or two into it, which XML does not have."""
    text = "".join(c for c in report.read_text(errors="replace") if c >= " " or c == "\n")
    return [
        Case(
            case.attrib["package"],
            case.attrib["classname"],
            None if (error := _child(case, "error", "failure")) is None else error.text or "failed",
            case.find("skipped") is not None,
        )
        for case in ElementTree.fromstring(text).iter("testcase")
    ]


def _child(case: ElementTree.Element, *names: str) -> ElementTree.Element | None:
    return next((child for child in case if child.tag in names), None)
