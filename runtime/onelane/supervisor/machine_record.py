"""This machine as `[cluster]` describes it: its name, and its record."""

import hashlib
import ipaddress
import json
import re
import secrets
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

import onelane
from onelane.cluster.machines import MachineRecord
from onelane.config import UNIX, App
from onelane.core import addresses
from onelane.core.cluster_settings import ClusterSettings, faults_of_names
from onelane.core.validation import to_json
from onelane.errors import BadConfig

DECISIVE = ("services", "keys", "turns", "points", "max_key_bytes")
"""Settings of an app that must be the same on all machines: they decide what a key is, and who owns it."""
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def record_of(settings: ClusterSettings, apps: Mapping[str, App], *, page: str = "") -> MachineRecord:
    """What the other machines are to know of this one. page: its URL; "" where others cannot reach it.

    Raises:
        BadConfig: an app cannot be a part of a cluster, or the file of `tls.ca` cannot be used.
    """
    if faults := [fault for name, app in apps.items() for fault in _unfit(name, app)]:
        raise BadConfig("apps", faults)
    ports, shards = settings.ports_of_links, sum(app.shard_count for app in apps.values())
    if settings.link_ports and len(ports) < shards:
        seen = f"{settings.link_ports} are {len(ports)} ports"
        raise BadConfig("cluster", [f"link_ports: {seen}, expected one for each of the {shards} shards, better two"])
    return MachineRecord(
        name=machine_name(settings),
        advertise=settings.advertise,
        release=onelane.__version__,
        lease_s=settings.lease_s,
        start=secrets.token_hex(8),
        trust="" if settings.tls is None else _fingerprint(settings.tls.ca),
        settings={name: settings_digest(app) for name, app in apps.items()},
        admin=page,
        xds=settings.xds_server,
    )


def machine_name(settings: ClusterSettings) -> str:
    """The name of this machine.

    Raises:
        BadConfig: the settings have none, and the host's cannot be one.
    """
    name = settings.machine or socket.gethostname()
    if faults := faults_of_names(settings.name, [name]):
        raise BadConfig("cluster", [f"machine: is not set, and the name of this host is no name of one: {faults[0]}"])
    return name


def _unfit(name: str, app: App) -> list[str]:
    """Why an app cannot be a part of a cluster."""
    faults = []
    if not app.adopts_sockets:
        faults.append(f'{name}.listener: expected "native" with [cluster], not {app.listener!r}: others have no links')
    if app.membership != "supervisor":
        seen = f"not {app.membership!r}: its shards follow the placements of all machines"
        faults.append(f'{name}.membership: expected "supervisor" with [cluster], {seen}')
    if app.pins:
        faults.append(f"{name}.pins: expected none with [cluster], whose machines share them: use `onelane pin`")
    return faults


def page_url(admin: str, advertise: str, *, is_tls: bool) -> str:
    """The URL of the page of this machine; "" where others cannot reach it. admin: its address, of the settings."""
    if admin.startswith(UNIX):
        return ""
    host, port = addresses.split(admin)
    if addresses.is_wildcard(host):
        host = advertise.strip("[]")
    elif ipaddress.ip_address(host).is_loopback:
        return ""
    return f"{'https' if is_tls else 'http'}://{addresses.join(host, port)}"


def settings_digest(app: App) -> str:
    """The same for two machines whose settings of an app agree on what a key is, who owns it, and the store."""
    row = json.loads(to_json(app))
    decisive = {name: row.get(name) for name in DECISIVE} | {"store": app.state.store}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _fingerprint(path: str) -> str:
    """Of the authorities in a file, in whatever order it has them."""
    try:
        authorities = [ssl.PEM_cert_to_DER_cert(text) for text in CERTIFICATE.findall(Path(path).read_text())]
    except (OSError, ValueError) as error:
        raise BadConfig("cluster", [f"tls.ca: {path} cannot be used: {error}"]) from None
    if not authorities:
        raise BadConfig("cluster", [f"tls.ca: {path} has no certificate"])
    digests = sorted({hashlib.sha256(authority).hexdigest() for authority in authorities})
    return f"sha256:{hashlib.sha256(''.join(digests).encode()).hexdigest()}"
