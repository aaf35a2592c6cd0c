"""The configuration file: the apps of a machine, and every setting of each.

All faults of a file are reported at once, each with its key and, where it is known, its line. An environment variable
such as `ONELANE_APPS__LOBBY__SHARDS=4` overrides the file, and the file overrides the defaults.

Imports: `core`. Main types: `configuration.Config`, one file; `app.App`, one app of it.
"""

from onelane.config.app import PORT_STRIDE, App, CorsSettings, TailKeeping, Tls
from onelane.config.checks import UNIX
from onelane.config.configuration import DEFAULT_ADMIN, Config
from onelane.config.file import load, parse

__all__ = [
    "DEFAULT_ADMIN",
    "PORT_STRIDE",
    "UNIX",
    "App",
    "Config",
    "CorsSettings",
    "TailKeeping",
    "Tls",
    "load",
    "parse",
]
