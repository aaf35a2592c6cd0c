"""The configuration file: the apps of a machine, and every setting of each.

All faults of a file are reported at once, each with its key and, where it is known, its line. An environment variable
such as `ONELANE_APPS__LOBBY__SHARDS=4` overrides the file, and the file overrides the defaults.
"""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

from onelane.core import addresses, redaction
from onelane.core.auth_settings import AuthSettings
from onelane.core.cluster_settings import ClusterSettings
from onelane.core.service_config import ServiceConfig
from onelane.core.state_settings import StateSettings
from onelane.core.validation import Check, Checked, changed, checked
from onelane.errors import BadConfig
from onelane.secret_files import ADMIN_TOKEN, ADMIN_TOKEN_FILE, read_secret

ENVIRONMENT_PREFIX = "ONELANE_"
OVERRULED = ("ONELANE_ADMIN", ADMIN_TOKEN, ADMIN_TOKEN_FILE)
"""Environment variables for settings of the file that belong to no app."""
NO_VARIABLES: Mapping[tuple[str, ...], str] = MappingProxyType({})
DEFAULT_ADMIN = "127.0.0.1:9464"
UNIX = "unix:"
"""Before the path of a Unix socket, as in a target of gRPC."""
MAX_UNIX_PATH = 107
PORT_STRIDE = 100
"""Between the shared port of an app and the own port of its first shard, and from one shard to the next."""


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


def _host(text: str) -> str:
    try:
        unspecified = ipaddress.ip_address(text).is_unspecified
    except ValueError:
        unspecified = True
    if unspecified:
        raise ValueError("expected an IP address that clients can reach, not a host name, 0.0.0.0 or ::")
    return text


def _class_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError("expected package.module:Class")
    return text


def _stall_s(seconds: float) -> float:
    if seconds and not 0.01 <= seconds <= 60:
        raise ValueError("expected 0, or seconds from 0.01 to 60")
    return seconds


def _unresponsive_s(seconds: float) -> float:
    if seconds and not 0.5 <= seconds <= 3600:
        raise ValueError("expected 0, or seconds from 0.5 to 3600")
    return seconds


AdminAddress = Annotated[str, Check(_admin_address)]
Address = Annotated[str, Check(_address)]
PeerTarget = Annotated[str, Check(addresses.parse_target)]
"""Where an app outside of the file listens."""
Plug = Annotated[str, Check(_class_path)]
"""A class of the user's: `package.module:Class`."""


@dataclass(frozen=True, kw_only=True)
class Tls(Checked):
    """PEM files for an app that serves TLS. They are read again when they change, for the handshakes that follow."""

    cert: str
    """The server's certificate chain."""
    key: str
    """The private key of `cert`."""
    client_ca: str | None = None
    """Certificate authorities for mutual TLS: a client must present a certificate that one of them has signed."""


Seconds = Annotated[float, Gt(0), Le(30 * 86400)]


@dataclass(frozen=True, kw_only=True)
class TailKeeping(Checked):
    """Tail sampling: traces that are exported although the sampler left them out. For this every call is recorded."""

    errors: bool = True
    """Traces with a span that ended in an error."""
    slower_s: Seconds | None = None
    """Traces with a span that lasted this many seconds or longer."""
    slowest: Annotated[float, Gt(0), Le(0.5)] | None = None
    """Traces of the slowest calls of each method: this share of its calls of the last minute, for example 0.001."""


@dataclass(frozen=True, kw_only=True)
class CorsSettings(Checked):
    """Browser pages of other origins that may call an app. In the file: `[apps.NAME.cors]`."""

    origins: tuple[str, ...] = ()
    """Origins of such pages, as `https://host` or `https://host:port`; "*" for every page. By default none."""
    credentials: bool = False
    """Whether such a page may send cookies and client certificates; not with "*"."""
    max_age_s: Annotated[int, Ge(0), Le(86400)] = 7200
    """Seconds for which a browser may remember that a page may call."""

    def __post_init__(self) -> None:
        if self.credentials and "*" in self.origins:
            raise ValueError('credentials needs the origins one by one, not "*": any page could act for its visitor')


@dataclass(frozen=True, kw_only=True)
class App(Checked):
    """One app: services that run together in each of its shard processes. In the file: `[apps.NAME]`."""

    services: Annotated[tuple[Plug, ...], MinLen(1)]
    """The servicer classes, each as `package.module:Class`."""
    listen: Address
    """The address that all shards of the app share, `ip:port`; port 0 takes a free port."""
    shards: Literal["auto"] | Annotated[int, Ge(1), Le(1024)] = "auto"
    """Number of shard processes; "auto" is one per CPU core."""
    own_port: Annotated[int, Ge(1), Le(65535)] | None = None
    """The first shard's own port; the other shards take the ports that follow. By default shard i takes the port of
    `listen` + 100 · (i + 1)."""
    advertise: Annotated[str, Check(_host)] | None = None
    """The IP address at which clients reach the shards' own ports. Needed where `listen` is 0.0.0.0 or ::."""
    admin: AdminAddress | None = None
    """Address of /metrics and /status where `onelane serve` runs this app alone; by default the `admin` of the file."""
    listener: str = "native"
    """The gRPC server: "native" (libnghttp2), "grpcio" (gRPC's C core), or another plugin of the entry point group
    `onelane.listeners`."""
    membership: str = "supervisor"
    """How a shard learns of the app's other shards: "supervisor", "static", or another plugin of the entry point group
    `onelane.memberships`."""
    points: Annotated[int, Ge(1), Le(65536)] = 512
    """Points of each shard on the hash ring; the more points, the more even the shards' shares of the keys."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys that the protos do not state, or state otherwise: "pkg.Service/Method" or "pkg.Service/*" → "field.path",
    "metadata:name", or "ANY" for a method without a key."""
    turns: Mapping[str, Literal["KEYED", "FREE"]] = field(default_factory=dict)
    """Turns that the protos do not state, or state otherwise: "pkg.Service/Method" or "pkg.Service/*" → "KEYED" (one
    call of a key after the other) or "FREE" (concurrent calls)."""
    max_waiting_per_key: Annotated[int, Ge(0)] = 1000
    """Calls that may wait for the turn of one key; a further call ends with RESOURCE_EXHAUSTED."""
    max_published: Annotated[int, Ge(1)] = 10_000
    """Messages that one shard may publish within one tick (0.1 s); to publish another raises Overloaded."""
    max_lag: Annotated[int, Ge(1)] = 1000
    """Messages that may wait for one subscriber; then it loses the oldest, and receives a `Lost` with their number."""
    stubs: Mapping[str, ServiceConfig] = field(default_factory=dict)
    """App or peer → gRPC's service config (`methodConfig`, `retryThrottling`) and `max_in_flight` of calls to it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the services themselves, which they read as `shard.config`; `onelane reload` changes them in running
    shards."""
    config_type: Plug | None = None
    """The class of `shard.config`, `package.module:Class`: a frozen dataclass or a frozen pydantic model."""
    health: bool = True
    """Serve gRPC's health service, grpc.health.v1.Health."""
    reflection: bool | None = None
    """Serve gRPC server reflection; by default only where `listen` is a loopback address."""
    open_status: bool = False
    """Answer `onelane.v1.Topology/Status`, the state of every app of the supervisor, to anyone; by default only to
    siblings and to clients with a certificate that `tls.client_ca` has signed. `onelane status` asks it where it is
    given the address of a shard, not the admin address."""
    drain_s: Annotated[float, Ge(0), Le(3600)] = 10.0
    """Seconds that calls in progress may still take when a shard stops; then they are cancelled."""
    start_s: Annotated[float, Gt(0), Le(3600)] = 60.0
    """Seconds in which the `start` of all services of a shard must end, and as many before that for its imports and
    constructors; else the shard does not start."""
    stop_s: Annotated[float, Ge(0), Le(3600)] = 5.0
    """Seconds in which the `stop` of all services of a shard must end, after its calls; then they are cancelled."""
    deadline_s: Annotated[float, Gt(0), Le(3600)] = 10.0
    """Deadline, in seconds, of a unary call between services that sets none itself."""
    max_message_bytes: Annotated[int, Ge(1024), Le(2**31 - 1)] = 4 * 1024 * 1024
    """Largest request message, in bytes; a call with a larger one ends with RESOURCE_EXHAUSTED."""
    max_held_bytes: Annotated[int, Ge(1024 * 1024)] | None = None
    """Bytes that the clients of one shard may make it hold: of messages that are not whole or not read yet, and of
    answers that they have not taken. With more, calls of the connections that hold most end with RESOURCE_EXHAUSTED.
    By default 512 MiB, or sixteen times `max_message_bytes` where that is more."""
    max_held_bytes_per_connection: Annotated[int, Ge(64 * 1024)] | None = None
    """The same of one connection; its newest calls end. By default a quarter of the shard's."""
    compression: Literal["none", "deflate", "gzip"] = "none"
    """Compression of responses to clients that accept it, unless a handler chooses another by
    `context.set_compression`."""
    max_in_flight: Annotated[int, Ge(1)] = 8192
    """Calls in progress in one shard; a further call ends with RESOURCE_EXHAUSTED."""
    max_watches: Annotated[int, Ge(1)] = 4096
    """Streams of one watch of the runtime's own (the topology's, health's, reflection) in one shard. They are not among
    the calls of `max_in_flight`. A further one ends with RESOURCE_EXHAUSTED."""
    max_timers: Annotated[int, Ge(0)] = 100_000
    """Timers set in one shard (`shard.every`, `shard.later`); to set another raises Overloaded."""
    max_late_s: Annotated[float, Gt(0), Le(60)] = 0.05
    """Seconds of work that may pile up in a shard's event loop. While more has piled up, new calls end with
    RESOURCE_EXHAUSTED."""
    max_key_bytes: Annotated[int, Ge(16), Le(4096)] = 1024
    """Bytes of a key, as the metadata `onelane-key` carries it; a call with a longer one ends with INVALID_ARGUMENT."""
    max_rate_per_key: Annotated[float, Gt(0)] | None = None
    """Calls per second of one key, and the burst that it may send after a pause; a further call ends with
    RESOURCE_EXHAUSTED. By default there is no limit."""
    stall_s: Annotated[float, Check(_stall_s)] = 0.05
    """Seconds that a handler may block its shard's event loop. A longer stall is reported with the line that blocks, a
    shorter one down to half of it perhaps. 0 turns this off."""
    replace_stalled_s: Annotated[float, Ge(1), Le(86400)] | None = None
    """A shard process whose event loop is blocked for this many seconds ends itself and is started again; by default
    never. Not in inline mode."""
    unresponsive_s: Annotated[float, Check(_unresponsive_s)] = 5.0
    """Seconds without a sign of life of a shard's event loop after which the shard counts as unresponsive, until it
    answers again: `onelane status`, the page and /healthz say so, and its siblings refuse calls to its keys; 0 for
    never."""
    max_streams: Annotated[int, Ge(1)] = 1024
    """Concurrent calls of one connection (SETTINGS_MAX_CONCURRENT_STREAMS); the client holds further calls back."""
    max_metadata_bytes: Annotated[int, Ge(1024), Le(1024 * 1024)] = 16 * 1024
    """Largest metadata of a call, in bytes; a call with more ends with RESOURCE_EXHAUSTED, and more than four times as
    much ends the connection. One name or value is at most 65,535 bytes long whatever this says, since libnghttp2 takes
    no longer one: it ends the connection; in HTTP/1.1 it is refused with 431."""
    max_connections: Annotated[int, Ge(1)] = 20_000
    """Client connections of one shard; a further connection is closed at once."""
    max_connections_per_peer: Annotated[int, Ge(1)] = 5000
    """Of these, connections of one IPv4 address, or of one /64 of IPv6 addresses; a further one is closed at once.
    Raise it where clients come through few proxies or a NAT."""
    handshake_s: Seconds = 10.0
    """Seconds that a TLS handshake may take; then the connection is closed."""
    preface_s: Seconds = 10.0
    """Seconds until the HTTP/2 preface and the first SETTINGS of a client must have come; else its connection is
    closed."""
    headers_s: Seconds = 10.0
    """Seconds for which a client may leave a header block or a frame incomplete; then it is pinged, and if it completes
    nothing for as long again its connection is closed."""
    first_request_s: Seconds | None = 300.0
    """Seconds until the first request must have come; else the connection is closed by GOAWAY, and the client connects
    anew where it still wants to."""
    message_s: Seconds = 60.0
    """Seconds within which a request message that has begun must be whole, and 64 KiB of a unary call's answer be taken
    or all of it; else the call ends with RESOURCE_EXHAUSTED. The message of a unary call begins with its headers."""
    keepalive_s: Seconds | None = 7200.0
    """Seconds without data from a client after which it is pinged."""
    ping_timeout_s: Seconds = 20.0
    """Seconds within which the client must answer the ping; then its connection is closed."""
    max_idle_s: Seconds | None = None
    """Seconds without a call after which a connection is closed, by GOAWAY; by default never."""
    max_age_s: Seconds | None = None
    """Seconds after which a connection is closed by GOAWAY, so that its client connects anew; calls in progress finish
    first. By default never."""
    tls: Tls | None = None
    """Serve clients over TLS. Shards of one app talk to each other over Unix sockets."""
    cors: CorsSettings = field(default_factory=CorsSettings)
    """Which browser pages may call this app by gRPC-Web or Connect; by default only those of its own origin."""
    state: StateSettings = field(default_factory=StateSettings)
    """Where durable state is kept."""
    strict: bool = False
    """For tests and development: code that touches an entry of `shard.keyed` outside of the turn of its key gets
    `NotItsKey`, and changes nothing. The dicts that move are slower then; without it they are plain dicts."""
    auth: AuthSettings | None = None
    """Who may call: the credentials that are accepted, and the roles for each method. By default everybody may call
    everything."""
    interceptors: tuple[Plug, ...] = ()
    """`grpc.aio.ServerInterceptor` classes, or functions that make one, as `package.module:name`; outermost first."""
    tail: TailKeeping | None = None
    """Tail sampling; by default off."""
    max_remote_sampled_per_s: Annotated[float, Ge(1)] = 1000.0
    """Calls a second in one shard whose client's sampled flag is followed, where `OTEL_TRACES_SAMPLER` is parent-based.
    About a further one the sampler decides as about a trace that begins here."""
    show_keys: bool = False
    """Show the text of the keys with the most calls on the admin page and in `onelane top`; by default a hash
    of it, which the next start of the supervisor makes another."""
    show_runtime_calls: bool = False
    """Record the calls of the runtime's own services (health, reflection, `onelane.v1`) as those of the app's services:
    in traces, in the counts and durations of methods, and in the calls in flight."""
    pins: Mapping[str, int] = field(default_factory=dict)
    """Canonical key → index of the shard that owns it, whatever the hash ring says."""

    @property
    def shard_held_bytes(self) -> int:
        """`max_held_bytes`, or its default."""
        return self.max_held_bytes or max(512 * 1024 * 1024, 16 * self.max_message_bytes)

    @property
    def connection_held_bytes(self) -> int:
        """`max_held_bytes_per_connection`, or its default."""
        return self.max_held_bytes_per_connection or self.shard_held_bytes // 4

    @property
    def shard_count(self) -> int:
        return (os.cpu_count() or 1) if self.shards == "auto" else self.shards

    def own_port_of(self, index: int) -> int:
        """The own port of the shard of this index; 0 for a free one."""
        if self.own_port is not None:
            return self.own_port + index
        port = addresses.split(self.listen)[1]
        return port + PORT_STRIDE * (index + 1) if port else 0

    @property
    def adopts_sockets(self) -> bool:
        """Whether its listener takes sockets that the supervisor has opened; gRPC's C core cannot."""
        return self.listener != "grpcio"

    @property
    def serves_reflection(self) -> bool:
        host = self.listen.rpartition(":")[0].strip("[]")
        return ipaddress.ip_address(host).is_loopback if self.reflection is None else self.reflection

    def __post_init__(self) -> None:
        self._check_reachable()
        self._check_certificates()
        self._check_pins()

    def _check_reachable(self) -> None:
        host = ipaddress.ip_address(self.listen.rpartition(":")[0].strip("[]"))
        if host.is_unspecified and self.advertise is None:
            raise ValueError("listen is all addresses, so advertise must name the IP address that clients connect to")

    def _check_certificates(self) -> None:
        if self.auth is not None and self.auth.mtls and (self.tls is None or self.tls.client_ca is None):
            raise ValueError("auth.mtls needs tls.client_ca: without it no client shows a certificate")

    def _check_pins(self) -> None:
        if wrong := [key for key, index in self.pins.items() if not 0 <= index < self.shard_count]:
            raise ValueError(f"pins {wrong}: expected the index of a shard, 0 to {self.shard_count - 1}")


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """One configuration file: its apps, and the settings of their supervisor."""

    apps: Annotated[dict[str, App], MinLen(1)]
    """Name → app: the tables `[apps.NAME]`. A name has lower-case letters, digits and dashes."""
    admin: AdminAddress = DEFAULT_ADMIN
    """Address of the admin page, /metrics and /status: `ip:port`, or `unix:/path` for a socket of mode 0600."""
    admin_tls: Tls | None = None
    """Serve the admin address over TLS. With `client_ca`, a client with a certificate needs no token."""
    sinks: tuple[str, ...] = ()
    """Exporters beside Prometheus and OTLP (which `OTEL_*` variables turn on): plugins of the entry point group
    `onelane.sinks`."""
    admin_token: Annotated[str, MinLen(8)] | None = field(default=None, repr=False)
    """Bearer token for requests to the admin address; needed where that is no loopback address. Rather set it by the
    environment variable `ONELANE_ADMIN_TOKEN`, or by `admin_token_file`."""
    admin_token_file: str | None = None
    """A file that holds the `admin_token`, which none but the user of the supervisor may read; also by the environment
    variable `ONELANE_ADMIN_TOKEN_FILE`."""
    console: bool | None = None
    """Let the admin page call methods of the apps that serve reflection; by default only where `admin` is a loopback
    address or a Unix socket. Beyond, whoever has the token may call what the machine of the supervisor can reach."""
    per_shard_series: bool = True
    """Export each metric series once per shard, with the attribute `onelane.shard`; if false, their sum per app."""
    peers: Mapping[str, PeerTarget] = field(default_factory=dict)
    """Name → host:port of apps outside of this file, for `shard.stub(…, to=NAME)`."""
    cluster: ClusterSettings | None = None
    """The machines that share the keys of all apps of this file; without it, this one alone has them."""

    @property
    def has_console(self) -> bool:
        if self.console is not None:
            return self.console
        return self.admin.startswith(UNIX) or ipaddress.ip_address(addresses.split(self.admin)[0]).is_loopback

    def __post_init__(self) -> None:
        self._check_tls()
        self._check_names()
        self._check_stubs()
        self._check_callers()

    def _check_tls(self) -> None:
        if self.admin_tls is not None and self.admin.startswith(UNIX):
            raise ValueError("admin_tls: admin is a Unix socket, which has no TLS; expected ip:port")

    def _check_names(self) -> None:
        if wrong := [name for name in self.apps if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name)]:
            raise ValueError(f"app names {wrong}: expected lower-case letters, digits and dashes")

    def _check_stubs(self) -> None:
        targets = {*self.apps, *self.peers}
        wrong = [f"{n}.stubs.{to}" for n, app in self.apps.items() for to in app.stubs if to not in targets]
        if wrong:
            raise ValueError(f"apps.{', apps.'.join(wrong)}: no app or peer is called so; known are {sorted(targets)}")

    def _check_callers(self) -> None:
        for name, app in self.apps.items():
            callers = app.auth.apps if app.auth is not None else {}
            if wrong := sorted(set(callers) - set(self.apps) - set(self.peers)):
                raise ValueError(f"apps.{name}.auth.apps {wrong}: expected apps of this file, {sorted(self.apps)}")

    def accepting(self, caller: str) -> list[str]:
        """The apps that accept assertions of identity of the app `caller`; it does itself, where it has `auth`."""
        return [
            name
            for name, app in self.apps.items()
            if app.auth is not None and (name == caller or caller in app.auth.apps)
        ]

    def only(self, app: str) -> "Config":
        """The configuration of one app of the file, to which the other apps are peers.

        Raises:
            BadConfig: the file has no such app.
        """
        if app not in self.apps:
            raise BadConfig("--app", [f"{app!r} is not in the file; it has {sorted(self.apps)}"])
        peers = {name: other.listen for name, other in self.apps.items()} | dict(self.peers)
        admin = self.apps[app].admin or self.admin
        return changed(self, apps={app: self.apps[app]}, peers=peers, admin=admin)

    def check_addresses(self) -> None:
        """Compare the addresses of all apps that run together.

        Raises:
            BadConfig: two of them are the same, or a port is past 65535.
        """
        used: dict[tuple[str, int], str] = {}
        faults = []
        for host, port, place in self._addresses():
            if port > 65535:
                faults.append(f"{place} would be port {port}, past 65535: set own_port")
            others = [other for (taken, number), other in used.items() if number == port and _overlap(taken, host)]
            if port and others:
                faults.append(f"{place}: {addresses.join(host, port)} is {others[0]} already; expected another port")
            used.setdefault((host, port), place)
        if faults:
            raise BadConfig("configuration", faults)

    def _addresses(self) -> Iterator[tuple[str, int, str]]:
        """Host, port and place in the file of every address that listens."""
        if not self.admin.startswith(UNIX):
            yield (*addresses.split(self.admin), "admin")
        for name, app in self.apps.items():
            yield (*addresses.split(app.listen), f"apps.{name}.listen")
        for name, app in self.apps.items():
            host = addresses.split(app.listen)[0]
            for index in range(app.shard_count):
                yield host, app.own_port_of(index), f"apps.{name}: the own address of shard {name}-{index}"


def _overlap(host: str, other: str) -> bool:
    return host == other or addresses.is_wildcard(host) or addresses.is_wildcard(other)


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
    faults = [*_override(data, variables), *_read_token(data)]
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
        configuration = checked(Config, data)
    except ValidationError as error:
        # Without its cause, whose text has the values, secrets too.
        raise BadConfig(name, [*faults, *_faults(error.errors(), text, variables)]) from None
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
    for place, name in _overrides(environment).items():
        level: Any = data
        for table in place[:-1]:
            level = level.setdefault(table, {})
            if not isinstance(level, dict):
                faults.append(f"{name} sets {'.'.join(place)}, but {table} is {redaction.type_of(level)}, and no table")
                break
        else:
            level[place[-1]] = environment[name] if ADMIN_TOKEN in name else _value(environment[name])
    return faults


def _read_token(data: dict[str, Any]) -> list[str]:
    """Set the admin token that a file holds; the faults of it."""
    path = data.get("admin_token_file")
    if not isinstance(path, str):
        return []
    if "admin_token" in data:
        return ["admin_token and admin_token_file are both set, expected one of them"]
    try:
        data["admin_token"] = read_secret(path, name="admin_token_file")
    except BadConfig as error:
        return list(error.faults)
    return []


def _value(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


_APP_SETTINGS, _FILE_SETTINGS, _CLUSTER_SETTINGS = (
    {setting.name for setting in fields(kind)} for kind in (App, Config, ClusterSettings)
)
_OPEN_SETTINGS = (_APP_SETTINGS | _FILE_SETTINGS) - {"admin_token"}
"""Settings of the file whose values are no secrets, whatever their names look like: max_key_bytes."""


def _faults(errors: Sequence[Any], text: str, variables: Mapping[tuple[str, ...], str]) -> list[str]:
    """One fault for each place: a value that fits none of several types would be reported for each of them."""
    faults: dict[str, str] = {}
    for error in errors:
        place, problem = _fault(error)
        name = ".".join(place) or "the file"
        if name in faults:
            faults[name] += f", or: {problem}"
            continue
        variable = next((variable for key, variable in variables.items() if key == tuple(place[: len(key)])), "")
        line = None if variable else _line_of(place, text)
        origin = f"{variable}: " if variable else f"line {line}: " if line else ""
        faults[name] = f"{origin}{name}: {problem}"
    return list(faults.values())


def _fault(error: Any) -> tuple[list[str], str]:
    """Place and text of one error of pydantic's."""
    place = [str(part) for part in error["loc"] if part not in ("literal['auto']", "constrained-int", "int")]
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] == "unexpected_keyword_argument":
        known = {"apps": _APP_SETTINGS, "cluster": _CLUSTER_SETTINGS}.get(place[0], _FILE_SETTINGS)
        from difflib import get_close_matches

        near = get_close_matches(place[-1], known, n=1)
        problem = "is not a setting" + (f"; did you mean {near[0]!r}?" if near else "")
    elif error["type"] == "missing":
        problem = "is missing"
    elif error["type"] == "dataclass_type":
        problem = f"Input should be a valid dictionary or instance of {error['ctx']['class_name']}{_seen(place, error)}"
    else:
        problem += _seen(place, error)
    return place, problem


def _seen(place: list[str], error: Any) -> str:
    """The refused value, where it may be shown."""
    value = error["input"]
    if not place or (error["type"] == "value_error" and not isinstance(value, str | int | float)):
        return ""
    names = place[2:] if place[0] == "apps" else place
    # A url may have a password, which is not for there.
    is_secret = names[:1] == ["config"] or (place[:2] == ["cluster", "etcd"] and "@" in str(value))
    is_secret = is_secret or redaction.looks_secret(name for name in names if name not in _OPEN_SETTINGS)
    return f", seen {redaction.shown(value, is_secret=is_secret)}"


def _line_of(place: list[str], text: str) -> int | None:
    """The line that sets `place`, else the line of its table's header. Python's TOML parser gives no positions."""
    table: list[str] = []
    best = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\]]+)\]", line):
            table = [part.strip(" \"'") for part in header[1].split(".")]
            best = number if table == place[: len(table)] and len(table) > 1 else best
        elif setting := re.match(r"\s*[\"']?([^\s\"'=]+)[\"']?\s*=", line):
            here = [*table, *setting[1].split(".")]
            if here == place[: len(here)]:
                return number
    return best
