"""Has an etcd ask for users: root, and one that reaches the keys of a cluster alone. Once more changes nothing.

    python etcd_users.py --etcd URL --ca FILE --cluster NAME --user NAME --password-file FILE --root-password-file FILE

By etcd's JSON gateway and Python alone, as etcd's own image has no shell for a dozen commands of etcdctl.
"""

import argparse
import json
import ssl
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

TIMEOUT_S = 10.0
READ_AND_WRITE = 2
ROLE_OF_ROOT = ROOT = "root"


class Refused(Exception):
    """In etcd's words."""


class Etcd:
    def __init__(self, url: str, ca: str) -> None:
        self._url = url.rstrip("/")
        self._tls = ssl.create_default_context(cafile=ca)

    def ask(self, path: str, **request: Any) -> Any:
        """Raises Refused."""
        body = json.dumps(request).encode()
        sent = urllib.request.Request(f"{self._url}/v3/auth/{path}", data=body)
        try:
            with urllib.request.urlopen(sent, timeout=TIMEOUT_S, context=self._tls) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(json.load(error).get("message", "no reason")) from None

    def make(self, path: str, **request: Any) -> None:
        """What may be there from an attempt that was cut short."""
        try:
            self.ask(path, **request)
        except Refused as error:
            if "already exists" not in str(error):
                raise

    def asks_for_users(self, root_password: str) -> bool:
        try:
            self.ask("authenticate", name=ROOT, password=root_password)
        except Refused as error:
            if "not enabled" in str(error):
                return False
            raise
        return True


def keys_of(cluster: str) -> dict[str, str]:
    """All keys of a cluster: up to the first one after them."""
    first = f"/onelane/{cluster}/".encode()
    after = first[:-1] + bytes([first[-1] + 1])
    return {"key": b64encode(first).decode(), "range_end": b64encode(after).decode()}


def guard(etcd: Etcd, cluster: str, user: str, password: str, root_password: str) -> None:
    """Raises Refused."""
    role = f"onelane-{cluster}"
    etcd.make("user/add", name=ROOT, password=root_password)
    etcd.make("role/add", name=ROLE_OF_ROOT)
    etcd.ask("user/grant", user=ROOT, role=ROLE_OF_ROOT)
    etcd.make("user/add", name=user, password=password)
    etcd.make("role/add", name=role)
    etcd.ask("role/grant", name=role, perm={"permType": READ_AND_WRITE, **keys_of(cluster)})
    etcd.ask("user/grant", user=user, role=role)
    etcd.ask("enable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("etcd", "ca", "cluster", "user", "password-file", "root-password-file"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    password, root_password = (
        Path(file).read_text().strip() for file in (options.password_file, options.root_password_file)
    )
    etcd = Etcd(options.etcd, options.ca)
    try:
        if not etcd.asks_for_users(root_password):
            guard(etcd, options.cluster, options.user, password, root_password)
    except (Refused, OSError) as error:
        sys.exit(f"etcd at {options.etcd}: {error}")


if __name__ == "__main__":
    main()
