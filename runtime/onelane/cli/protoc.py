"""`onelane proto`: Python from the user's protos, with onelane's options on the include path and typed stubs."""

import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from onelane.errors import Invalid

INCLUDE = Path(__file__).parent.parent / "protos"
"""The folder of `onelane/v1/options.proto`."""


def generate(sources: Sequence[Path], *, root: Path, out: Path) -> list[Path]:
    """Generate messages, stubs and their types for `sources` (files, or folders to search), below `out`.

    root: the folder that the protos' paths and imports are relative to. A proto at `root/a/v1/b.proto` becomes the
    module `a.v1.b_pb2`; missing `__init__.py` files are written. Returns the protos.

    Raises:
        Invalid: there is nothing to generate, tools are missing, or protoc fails; then with protoc's own message.
    """
    protos = protos_in(sources)
    out.mkdir(parents=True, exist_ok=True)
    _protoc([*(f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc"))], root, protos)
    for proto in protos:
        _make_packages(out, proto.resolve().relative_to(root.resolve()).parent)
    return protos


def protos_in(sources: Sequence[Path]) -> list[Path]:
    """The protos among files and in folders.

    Raises:
        Invalid: there are none, or the tools to read them are missing.
    """
    if find_spec("grpc_tools") is None or find_spec("mypy_protobuf") is None:
        raise Invalid("onelane proto needs grpcio-tools and mypy-protobuf: pip install 'onelane[proto]'")
    protos = [file for source in sources for file in (sorted(source.rglob("*.proto")) if source.is_dir() else [source])]
    if not protos:
        raise Invalid(f"no .proto file in {', '.join(map(str, sources))}")
    return protos


def descriptors_of(protos: Sequence[Path], *, root: Path) -> bytes:
    """The `FileDescriptorSet` of protos and of all that they import, with their lines. root: see `generate`.

    Raises:
        Invalid: protoc fails; with its own message.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "descriptors"
        _protoc([f"--descriptor_set_out={written}", "--include_imports", "--include_source_info"], root, protos)
        return written.read_bytes()


def _protoc(outputs: list[str], root: Path, protos: Sequence[Path]) -> None:
    import subprocess

    import grpc_tools

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    plugins = Path(sys.executable).parent
    run = subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"-I{folder}" for folder in (root, INCLUDE, well_known)),
            *(f"--plugin={name}={plugins / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            *outputs,
            *map(str, protos),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise Invalid(f"protoc failed:\n{run.stderr.rstrip()}")


def _make_packages(out: Path, package: Path) -> None:
    for folder in [package, *package.parents]:
        if folder != Path("."):
            (out / folder / "__init__.py").touch()
