"""The gate before a lane, where the app has `[apps.NAME.auth]`: a call passes once its client may make it.

Promises: every way into the lane leads through it (`shard/serving`); a fault of any kind refuses the call; a call that
is refused reaches neither admission nor a handler, and on the native listener its message is not waited for. The shard
that a client is connected to checks; the owner of a key believes the proven identity that a sibling sends along, and
refuses a forwarded call without it.
"""

from onelane.core.identity import ANONYMOUS
from onelane.core.permissions import AUTHENTICATED, PUBLIC, Permissions, Roles
from onelane.errors import AccessRefused, NotPermitted, OnelaneError, Unauthenticated
from onelane.lane.audit import Audit
from onelane.lane.lane import Lane
from onelane.server.authenticator import Authenticator, take_assertion
from onelane.server.call import DIRECT_HOP, Call
from onelane.server.listener import Work
from onelane.server.methods import Method


class Gate:
    """See the module. Owned by its lane."""

    def __init__(self, lane: Lane, permissions: Permissions, authenticator: Authenticator, audit: Audit) -> None:
        self._lane = lane
        self._permissions = permissions
        self._authenticator = authenticator
        self._audit = audit
        self._roles: dict[str, Roles | None] = {}
        """Path of a method → the roles that may call it; None where nobody is asked."""

    def announce(self, method: Method, call: Call) -> None:
        """See `onelane.server.listener.Serving`: nothing of a stranger's message is held."""
        refusal = self._check(method, call)
        if refusal is not None:
            self._lane.refuse(method, call, refusal)

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        """See `Lane.arrive`."""
        refusal = self._check(method, call)
        if refusal is None:
            return self._lane.arrive(method, call, request)
        self._lane.refuse(method, call, refusal)
        return None

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        """See `Lane.serve`."""
        refusal = self._check(method, call)
        if refusal is None:
            return await self._lane.serve(method, call, request)
        self._lane.refuse(method, call, refusal)
        return call.reply

    def _check(self, method: Method, call: Call) -> Exception | None:
        """Why a call may not be made; None where it may."""
        try:
            self._identify(method, call)
        except OnelaneError as error:
            self._note(call, error)
            return error
        except Exception as error:
            # A defect of ours opens nothing: the call is INTERNAL.
            self._audit.refused(call, status="INTERNAL", reason="defect", cause=type(error).__name__)
            return error
        return None

    def _identify(self, method: Method, call: Call) -> None:
        """Prove the identity of the client of a call, and that it may make the call.

        Raises:
            OnelaneError: it may not.
        """
        if call.hop != DIRECT_HOP:
            # A client may have sent one that its shard has passed on unread.
            take_assertion(call)
            if call.identity is None:
                raise Unauthenticated("a sibling has forwarded it without a proven identity")
            return
        if call.identity is not None:
            # It was announced, and may be made.
            return
        if call.trusted:
            # The app's own code calls.
            call.prove(self._authenticator.of_sibling(call))
            return
        roles = self._roles_for(method)
        if roles is None:
            call.prove(ANONYMOUS)
            return
        call.prove(self._authenticator.identify(call))
        self._permit(method, call, roles)

    def _permit(self, method: Method, call: Call, roles: Roles) -> None:
        identity = call.identity
        assert identity is not None
        if PUBLIC in roles or (AUTHENTICATED in roles and not identity.is_anonymous):
            return
        if roles.isdisjoint(identity.roles):
            if identity.is_anonymous:
                raise Unauthenticated("it shows no credentials that the app accepts", has_credentials=False)
            raise NotPermitted(method.name)

    def _roles_for(self, method: Method) -> Roles | None:
        try:
            return self._roles[method.path]
        except KeyError:
            is_open = self._permissions.is_open_by_default(method.name)
            roles = self._roles[method.path] = None if is_open else self._permissions.roles_for(method.name)
            return roles

    def _note(self, call: Call, error: OnelaneError) -> None:
        if isinstance(error, Unauthenticated) and self._authenticator.takes_tokens:
            # RFC 6750, section 3, as metadata.
            challenge = 'Bearer error="invalid_token"' if error.has_credentials else "Bearer"
            call.trailers = (("www-authenticate", challenge),)
        reason = getattr(error, "reason", "")
        cause = error.cause if isinstance(error, AccessRefused) else str(error)
        self._audit.refused(call, status=error.status, reason=reason, cause=cause)
