"""OpenTelemetry's runtime context on a lane: the context that its API attached, else that of the call in progress.

OpenTelemetry loads it by the entry point `onelane` of the group `opentelemetry_context`, which `OTEL_PYTHON_CONTEXT`
names. It does so while its own package is half imported, so `otel/tracing`, which needs the whole package, is imported
on the first use.
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
