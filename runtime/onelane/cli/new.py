"""`onelane new`: a project that runs and passes its test as it is created."""

import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import click

from onelane.cli.arguments import JSON, reporting_errors
from onelane.errors import Invalid, OnelaneError


class NotCreated(OnelaneError):
    """The folder of a new project could not be written. Nothing of it is left."""


@click.command()
@click.argument("name")
@JSON
@reporting_errors
def new(name: str, as_json: bool) -> None:
    """Create the folder NAME: a proto, a service, its settings, a test and a client.

    NAME is that of its Python package, such as my_shop. Where onelane[proto] is installed, the modules of the proto
    are generated too.
    """
    from onelane.cli.project import fault_of_name

    if fault := fault_of_name(name):
        raise Invalid(f"no project can be called {name!r}: {fault}")
    is_generated = find_spec("grpc_tools") is not None and find_spec("mypy_protobuf") is not None
    files = create(name, Path(), generates=is_generated)
    if as_json:
        click.echo(json.dumps({"created": [f"{name}/{file}" for file in files], "generated": is_generated}, indent=2))
        return
    for file in files:
        click.echo(f"created {name}/{file}")
    first_step = "" if is_generated else "pip install 'onelane[proto]' && onelane proto && "
    click.echo(f"next: cd {name} && {first_step}onelane up")


def create(name: str, parent: Path, *, generates: bool) -> list[str]:
    """Write the project into a folder of its name, which appears once it is whole. Returns its files, without what is
    generated.

    generates: the modules of its proto too.

    Raises:
        Invalid: there is something of that name.
        NotCreated: it cannot be written.
    """
    from onelane.cli.project import project_files

    folder = parent / name
    if os.path.lexists(folder):
        raise Invalid(f"{folder} exists already; choose another name, or remove it first")
    files = project_files(name)
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        try:
            _write(draft, files, generates=generates)
            # Its own mode would let nobody else look into it.
            draft.chmod(0o777 & ~_umask())
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise NotCreated(f"{folder} cannot be written: {error.strerror or error}") from error
    return list(files)


def _write(folder: Path, files: dict[str, str], *, generates: bool) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    if generates:
        from onelane.cli.protoc import generate

        generate([folder / "proto"], root=folder / "proto", out=folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
