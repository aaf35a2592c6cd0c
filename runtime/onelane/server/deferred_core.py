"""grpcio's C core, loaded at its first use: a shard on the native listener needs grpcio's names, and not its core.

The core is one extension module, `grpc._cython.cygrpc`: some 10 MiB of memory, and a tenth of the time that a shard
takes to start. `import grpc` needs constants, exceptions and annotations of it, which a stand-in has. Whatever needs
more (a channel or a server of grpcio, credentials) gets the core itself, loaded then.

Promises: the exceptions and `EOF` that grpcio exports are the same objects before and after; a name that is not known
here loads the core at once, as without the stand-in; a core whose constants differ is refused by its name.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections.abc import Sequence
from types import ModuleType
from typing import Any

CORE = "grpc._cython.cygrpc"
CONSTANTS: dict[str, dict[str, int]] = {
    "CompressionAlgorithm": {"none": 0, "deflate": 1, "gzip": 2},
    "ConnectivityState": {"idle": 0, "connecting": 1, "ready": 2, "transient_failure": 3, "shutdown": 4},
    "LocalConnectionType": {"uds": 0, "local_tcp": 1},
    "StatusCode": {
        "ok": 0,
        "cancelled": 1,
        "unknown": 2,
        "invalid_argument": 3,
        "deadline_exceeded": 4,
        "not_found": 5,
        "already_exists": 6,
        "permission_denied": 7,
        "resource_exhausted": 8,
        "failed_precondition": 9,
        "aborted": 10,
        "out_of_range": 11,
        "unimplemented": 12,
        "internal": 13,
        "unavailable": 14,
        "data_loss": 15,
        "unauthenticated": 16,
    },
}
"""What grpcio reads from the core while it is imported."""
EXCEPTIONS = {"BaseError": "", "AbortError": "BaseError", "InternalError": "BaseError", "UsageError": "BaseError"}
"""Exceptions of grpc.aio → the base of each, if it is one of them."""
NAMED = {
    "AioChannel",
    "AioRpcStatus",
    "BaseEvent",
    "CallCredentials",
    "ChannelCredentials",
    "IntegratedCall",
    "Operation",
    "_AioCall",
    "init_grpc_aio",
    "shutdown_grpc_aio",
}
"""What grpcio names while it is imported, in annotations and to export it, and uses later."""


def install() -> None:
    """Have the core loaded at its first use. Nothing changes where it is loaded already."""
    if CORE not in sys.modules:
        sys.meta_path.insert(0, _Finder())


def is_loaded() -> bool:
    """Whether this process has the core itself."""
    module = sys.modules.get(CORE)
    return module is not None and not isinstance(module, _StandIn)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-in instead of the core."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != CORE or path is None:
            return None
        core = importlib.machinery.PathFinder.find_spec(CORE, path)
        if core is None:
            return None
        spec = importlib.machinery.ModuleSpec(CORE, self, origin=core.origin)
        spec.loader_state = core
        spec.has_location = core.has_location
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec)

    def exec_module(self, module: ModuleType) -> None: ...


class _EndOfStream:
    """`grpc.aio.EOF`, as the core has it."""

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "<grpc.aio.EOF>"


class _StandIn(ModuleType):
    """The module in place of the core, until that is loaded; then it passes on what is asked of it."""

    def __init__(self, spec: importlib.machinery.ModuleSpec) -> None:
        super().__init__(CORE)
        core: importlib.machinery.ModuleSpec = spec.loader_state
        lock = threading.RLock()
        shared = _shared_objects()
        loaded: list[ModuleType] = []

        def load() -> ModuleType:
            with lock:
                if not loaded:
                    loaded.append(_loaded(core, self, shared))
                return loaded[0]

        vars(self).update(shared, _load=load)
        vars(self).update({name: type(name, (), dict(values)) for name, values in CONSTANTS.items()})
        vars(self).update({name: _Named(name, (), {"__module__": CORE, "load": load}) for name in NAMED})

    def __getattr__(self, name: str) -> Any:
        # Asked of any module, by tools that look through all.
        if name.startswith("__"):
            raise AttributeError(f"module {CORE!r} has no attribute {name!r}")
        return getattr(vars(self)["_load"](), name)


class _Named(type):
    """Stands for a class or a function of the core, in annotations and wherever its name was imported."""

    load: Any

    def __new__(mcs, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(mcs, name, bases, attributes)
        # A subclass, whose objects are to be those of the core.
        own = tuple(getattr(base.load(), base.__name__) if isinstance(base, _Named) else base for base in bases)
        return types.new_class(name, own, exec_body=lambda namespace: namespace.update(attributes))

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return getattr(cls.load(), cls.__name__)(*arguments, **named)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return getattr(getattr(cls.load(), cls.__name__), name)

    def __instancecheck__(cls, instance: object) -> bool:
        # Before, there is none of its kind.
        return is_loaded() and isinstance(instance, getattr(cls.load(), cls.__name__))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or (is_loaded() and issubclass(subclass, getattr(cls.load(), cls.__name__)))


def _shared_objects() -> dict[str, Any]:
    """What grpcio exports of the core by identity."""
    exceptions: dict[str, type] = {}
    for name, base in EXCEPTIONS.items():
        exceptions[name] = type(name, (exceptions.get(base, Exception),), {"__module__": CORE})
    return exceptions | {"EOF": _EndOfStream(), "_EOF": _EndOfStream}


def _loaded(spec: importlib.machinery.ModuleSpec, stand_in: ModuleType, shared: dict[str, Any]) -> ModuleType:
    """Load the core, and put it in the place of its stand-in.

    Raises:
        ImportError: its constants are not those that grpcio has been given.
    """
    assert spec.loader is not None
    core = importlib.util.module_from_spec(spec)
    sys.modules[CORE] = core
    try:
        spec.loader.exec_module(core)
        _check_constants(core)
    except BaseException:
        sys.modules[CORE] = stand_in
        raise
    # It looks these up by their names, whenever it raises or returns them.
    vars(core).update(shared)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    _replace_in_grpcio(stand_in, core)
    return core


def _check_constants(core: ModuleType) -> None:
    for kind, values in CONSTANTS.items():
        for name, value in values.items():
            if int(getattr(getattr(core, kind), name)) != value:
                raise ImportError(f"grpcio's core has another {kind}.{name} than {value}", name=CORE)


def _replace_in_grpcio(stand_in: ModuleType, core: ModuleType) -> None:
    """Have grpcio's modules use the core itself."""
    for name, module in list(sys.modules.items()):
        if name == "grpc" or name.startswith("grpc."):
            held = [key for key, value in vars(module).items() if value is stand_in]
            vars(module).update(dict.fromkeys(held, core))
