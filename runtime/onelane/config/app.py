"""`[apps.NAME]`: the settings of one app."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

from onelane.config.checks import Address, AdminAddress, Plug, Seconds
from onelane.core import addresses
from onelane.core.auth_settings import AuthSettings
from onelane.core.service_config import ServiceConfig
from onelane.core.state_settings import StateSettings
from onelane.core.validation import Check, Checked

PORT_STRIDE = 100
"""Between the shared port of an app and the own port of its first shard, and from one shard to the next."""


def _host(text: str) -> str:
    try:
        unspecified = ipaddress.ip_address(text).is_unspecified
    except ValueError:
        unspecified = True
    if unspecified:
        raise ValueError("expected an IP address that clients can reach, not a host name, 0.0.0.0 or ::")
    return text


def _stall_s(seconds: float) -> float:
    if seconds and not 0.01 <= seconds <= 60:
        raise ValueError("expected 0, or seconds from 0.01 to 60")
    return seconds


def _unresponsive_s(seconds: float) -> float:
    if seconds and not 0.5 <= seconds <= 3600:
        raise ValueError("expected 0, or seconds from 0.5 to 3600")
    return seconds


@dataclass(frozen=True, kw_only=True)
class Tls(Checked):
    """PEM files for an app that serves TLS. They are read again when they change, for the handshakes that follow."""

    cert: str
    """The server's certificate chain."""
    key: str
    """The private key of `cert`."""
    client_ca: str | None = None
    """Certificate authorities for mutual TLS: a client must present a certificate that one of them has signed."""


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
