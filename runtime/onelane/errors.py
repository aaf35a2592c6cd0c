"""The errors of this runtime in three families: `Invalid` (change the call), `Transient` (retry), `Internal` (a bug).

Each class names the gRPC status that a client sees; `server/status.py` alone turns an error into a status.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, TypeVar


class OnelaneError(Exception):
    """Base class of every error of this runtime."""

    status: ClassVar[str] = "UNKNOWN"
    """The name of the gRPC status that a client sees."""


class Invalid(OnelaneError):
    """The caller must change the call, the service or the configuration; a retry will fail again."""

    status = "INVALID_ARGUMENT"


class Transient(OnelaneError):
    """The same call may succeed later, or at another shard."""

    status = "UNAVAILABLE"


class Internal(OnelaneError):
    """A bug in this runtime. Reported, never handled."""

    status = "INTERNAL"


class Malformed(Invalid):
    """The bytes of a request do not parse as its message type. Status INTERNAL, as grpcio answers."""

    status = "INTERNAL"


class NotThere(Invalid):
    """The call names something that does not exist."""

    status = "NOT_FOUND"


class BadKey(Invalid):
    """A call's key is missing or empty, or differs from the key in its metadata."""


class LongKey(BadKey):
    """A key is longer than the app allows. A shard remembers keys, so their length is bounded."""

    reason = "key"
    """As of `Refused`."""

    def __init__(self, source: str, *, limit: int) -> None:
        """source: where the key is: a field, a name of the metadata, an argument."""
        super().__init__(f"{source} is too long: a key has at most {limit} bytes (max_key_bytes)")


class BadConfig(Invalid):
    """The configuration is not valid. Lists every fault."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        super().__init__("\n".join([f"{source}: {len(faults)} fault(s)", *(f"  {f}" for f in faults)]))
        self.source = source
        self.faults = tuple(faults)


class Misuse(Invalid):
    """The code of a service uses its shard wrongly: a bug of the service, not of its client.

    Its call is INTERNAL, and the shard's log has the traceback.
    """

    status = "INTERNAL"


class ForeignKey(Misuse):
    """The code of a service wants the turn, or a timer, of a key that another shard owns."""

    def __init__(self, key: str, *, shard: str, owner: str) -> None:
        super().__init__(
            f"the key {key!r} belongs to shard {owner}, not to {shard}: `shard.call` sends a call to the owner of a key"
        )
        self.key = key
        self.owner = owner


class KeyMoves(ForeignKey):
    """The code of a service wants the turn, or a timer, of a key that moves to another shard at this moment. No bug of
    the service: the same call may succeed there."""

    status = "UNAVAILABLE"


class BadService(Misuse):
    """A service, plugin or method cannot be run as configured: not found, without a key, or of an unsupported kind."""


class BadState(Misuse):
    """A value of a keyed dict does not fit what the service says of that dict."""

    def __init__(self, dict_name: str, key: object, reason: str) -> None:
        """reason: names the field where it can."""
        try:
            shown = repr(key)
        except Exception:
            # Any object may be a dict's key; the text of one must not hide the error.
            shown = f"<{type(key).__name__}>"
        super().__init__(f"keyed {dict_name!r}, key {shown}: {reason}")
        self.dict_name = dict_name
        self.key = key


class UnwritableValue(BadState):
    """A value cannot be encoded by the codec of its dict, or would not come back as it was."""


class UnreadableValue(BadState):
    """A stored or sent value cannot be decoded by this release of the service. It is left where it is."""


class NoRoutingKey(BadState):
    """A key of a keyed dict is no routing key, so its entry belongs to no shard."""

    def __init__(self, dict_name: str, key: object) -> None:
        super().__init__(
            dict_name,
            key,
            f"this {type(key).__name__} is no routing key: a str, bytes or int is, "
            "and for a key of several fields a tuple of two to five of these",
        )


class NotItsKey(Misuse):
    """In strict mode, code touches the entry of a key outside of the key's turn: a turn may be changing the entry, or
    it is not loaded, or is another shard's."""

    def __init__(
        self, app: str, dict_name: str, key: str, *, spelled: object, held: str | None, code: str = ""
    ) -> None:
        """key, held: canonical text. spelled: the key, as the code has it. held: the key whose turn it is; None outside
        of any. code: what runs then."""
        where = f"in the turn of {held!r}" if held is not None else f"outside of any turn{code and f', by {code}'}"
        super().__init__(
            f"app {app!r}, keyed {dict_name!r}: the entry of {spelled!r} was touched {where}: take its turn "
            f"(`async with shard.turn({spelled!r})`), or have its owner do it (`shard.call({spelled!r}, …)`)"
        )
        self.dict_name = dict_name
        self.key = key
        self.held = held


class ServiceRaised(BadService):
    """The code of a service has raised, in the import of its module or in a constructor. Its cause is that error."""


class PortTaken(Invalid):
    """Another process uses an address of the configuration."""

    def __init__(self, address: str, holder: str) -> None:
        super().__init__(f"{address} is taken by {holder}")
        self.address = address


class NoShards(Transient):
    """There is no shard that could own a key."""


class NotHome(Transient):
    """A call was forwarded to a shard that does not own its key: the two shards hold placements of different epochs."""

    def __init__(self, *, epoch: int) -> None:
        super().__init__(
            f"this shard is not the owner by the placement of epoch {epoch}, and the call was forwarded once already"
        )
        self.epoch = epoch


class HandOverRefused(Transient):
    """The state of a key must not be taken: its sender has died, or it is meant for another process."""

    status = "FAILED_PRECONDITION"


class OwnerAway(Transient):
    """The shard that owns the key serves no calls now, so the call is not forwarded to it."""

    def __init__(self, owner: str, reason: str) -> None:
        """reason: `unresponsive` (its lane does not tick), or `drained`."""
        super().__init__(f"shard {owner}, which owns the key, is {reason}")
        self.owner = owner
        self.reason = reason


class Draining(Transient):
    """The shard is shutting down and takes no new calls."""


class Refused(Transient):
    """The shard is overloaded. The call has not begun, and may be retried after `pushback_s` seconds."""

    status = "RESOURCE_EXHAUSTED"
    reason = ""
    """Value of the attribute `onelane.reason` of the metric `onelane.refusals`."""
    pushback_s = 0.1


class Overloaded(Refused):
    """A bounded queue is full."""

    reason = "full"

    def __init__(self, queue: str, *, waiting: int) -> None:
        super().__init__(f"{queue} is full: {waiting} waiting already")
        self.waiting = waiting


class RunsLate(Refused):
    """The calls that have arrived already will keep the shard's event loop busy for too long."""

    reason = "late"

    def __init__(self, shard: str, *, late_s: float) -> None:
        super().__init__(f"shard {shard} runs {late_s * 1000:.0f} ms late")


class TooManyWatches(Refused):
    """The shard serves as many watches of this kind as it may."""

    reason = "watches"

    def __init__(self, shard: str, *, limit: int) -> None:
        super().__init__(f"shard {shard} serves {limit} watches of this kind already: max_watches")


class TooOften(Refused):
    """The calls of one key exceed its rate limit."""

    reason = "rate"

    def __init__(self, *, per_s: float, wait_s: float) -> None:
        super().__init__(f"this key is called more often than {per_s:g} times a second")
        self.pushback_s = wait_s


class TokensNotChecked(Refused):
    """Tokens that the shard has not seen before come faster than it checks signatures."""

    reason = "tokens"
    pushback_s = 1.0

    def __init__(self) -> None:
        super().__init__("too many new tokens; this one was not checked")


class NoTokenKeys(Refused):
    """The shard has no keys to check tokens with: they could not be fetched."""

    status = "UNAVAILABLE"
    reason = "keys"
    pushback_s = 1.0

    def __init__(self) -> None:
        super().__init__("tokens cannot be checked at the moment")


class NoLease(Refused):
    """The lease of the machine was not renewed in time: another machine may own its keys by now, so it serves none."""

    status = "UNAVAILABLE"
    reason = "no_lease"
    pushback_s = 0.5

    def __init__(self, shard: str) -> None:
        super().__init__(f"shard {shard} serves no key at the moment: its machine's lease was not renewed in time")


class AccessRefused(Invalid):
    """The caller may not make this call. The text that the client sees names no role, no key and no other caller."""

    reason = ""
    """Value of the attribute `onelane.reason` of the metric `onelane.refusals`."""
    cause = ""
    """For the audit log alone."""


class Unauthenticated(AccessRefused):
    """The call has no credentials, and needs some; or its credentials are not valid."""

    status = "UNAUTHENTICATED"
    reason = "unauthenticated"

    def __init__(self, cause: str, *, has_credentials: bool = True) -> None:
        """cause: for the audit log alone; that of a refused token may help its forger."""
        super().__init__("the credentials are not valid" if has_credentials else "this method needs credentials")
        self.cause = cause
        self.has_credentials = has_credentials


class NotPermitted(AccessRefused):
    """The caller is known, and has no role that may call the method."""

    status = "PERMISSION_DENIED"
    reason = "not_permitted"

    def __init__(self, method: str) -> None:
        super().__init__(f"not permitted to call {method}")
        self.cause = "none of its roles may call the method"


class StoreUnavailable(Transient):
    """The store of durable state does not answer, or cannot write: locked, full, unreachable. It may be back later."""

    def __init__(self, place: str, problem: str) -> None:
        """place: the file or the server, without credentials."""
        super().__init__(f"{place}: {problem}")
        self.place = place


class StoreRefused(Invalid):
    """The file or database of durable state must not be used: another app's, of a newer release, or damaged."""

    status = "INTERNAL"

    def __init__(self, place: str, *, seen: str, expected: str) -> None:
        """place: the file or the server, without credentials."""
        super().__init__(f"{place}: {seen}, expected {expected}")
        self.place = place


class StillRunning(Transient):
    """What is stored cannot be changed while the app runs: its shards have it in memory."""

    def __init__(self, app: str, seen: str) -> None:
        super().__init__(f"{app} runs: {seen}. Stop it first: its shards have their state in memory")


class Fenced(Transient):
    """Another life has claimed these keys since, so this one may neither load nor write them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = tuple(sorted(keys))
        names = ", ".join(repr(key) for key in self.keys[:3])
        more = f" and {len(self.keys) - 3} more" if len(self.keys) > 3 else ""
        super().__init__(f"another life has claimed the keys {names}{more}")


class UnreadableReminder(Invalid):
    """A reminder in the store is damaged, or of a newer release. It is left as it is."""

    status = "INTERNAL"

    def __init__(self, key: str, name: str) -> None:
        """name: its id."""
        super().__init__(f"the reminder {name!r} of the key {key!r} cannot be read")


class TooManyReminders(Invalid):
    """The key has as many reminders as it may."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, key: str, *, limit: int) -> None:
        super().__init__(f"the key {key!r} has {limit} reminders already: max_reminders_per_key")


class BadIdempotencyKey(Invalid):
    """The metadata `idempotency-key` of a call cannot be one, or belongs to another request."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"idempotency-key {problem}")


class RepeatedTooSoon(Transient):
    """A call inside a turn repeats one that runs there still, and cannot wait for the turn."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the first call with the idempotency-key {name!r} runs still, inside the same turn")


class NotKept(Transient):
    """A turn, or one that it rests on, could not be written to the store: its changes are dropped."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the changes of this turn, or of one before it, were not kept: {why}")


class DeadlinePassed(Transient):
    """The deadline passed before there was an answer."""

    status = "DEADLINE_EXCEEDED"


ErrorT = TypeVar("ErrorT", bound=BaseException)


def caused(error: ErrorT, cause: BaseException) -> ErrorT:
    """An error that another has caused. In compiled code `raise … from` sets no cause: it is written beside this."""
    error.__cause__ = cause
    return error


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a task group to report: the first `OnelaneError`, else the first of all."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, OnelaneError)), leaves[0])


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put a place of the configuration before each fault of a `BadService`, and before the source of a `BadConfig`."""
    try:
        yield
    except ServiceRaised as error:
        # One fault, whose text may have several lines.
        raise ServiceRaised(f"{place}: {error}") from error.__cause__
    except BadService as error:
        lines = "\n".join(f"{place}: {line}" for line in str(error).splitlines())
        raise BadService(lines) from error.__cause__
    except BadConfig as error:
        raise BadConfig(f"{place}.{error.source}", error.faults) from error.__cause__
