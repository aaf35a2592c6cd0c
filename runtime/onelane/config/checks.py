"""Checks of values that several tables of the file have."""

import ipaddress
import os
import re
from typing import Annotated

from annotated_types import Gt, Le

from onelane.core import addresses
from onelane.core.validation import Check

UNIX = "unix:"
"""Before the path of a Unix socket, as in a target of gRPC."""
MAX_UNIX_PATH = 107


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("expected ip:port with a port from 0 to 65535")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ValueError("expected an IP address before the port, such as 127.0.0.1 or [::1]") from None
    return text


def _admin_address(text: str) -> str:
    if not text.startswith(UNIX):
        return _address(text)
    path = text.removeprefix(UNIX)
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise ValueError(f"expected unix: and an absolute path of at most {MAX_UNIX_PATH} bytes")
    return text


def _class_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError("expected package.module:Class")
    return text


AdminAddress = Annotated[str, Check(_admin_address)]
Address = Annotated[str, Check(_address)]
PeerTarget = Annotated[str, Check(addresses.parse_target)]
"""Where an app outside of the file listens."""
Plug = Annotated[str, Check(_class_path)]
"""A class of the user's: `package.module:Class`."""
Seconds = Annotated[float, Gt(0), Le(30 * 86400)]
