"""OpenTelemetry's context on a lane: what its API has attached, else what the call in progress amounts to.

Found by the entry point `opentelemetry_context` under the name `onelane`, which `OTEL_PYTHON_CONTEXT` asks for.
OpenTelemetry loads it while its own package is half imported, so what needs the rest of it (`otel/tracing`) is
imported only when it is asked.
"""

from contextvars import Token
from typing import Any

from opentelemetry.context.context import Context, _RuntimeContext

from onelane.core.context import attached, current

_EMPTY = Context()


class LaneContext(_RuntimeContext):
    """See the module."""

    def attach(self, context: Context) -> Any:
        from onelane.telemetry.otel import tracing

        return attached.set(tracing.attach(context))

    def get_current(self) -> Context:
        found = attached.get()
        if found is not None:
            context: Context = found.context
            return context
        scope = current.get()
        if scope is None:
            return _EMPTY
        from onelane.telemetry.otel import tracing

        return tracing.context_of_scope(scope)

    def detach(self, token: Token[Any]) -> None:
        attached.reset(token)
