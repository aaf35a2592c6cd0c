"""protobuf's implementation in Python, loaded at its first use: where messages are protobuf's own C, nothing uses it.

protobuf imports it nevertheless, and with it 14 modules, such as its parsers and pickle: some 1.1 MiB of a shard's
memory. What does need one of these, such as `str(message)`, imports it by itself.

Promises: where messages are Python (`PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION`, or no C is there), and whenever anything
but the module's own name is asked of it, it is the module that it would have been, loaded then, once, whichever thread
asks; a protobuf that has no such module is left as it is.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PYTHON_MESSAGES = "google.protobuf.internal.python_message"


def install() -> None:
    """Have the module loaded at its first use. Nothing changes where it is loaded already."""
    if PYTHON_MESSAGES not in sys.modules:
        sys.meta_path.insert(0, _LateFinder())


class _LateFinder(MetaPathFinder):
    """Finds the stand-in, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PYTHON_MESSAGES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(PYTHON_MESSAGES, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _LateLoader(spec.loader)
        return spec


class _LateLoader(Loader):
    """Makes the stand-in. loader: of the module."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LateModule(spec, self._loader)

    def exec_module(self, module: ModuleType) -> None:
        """Not before the first use."""

    def __getattr__(self, name: str) -> Any:
        # The source and the folders, for tools that ask.
        return getattr(self._loader, name)


class _LateModule(ModuleType):
    """The module itself, before its code has run."""

    def __init__(self, spec: ModuleSpec, loader: Any) -> None:
        super().__init__(spec.name)
        self.__dict__["_lock"] = threading.RLock()
        self.__dict__["_own_loader"] = loader

    def __getattr__(self, name: str) -> Any:
        # Asked of any module, by tools that look through all.
        if name.startswith("__"):
            raise AttributeError(f"module {PYTHON_MESSAGES!r} has no attribute {name!r}")
        own = self.__dict__
        with own["_lock"]:
            loader = own.pop("_own_loader", None)
            if loader is not None:
                try:
                    loader.exec_module(self)
                except BaseException:
                    own["_own_loader"] = loader
                    raise
        if name in own:
            return own[name]
        raise AttributeError(f"module {PYTHON_MESSAGES!r} has no attribute {name!r}")
