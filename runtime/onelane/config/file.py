"""Reads the file and what variables of the environment set in its place, and checks both."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onelane.config.configuration import Config
from onelane.config.faults import faults_of
from onelane.core import addresses, redaction
from onelane.core.validation import checked
from onelane.errors import BadConfig
from onelane.secret_files import ADMIN_TOKEN, ADMIN_TOKEN_FILE, read_secret

ENVIRONMENT_PREFIX = "ONELANE_"
OVERRULED = ("ONELANE_ADMIN", ADMIN_TOKEN, ADMIN_TOKEN_FILE)
"""Environment variables for settings of the file that belong to no app."""
CLUSTER_TEXTS = (
    "name",
    "etcd_user",
    "etcd_password",
    "etcd_password_file",
    "machine",
    "advertise",
    "link_ports",
    "xds",
)
"""Settings of `[cluster]` whose variables are texts, also where they look like numbers."""
ETCD_PASSWORDS = {f"{ENVIRONMENT_PREFIX}CLUSTER__{name}" for name in ("ETCD_PASSWORD", "ETCD_PASSWORD_FILE")}
NO_VARIABLES: Mapping[tuple[str, ...], str] = MappingProxyType({})


def load(path: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read and validate one file.

    environment: variables that override it; by default the process's.

    Raises:
        BadConfig: the file cannot be read, is not TOML, or is not valid; with all faults.
    """
    import tomllib

    try:
        text = path.read_text()
        data = tomllib.loads(text)
    except OSError as error:
        raise BadConfig(str(path), [f"cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(str(path), [f"is not TOML: {error}"]) from error
    variables = os.environ if environment is None else environment
    faults = [*_override(data, variables), *_read_secrets(data)]
    return parse(data, name=str(path), text=text, variables=_overrides(variables), faults=faults)


def parse(
    data: Mapping[str, Any],
    *,
    name: str = "configuration",
    text: str = "",
    variables: Mapping[tuple[str, ...], str] = NO_VARIABLES,
    faults: Sequence[str] = (),
) -> Config:
    """Validate a configuration.

    name, text: of its file, for error messages. variables: place → the environment variable that has set it. faults:
    what is known to be wrong already.

    Raises:
        BadConfig: the configuration is not valid; with all faults.
    """
    from pydantic import ValidationError

    try:
        configuration = checked(Config, _advertised(data))
    except ValidationError as error:
        # Without its cause, whose text has the values, secrets too.
        raise BadConfig(name, [*faults, *faults_of(error.errors(), text, variables)]) from None
    if faults:
        raise BadConfig(name, faults)
    return configuration


def _overrides(environment: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Place in the file → the environment variable that overrides it."""
    return {
        tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")): name
        for name in sorted(environment)
        if name.startswith((ENVIRONMENT_PREFIX + "APPS__", ENVIRONMENT_PREFIX + "CLUSTER__")) or name in OVERRULED
    }


def _override(data: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Set in `data` what variables override; the faults of those that cannot be set."""
    faults = []
    if ADMIN_TOKEN in environment or ADMIN_TOKEN_FILE in environment:
        data.pop("admin_token", None)
        data.pop("admin_token_file", None)
    if ETCD_PASSWORDS & environment.keys() and isinstance(cluster := data.get("cluster"), dict):
        cluster.pop("etcd_password", None)
        cluster.pop("etcd_password_file", None)
    for place, name in _overrides(environment).items():
        level: Any = data
        for table in place[:-1]:
            level = level.setdefault(table, {})
            if not isinstance(level, dict):
                faults.append(f"{name} sets {'.'.join(place)}, but {table} is {redaction.type_of(level)}, and no table")
                break
        else:
            is_text = ADMIN_TOKEN in name or (place[0] == "cluster" and place[-1] in CLUSTER_TEXTS)
            level[place[-1]] = environment[name] if is_text else _value(environment[name])
    return faults


def _read_secrets(data: dict[str, Any]) -> list[str]:
    """Set the secrets that files hold; the faults of these."""
    cluster = data.get("cluster")
    faults = _read_secret(data, "admin_token", place="")
    return faults + (_read_secret(cluster, "etcd_password", place="cluster.") if isinstance(cluster, dict) else [])


def _read_secret(table: dict[str, Any], name: str, *, place: str) -> list[str]:
    path = table.get(f"{name}_file")
    if not isinstance(path, str):
        return []
    if name in table:
        return [f"{place}{name} and {name}_file are both set, expected one of them"]
    try:
        table[name] = read_secret(path, name=f"{place}{name}_file")
    except BadConfig as error:
        return list(error.faults)
    return []


def _advertised(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Apps of a machine that listen on all addresses are reached where the machine is, as far as that is an address:
    clients are told no names."""
    cluster, apps = data.get("cluster"), data.get("apps")
    advertise = cluster.get("advertise") if isinstance(cluster, dict) else None
    if _is_wildcard(advertise) is not False or not isinstance(apps, dict):
        return data
    wild = [
        name
        for name, app in apps.items()
        if isinstance(app, dict) and _is_wildcard(str(app.get("listen")).rpartition(":")[0])
    ]
    return {**data, "apps": apps | {name: {"advertise": advertise} | apps[name] for name in wild}}


def _is_wildcard(host: Any) -> bool | None:
    """None where it is no address."""
    try:
        return addresses.is_wildcard(str(host).strip("[]"))
    except ValueError:
        return None


def _value(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
