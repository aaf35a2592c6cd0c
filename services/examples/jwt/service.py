"""A server interceptor checks a JSON Web Token (HS256) before a handler runs, and hands its claims to the handler."""

import base64
import hashlib
import hmac
import json
import os
import time
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from services.examples.jwt.v1 import jwt_pb2, jwt_pb2_grpc

current_claims: ContextVar[dict[str, Any]] = ContextVar("current_claims")
"""The claims of the call in progress. Each call has a context of its own, from its interceptors to its handler."""


def claims_of(token: str, secret: bytes) -> dict[str, Any] | None:
    """The claims of a token, or None where its signature is wrong or it has expired. RFC 7515, RFC 7519."""
    signed, _, signature = token.rpartition(".")
    expected = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256)).rstrip(b"=")
    if not hmac.compare_digest(expected, signature.encode()):
        return None
    header, claims = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in signed.split("."))
    return claims if header.get("alg") == "HS256" and claims.get("exp", 0) > time.time() else None


class Authenticated(grpc.aio.ServerInterceptor):
    def __init__(self) -> None:
        self.secret = os.environ["JWT_SECRET"].encode()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        claims = claims_of(token, self.secret)
        if claims is None:
            # The handler must have the shape of the method; all methods here are unary.
            return grpc.unary_unary_rpc_method_handler(refuse)
        current_claims.set(claims)
        return await continuation(handler_call_details)


async def refuse(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "expected metadata `authorization: Bearer <token>`")


class Accounts(jwt_pb2_grpc.AccountsServicer):
    async def Balance(self, request: jwt_pb2.BalanceRequest, context: Any) -> jwt_pb2.BalanceReply:
        if current_claims.get().get("sub") != request.user:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"the token is not one of {request.user!r}")
        return jwt_pb2.BalanceReply(cents=100 * len(request.user))
