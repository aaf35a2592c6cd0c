"""What a file of apps says, checked whole: every fault at once, each with its key and its line where known.

Order: environment `ONELANE_APPS__LOBBY__SHARDS=4` over the file over the defaults. Parsed once, then trusted.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from onelane.core.service_config import ServiceConfig
from onelane.errors import BadConfig

ENVIRONMENT_PREFIX = "ONELANE_"
ADMIN_TOKEN = "ONELANE_ADMIN_TOKEN"
OVERRULED = ("ONELANE_ADMIN", ADMIN_TOKEN)
"""Variables for what a file says beside its apps."""
DEFAULT_ADMIN = "127.0.0.1:9464"
PORT_STRIDE = 100


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("expected ip:port with a port from 0 to 65535")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ValueError("expected an IP address before the port, such as 127.0.0.1 or [::1]") from None
    return text


def _host(text: str) -> str:
    try:
        unspecified = ipaddress.ip_address(text).is_unspecified
    except ValueError:
        unspecified = True
    if unspecified:
        raise ValueError("expected an IP address that clients can reach")
    return text


def _plug(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError("expected package.module:Class")
    return text


def _stall(seconds: float) -> float:
    if seconds and not 0.01 <= seconds <= 60:
        raise ValueError("expected 0, or seconds from 0.01 to 60")
    return seconds


Address = Annotated[str, AfterValidator(_address)]
Plug = Annotated[str, AfterValidator(_plug)]


class Tls(BaseModel):
    """Files of an app's certificate, PEM. Changed files are used from the next handshake on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert: str
    key: str
    client_ca: str | None = None
    """Where given, a client must show a certificate that one of these has signed."""


Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]


class TailKeeping(BaseModel):
    """What of an app's traces is exported though it was not sampled. Every call is recorded then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    errors: bool = True
    """Traces in which something ended in an error."""
    slower_s: Seconds | None = None
    """Traces in which something took so many seconds, or more."""
    slowest: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Traces of the slowest calls of each method: this share of those of the last minute, for example 0.001."""


class App(BaseModel):
    """One app: services that run together in each of its shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    services: Annotated[tuple[Plug, ...], Field(min_length=1)]
    """`package.module:Class`, each a grpcio servicer."""
    listen: Address
    """The shared port, ip:port; port 0 takes a free one."""
    shards: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """Shard processes; "auto" is one per core."""
    own_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """First of the shards' own ports, which follow each other; else shard i takes listen + 100 · (i + 1)."""
    advertise: Annotated[str, AfterValidator(_host)] | None = None
    """The IP by which clients reach the shards' own ports, where `listen` is all addresses (0.0.0.0 or ::)."""
    admin: Address | None = None
    """Where `onelane serve` serves /metrics and /status for this app alone; else the file's `admin`."""
    listener: str = "native"
    """Name of a plug of the group `onelane.listeners`."""
    membership: str = "supervisor"
    """Name of a plug of the group `onelane.memberships`."""
    points: Annotated[int, Field(ge=1, le=65536)] = 512
    """Points of each shard on the ring."""
    keys: Mapping[str, str] = {}
    """Keys that the protos do not state: "pkg.Service/Method" → "field.path", "metadata:name" or "ANY"."""
    turns: Mapping[str, Literal["KEYED", "FREE"]] = {}
    """Turns that the protos do not state: "pkg.Service/Method" or "pkg.Service/*" → "FREE", or "KEYED" after all."""
    max_waiting_per_key: Annotated[int, Field(ge=0)] = 1000
    """Calls that may wait for the turn of one key; one more is RESOURCE_EXHAUSTED."""
    max_published: Annotated[int, Field(ge=1)] = 10_000
    """Messages that one shard may publish in one tick; one more is refused."""
    max_lag: Annotated[int, Field(ge=1)] = 1000
    """Messages that a subscriber may lag behind; then it loses the oldest, and is told."""
    stubs: Mapping[str, ServiceConfig] = {}
    """Peer → gRPC's service config (`methodConfig`, `retryThrottling`) and `max_in_flight`, for stubs to it."""
    config: Mapping[str, Any] = {}
    """The services' own settings, which they read as `shard.config`; `onelane reload` changes them while they run."""
    config_type: Plug | None = None
    """`package.module:Class` of `shard.config`: a frozen dataclass, or a frozen pydantic model."""
    health: bool = True
    """Serve grpc.health.v1.Health."""
    reflection: bool | None = None
    """Serve gRPC reflection; if not said, only where `listen` is a loopback address."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Seconds that calls under way may take at the end."""
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Deadline of a unary call between services that has no other."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 4 * 1024 * 1024
    """Largest message taken; a larger one is RESOURCE_EXHAUSTED."""
    max_in_flight: Annotated[int, Field(ge=1)] = 8192
    """Calls that one shard works on at once; one more is RESOURCE_EXHAUSTED."""
    max_timers: Annotated[int, Field(ge=0)] = 100_000
    """Timers of one shard at once; to set one more raises Overloaded."""
    max_late_s: Annotated[float, Field(gt=0, le=60)] = 0.05
    """Seconds of calls that may have piled up; what comes on top, while that lasts, is RESOURCE_EXHAUSTED."""
    max_rate_per_key: Annotated[float, Field(gt=0)] | None = None
    """Calls a second of one key, with as many at once after a pause; one more is RESOURCE_EXHAUSTED."""
    stall_s: Annotated[float, AfterValidator(_stall)] = 0.05
    """A lane that does not turn for half as long to as long is reported, with where it stands; 0 turns that off."""
    replace_stalled_s: Annotated[float, Field(ge=1, le=86400)] | None = None
    """A shard's process whose lane stands still for so long is replaced; where not said, never. Not in inline mode."""
    max_streams: Annotated[int, Field(ge=1)] = 1024
    """Calls at once on one connection; the client waits with more."""
    max_metadata_bytes: Annotated[int, Field(ge=1024, le=1024 * 1024)] = 16 * 1024
    """Largest metadata of a call; larger are RESOURCE_EXHAUSTED, and four times as large end the connection."""
    max_connections: Annotated[int, Field(ge=1)] = 20_000
    """Connections of clients to one shard at once; one more is closed."""
    keepalive_s: Seconds | None = 7200.0
    """Quiet seconds after which a client is asked whether it is there."""
    ping_timeout_s: Seconds = 20.0
    """How long it may take to say so."""
    max_idle_s: Seconds | None = None
    """Seconds without a call after which a client is sent away."""
    max_age_s: Seconds | None = None
    """Seconds after which a client is sent away to connect anew, its calls finished."""
    tls: Tls | None = None
    """Serve clients over TLS; siblings speak over Unix sockets."""
    interceptors: tuple[Plug, ...] = ()
    """`package.module:Class`, each a `grpc.aio.ServerInterceptor`, outermost first."""
    tail: TailKeeping | None = None
    """Which traces are exported though they were not sampled; if not said, none."""
    show_keys: bool = False
    """Show the keys that are asked most by their text; else by their hash alone."""
    pins: Mapping[str, int] = {}
    """Canonical key → index of the shard that owns it in spite of the ring."""

    @property
    def shard_count(self) -> int:
        return (os.cpu_count() or 1) if self.shards == "auto" else self.shards

    @property
    def adopts_sockets(self) -> bool:
        """Its listener takes sockets that the supervisor holds; gRPC's core cannot."""
        return self.listener != "grpcio"

    @property
    def serves_reflection(self) -> bool:
        host = self.listen.rpartition(":")[0].strip("[]")
        return ipaddress.ip_address(host).is_loopback if self.reflection is None else self.reflection

    @model_validator(mode="after")
    def _clients_can_reach_shards(self) -> Self:
        host = ipaddress.ip_address(self.listen.rpartition(":")[0].strip("[]"))
        if host.is_unspecified and self.advertise is None:
            raise ValueError("listen is all addresses, so advertise must name the one by which clients reach it")
        return self

    @model_validator(mode="after")
    def _pins_lead_to_shards(self) -> Self:
        if wrong := [key for key, index in self.pins.items() if not 0 <= index < self.shard_count]:
            raise ValueError(f"pins {wrong} name a shard that is not in 0..{self.shard_count - 1}")
        return self


class Config(BaseModel):
    """One file: its apps, and what their supervisor needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    apps: Annotated[dict[str, App], Field(min_length=1)]
    admin: Address = DEFAULT_ADMIN
    """Where the supervisor serves its page, /metrics and /status."""
    sinks: tuple[str, ...] = ()
    """Names of further plugs of the group `onelane.sinks`, beside Prometheus and (by `OTEL_*`) OTLP."""
    admin_token: Annotated[str, Field(min_length=8)] | None = None
    """What who uses the admin address must show; needed where that is not loopback. `ONELANE_ADMIN_TOKEN` says it
    without a file."""
    per_shard_series: bool = True
    """Export every series for each shard, with the attribute `onelane.shard`; else the sums of each app alone."""
    peers: Mapping[str, str] = {}
    """host:port of apps that run elsewhere, for `shard.stub(…, to=NAME)`."""

    @model_validator(mode="after")
    def _names_are_plain(self) -> Self:
        if wrong := [name for name in self.apps if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name)]:
            raise ValueError(f"app names {wrong}: expected lower-case letters, digits and dashes")
        return self

    def only(self, app: str) -> Self:
        """The same file with one app, which still finds the others as peers.

        Raises:
            BadConfig: the file has no such app.
        """
        if app not in self.apps:
            raise BadConfig("--app", [f"{app!r} is not in the file; it has {sorted(self.apps)}"])
        peers = {name: other.listen for name, other in self.apps.items()} | dict(self.peers)
        admin = self.apps[app].admin or self.admin
        return self.model_copy(update={"apps": {app: self.apps[app]}, "peers": peers, "admin": admin})


def load(path: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read and check one file.

    Raises:
        BadConfig: it cannot be read, is not TOML, or breaks the rules above; all faults at once.
    """
    try:
        text = path.read_text()
        data = tomllib.loads(text)
    except OSError as error:
        raise BadConfig(str(path), [f"cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(str(path), [f"is not TOML: {error}"]) from error
    _overrule(data, os.environ if environment is None else environment)
    return parse(data, name=str(path), text=text)


def parse(data: Mapping[str, Any], *, name: str = "configuration", text: str = "") -> Config:
    """The configuration in `data`. name, text: of its file, for error messages.

    Raises:
        BadConfig: it breaks the rules above; all faults at once.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise BadConfig(name, [_fault(details, text) for details in error.errors()]) from error


def _overrule(data: dict[str, Any], environment: Mapping[str, str]) -> None:
    for name in sorted(environment):
        *tables, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if not name.startswith(ENVIRONMENT_PREFIX + "APPS__") and name not in OVERRULED:
            continue
        level = data
        for table in tables:
            level = level.setdefault(table, {})
        level[key] = environment[name] if name == ADMIN_TOKEN else _value(environment[name])


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _fault(error: Any, text: str) -> str:
    place = [str(part) for part in error["loc"] if part not in ("literal['auto']", "constrained-int", "int")]
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = App.model_fields if place[0] == "apps" else Config.model_fields
        near = difflib.get_close_matches(place[-1], known, n=1)
        what = "is not a setting" + (f"; did you mean {near[0]!r}?" if near else "")
    elif error["type"] == "missing":
        what = "is missing"
    else:
        what = f"{what}, seen {error['input']!r}" if place else what
    line = _line_of(place, text)
    return (f"line {line}: " if line else "") + f"{'.'.join(place) or 'the file'}: {what}"


def _line_of(place: list[str], text: str) -> int | None:
    """The line that sets `place`, or the one that opens its table. TOML parsers here give no positions."""
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
