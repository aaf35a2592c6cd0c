"""`onelane proto`: generates Python from protos, or checks their keys."""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onelane import config
from onelane.cli.arguments import JSON, reporting_errors
from onelane.errors import Invalid

if TYPE_CHECKING:
    from onelane.cli.proto_check import ProtoFault, ProtoFiles

FAULTY = 3
"""The exit code where the protos have faults."""


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--root", type=click.Path(path_type=Path, exists=True), default=Path("proto"), show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The folder that modules are written below (default: this one).",
)
@click.option("--check", is_flag=True, help="Generate nothing: check that each method has its key.")
@click.option(
    "--against",
    metavar="REVISION|FILE",
    help="Check also that no key has changed since a git revision, or since a descriptor file.",
)
@click.option(
    "--file",
    "settings",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="For --check: the settings file whose tables keys count too (default: ./onelane.toml, where it is).",
)
@JSON
@reporting_errors
def proto(
    sources: tuple[Path, ...],
    root: Path,
    out: Path,
    check: bool,
    against: str | None,
    settings: Path | None,
    as_json: bool,
) -> None:
    """Generate Python from .proto files (default: all below --root), or check their keys."""
    if check or against is not None:
        _check(sources or (root,), root, against, settings, as_json=as_json)
        return
    from onelane.cli.protoc import generate

    generated = [str(proto_file) for proto_file in generate(sources or (root,), root=root, out=out)]
    if as_json:
        click.echo(json.dumps({"generated": generated}, indent=2))
        return
    for name in generated:
        click.echo(f"generated {name}")


def _check(sources: Sequence[Path], root: Path, against: str | None, settings: Path | None, *, as_json: bool) -> None:
    from onelane.cli.proto_check import changes_between, faults_in
    from onelane.cli.protoc import protos_in

    configured = _configured(settings)
    files = _compiled(protos_in(sources), root)
    faults = faults_in(files, configured)
    if against is not None and (before := _before(against, root)) is not None:
        faults += changes_between(before, files, configured)
    _tell(faults, root, len(files.names), as_json=as_json)


def _configured(settings: Path | None) -> Mapping[str, str]:
    """The keys of all apps of the settings file, by method."""
    default = Path("onelane.toml")
    if settings is None and not default.exists():
        return {}
    apps = config.load(settings or default).apps.values()
    return {method: key for app in apps for method, key in app.keys.items()}


def _compiled(protos: Sequence[Path], root: Path) -> "ProtoFiles":
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    from onelane.cli.proto_check import ProtoFiles
    from onelane.cli.protoc import descriptors_of

    files = FileDescriptorSet.FromString(descriptors_of(protos, root=root)).file
    return ProtoFiles(files, [proto.resolve().relative_to(root.resolve()).as_posix() for proto in protos])


def _before(against: str, root: Path) -> "ProtoFiles | None":
    """The protos of a descriptor file or of a revision; None where that has none."""
    from onelane.cli.proto_check import descriptor_file
    from onelane.cli.revisions import write_protos_of

    if Path(against).is_file():
        return descriptor_file(Path(against))
    with tempfile.TemporaryDirectory() as folder:
        protos = write_protos_of(against, root, Path(folder))
        try:
            return _compiled(protos, Path(folder)) if protos else None
        except Invalid as error:
            raise Invalid(f"the protos of {against}: {error}") from error


def _tell(faults: "Sequence[ProtoFault]", root: Path, count: int, *, as_json: bool) -> None:
    placed = [asdict(fault) | {"file": str(root / fault.file)} for fault in faults]
    if as_json:
        click.echo(json.dumps({"faults": placed}, indent=2))
    for fault in [] if as_json else faults:
        click.echo(f"{root / fault.file}{str(fault).removeprefix(fault.file)}", err=True)
    if faults:
        sys.exit(FAULTY)
    if not as_json:
        click.echo(f"{count} proto(s) checked, no fault")
