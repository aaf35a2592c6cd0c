"""OpenTelemetry's context on a lane: what its API has attached, else what the call in progress amounts to.

Found by the entry point `opentelemetry_context` under the name `onelane`, which `OTEL_PYTHON_CONTEXT` asks for.
OpenTelemetry loads it while its own package is half imported, so what needs the rest of it (`otel/tracing`) is
imported only when it is asked.
"""

from contextvars import Token
from typing import Any

from opentelemetry.context.context import Context, _RuntimeContext

from onelane.core.context import attached_context, attached_context_var, current_call

_EMPTY = Context()


class LaneContext(_RuntimeContext):
    """See the module."""

    def attach(self, context: Context) -> Any:
        from onelane.telemetry.otel import tracing

        return attached_context_var.set(tracing.attach(context))

    def get_current(self) -> Context:
        attached = attached_context()
        if attached is not None:
            context: Context = attached.context
            return context
        call = current_call()
        if call is None:
            return _EMPTY
        from onelane.telemetry.otel import tracing

        return tracing.context_of_call(call)

    def detach(self, token: Token[Any]) -> None:
        attached_context_var.reset(token)
