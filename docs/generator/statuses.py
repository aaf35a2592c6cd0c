"""The reference of errors and statuses, from the classes of `onelane.errors`."""

import inspect
from collections import defaultdict

import onelane
from onelane import errors
from onelane.core.service_config import STATUS_NAMES
from onelane.errors import OnelaneError

MEANING = {
    "INVALID_ARGUMENT": "The call, or the file, has to be changed: the same call fails again.",
    "NOT_FOUND": "The call names something that does not exist.",
    "PERMISSION_DENIED": "The client is known, and has no role for the method.",
    "UNAUTHENTICATED": "The call needs credentials that are valid.",
    "RESOURCE_EXHAUSTED": "A limit was reached and the call has not begun: repeat it later, after "
    "`grpc-retry-pushback-ms` where the answer has that trailer.",
    "FAILED_PRECONDITION": "Between shards alone.",
    "INTERNAL": "A fault of the service or of the runtime: the log has it under the id that the client got.",
    "UNAVAILABLE": "The same call may succeed in a moment. It may have run, if it was not refused: repeat it with an "
    "`idempotency-key` where the service has durable state.",
    "DEADLINE_EXCEEDED": "The deadline passed; the handler was cancelled.",
}
"""What a status tells a client whose call this runtime has ended."""


def page() -> str:
    """The whole reference, as Markdown."""
    by_status: dict[str, list[type[OnelaneError]]] = defaultdict(list)
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, OnelaneError) and kind is not OnelaneError:
            by_status[kind.status].append(kind)
    parts = [
        "# Errors and statuses",
        "The errors of this runtime, by the status that a client sees. A handler may raise those of `onelane` itself, "
        "and the client gets their status and text. Any other exception of a handler is INTERNAL with an id of the "
        "log. The *reason* is the attribute `onelane.reason` of the metric `onelane.refusals`.",
    ]
    for status in sorted(by_status, key=STATUS_NAMES.index):
        parts += [f"## {status}", MEANING[status], _table(by_status[status])]
    return "\n\n".join(parts) + "\n"


def _table(kinds: list[type[OnelaneError]]) -> str:
    rows = ["| error | reason | meaning |", "|---|---|---|"]
    for kind in kinds:
        name = f"onelane.{kind.__name__}" if kind.__name__ in onelane.__all__ else kind.__name__
        reason = getattr(kind, "reason", "")
        shown = f"`{reason}`" if isinstance(reason, str) and reason else ""
        rows.append(f"| `{name}` | {shown} | {' '.join((kind.__doc__ or '').split())} |")
    return "\n".join(rows)
