"""Secrets: by file instead of by an environment variable, and kept from the processes that need none of them.

Whatever is in this process's environment is inherited by every shard, where any library of a service may read, log or
send it.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from onelane.errors import BadConfig

ADMIN_TOKEN = "ONELANE_ADMIN_TOKEN"
ADMIN_TOKEN_FILE = "ONELANE_ADMIN_TOKEN_FILE"
MAX_SECRET_BYTES = 64 * 1024
_OF_THE_FILE = re.compile(r"ONELANE_((APPS|CLUSTER)__.*|ADMIN_TOKEN(_FILE)?)")
"""Variables that override the configuration file: a shard is sent what it needs of them."""
_OTLP_HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_(\w+_)?HEADERS(_FILE)?")


def read_secret(path: str, *, name: str) -> str:
    """The text of a file without white space around it. name: of the setting or variable, for the fault.

    Raises:
        BadConfig: it cannot be read, or is no text.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
        text = data.decode().strip()
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is no text in UTF-8"
        raise BadConfig("secrets", [f"{name}: {path} {reason}"]) from None
    if not text or len(data) > MAX_SECRET_BYTES:
        raise BadConfig("secrets", [f"{name}: {path} is {'longer than 64 KiB' if text else 'empty'}"])
    return text


def warnings_of(paths: Mapping[str, str]) -> list[str]:
    """What is wrong with the modes of files of secrets. paths: the name of the setting or variable → the file."""
    warnings = []
    for name, path in paths.items():
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue  # `read_secret` says so.
        if mode & stat.S_IROTH:
            warnings.append(f"{name}: every user may read {path} (mode {stat.S_IMODE(mode):04o}), expected 0600")
    return warnings


def header_files(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that name files of OTLP headers → these files."""
    names = [name for name in sorted(environment) if _OTLP_HEADERS.fullmatch(name) and name.endswith("_FILE")]
    return {name: environment[name] for name in names if environment[name]}


def for_exporter(environment: Mapping[str, str]) -> dict[str, str]:
    """What the process that exports needs: the headers of its requests too, but nothing of the configuration file."""
    return {name: value for name, value in environment.items() if not _OF_THE_FILE.fullmatch(name)}


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """What a shard inherits."""
    return {name: value for name, value in environment.items() if not _is_secret(name)}


def _is_secret(name: str) -> bool:
    return bool(_OF_THE_FILE.fullmatch(name) or _OTLP_HEADERS.fullmatch(name))


@contextmanager
def kept_from_children() -> Iterator[dict[str, str]]:
    """Meanwhile this process's environment, and so that of the processes that it starts, has no secrets.

    Yields the whole environment.
    """
    whole = dict(os.environ)
    secrets = [name for name in whole if _is_secret(name)]
    for name in secrets:
        del os.environ[name]
    try:
        yield whole
    finally:
        os.environ.update({name: whole[name] for name in secrets})
