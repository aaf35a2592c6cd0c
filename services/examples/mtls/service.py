"""Mutual TLS: `client_ca` in the file makes every client show a certificate; its names are in the call's context.

The files are looked at again while the service runs: a new certificate needs no restart.
"""

from typing import Any

import grpc

from services.examples.mtls.v1 import mtls_pb2, mtls_pb2_grpc


class Vault(mtls_pb2_grpc.VaultServicer):
    async def WhoAmI(self, request: mtls_pb2.WhoAmIRequest, context: Any) -> mtls_pb2.WhoAmIReply:
        names = list(context.auth_context().get("x509_subject_alternative_name", ()))
        if not names:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the certificate has no subject alternative name")
        return mtls_pb2.WhoAmIReply(name=names[0].decode())
