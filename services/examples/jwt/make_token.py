"""Makes a token for trying the example, as a login service would: python -m services.examples.jwt.make_token USER"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from typing import Any

VALID_S = 600.0


def token_of(claims: dict[str, Any], secret: bytes, *, algorithm: str = "HS256") -> str:
    """A token with these claims, signed by `secret`."""
    parts = [json.dumps(part).encode() for part in ({"alg": algorithm, "typ": "JWT"}, claims)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.digest(secret, signed, hashlib.sha256)).rstrip(b"=")
    return f"{signed.decode()}.{signature.decode()}"


if __name__ == "__main__":
    claims = {"sub": sys.argv[1], "exp": time.time() + VALID_S}
    sys.stdout.write(token_of(claims, os.environ["JWT_SECRET"].encode()) + "\n")
