"""The protos of a git revision."""

import io
import subprocess
import tarfile
from pathlib import Path, PurePosixPath

from onelane.errors import Invalid

GIT_S = 60.0
"""How long git may take."""


def write_protos_of(revision: str, root: Path, into: Path) -> list[Path]:
    """Write the protos that a revision has in the folder `root` below `into`; their paths there.

    Raises:
        Invalid: there is no git, no repository or no such revision.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        raise Invalid(f"{revision!r} is neither a file nor a revision of the git repository of {root}")
    archive = _git(root, "archive", "--format=tar", commit.decode().strip(), ".")
    if archive is None:
        raise Invalid(f"{revision} has no folder {root}")
    written = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            path = PurePosixPath(member.name)
            content = members.extractfile(member) if member.isfile() and path.suffix == ".proto" else None
            if content is not None and not path.is_absolute() and ".." not in path.parts:
                target = into / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
                written.append(target)
    return written


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it fails."""
    try:
        run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=GIT_S, check=False)
    except OSError as error:
        raise Invalid(f"git cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Invalid(f"git has not ended within {GIT_S:g} s") from error
    return run.stdout if run.returncode == 0 else None
