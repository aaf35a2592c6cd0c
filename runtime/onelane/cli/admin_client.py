"""Requests of the commands to a running supervisor, at its admin address. Their errors say what to do."""

import functools
import json
import os
import socket
import ssl
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from onelane import config, secret_files
from onelane.core import addresses
from onelane.core.printable import replaced
from onelane.errors import BadConfig, Invalid, NotThere, Transient

TIMEOUT_S = 3.0
COMMAND_S = 3600.0
"""A restart waits for the calls of one shard after another."""
DEFAULT_FILE = Path("onelane.toml")
HTTPS = "https://"
NDJSON = "application/x-ndjson"
"""What a response with lines on the progress of a command is."""
CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE = "ONELANE_ADMIN_CA", "ONELANE_ADMIN_CERT", "ONELANE_ADMIN_KEY"
"""Variables that name PEM files for an admin address with TLS."""
HINT = "another address is given by --admin or ONELANE_ADMIN"


class Unreachable(Transient):
    """Nothing listens at an address, or nothing answers there in time."""


class NoAnswer(Unreachable):
    """It has not answered in time."""


class ForeignServer(Transient):
    """Something else than a supervisor answers at an address."""


def address_of(wanted: str | None) -> str:
    """The address to ask: the one wanted; else the admin address of ./onelane.toml; else the default. It is `ip:port`,
    `https://host:port` or `unix:/path`.

    Puts the token of the file, and the certificate to trust, into this process's environment, where it has none.

    Raises:
        Invalid: it is no address.
    """
    if wanted is not None:
        address = wanted.removeprefix("http://").rstrip("/")
    else:
        address = _configured() if DEFAULT_FILE.exists() else config.DEFAULT_ADMIN
    host, _, port = address.removeprefix(HTTPS).rpartition(":")
    if address.startswith(config.UNIX + "/"):
        return address
    if not host or not port.isdigit() or not 0 < int(port) <= 65535:
        raise Invalid(f"admin address {address!r}: expected ip:port with a port from 1 to 65535, or unix:/path; {HINT}")
    return address


def _configured() -> str:
    try:
        settings = config.load(DEFAULT_FILE)
    except BadConfig:
        # A file that is being edited must not hide the state of what runs.
        return _written()
    return address_in(settings)


def address_in(settings: config.Config) -> str:
    """The admin address of a file; its token and certificate, as `address_of`."""
    if settings.admin_token is not None:
        os.environ.setdefault(secret_files.ADMIN_TOKEN, settings.admin_token)
    if settings.admin_tls is not None:
        os.environ.setdefault(CA_VARIABLE, settings.admin_tls.cert)
        return HTTPS + addresses.reachable(settings.admin)
    return settings.admin if settings.admin.startswith(config.UNIX) else addresses.reachable(settings.admin)


def _written() -> str:
    """The admin address of a file that has faults elsewhere."""
    try:
        table = tomllib.loads(DEFAULT_FILE.read_text())
        admin = str(table.get("admin", config.DEFAULT_ADMIN))
        return admin if admin.startswith(config.UNIX) else addresses.reachable(admin)
    except (OSError, ValueError):
        return config.DEFAULT_ADMIN


def fetch(address: str, path: str) -> dict[str, Any]:
    """A JSON document of an admin address, without control characters that a terminal would interpret.

    Raises:
        NotThere: the supervisor has no such document.
        Unreachable, ForeignServer, Transient: no supervisor answers, or it refuses.
    """
    return _answer(address, urllib.request.Request(f"{_url(address)}{path}", headers=_headers()), TIMEOUT_S)


def command(address: str, path: str, within_s: float = COMMAND_S) -> dict[str, Any]:
    """Send a command to the supervisor at an admin address; its response, for which it has `within_s`. Raises as
    `fetch`."""
    headers = {"X-Onelane": "1", **_headers()}
    request = urllib.request.Request(f"{_url(address)}{path}", method="POST", headers=headers)
    return _answer(address, request, within_s)


def follow(address: str, path: str, tell: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """As `command`, of one that takes a while: `tell` is called with each line on its progress."""
    headers = {"X-Onelane": "1", "Accept": f"{NDJSON}, application/json", **_headers()}
    request = urllib.request.Request(f"{_url(address)}{path}", method="POST", headers=headers)
    with _reading(address, request, COMMAND_S) as response:
        if response.headers.get_content_type() != NDJSON:
            return _document(address, json.load(response))
        for line in map(json.loads, response):
            if "outcome" not in line:
                tell(printable(line))
            elif line["status"] == 200:
                return _document(address, line["outcome"])
            else:
                raise Transient(f"{address} refuses: {printable(str(line['outcome'].get('fault')))}")
    raise Unreachable(f"{address} has ended before the command was over, and with it `onelane up`")


def _headers() -> dict[str, str]:
    """The headers that authorize a request: the token of `ONELANE_ADMIN_TOKEN` or of its file, where one is set."""
    token, path = os.environ.get(secret_files.ADMIN_TOKEN), os.environ.get(secret_files.ADMIN_TOKEN_FILE)
    if not token and path:
        token = secret_files.read_secret(path, name=secret_files.ADMIN_TOKEN_FILE)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _url(address: str) -> str:
    if address.startswith(config.UNIX):
        return "http://localhost"
    return address if address.startswith(HTTPS) else f"http://{address}"


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str, host: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixHandler(urllib.request.HTTPHandler):
    """Makes requests at the Unix socket of this path."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        connection: Any = functools.partial(_UnixConnection, self._path)
        return self.do_open(connection, request)


def opener(address: str) -> urllib.request.OpenerDirector:
    """Makes requests at an admin address: by no HTTP proxy, though one may be configured, and without following a
    redirection, which the token would follow too.

    Raises:
        Invalid: the variables name certificates that cannot be used.
    """
    # Not by `build_opener`: from Python 3.12 on it loads the system's authorities, 20 ms, also where nothing is TLS.
    director = urllib.request.OpenerDirector()
    for handler in (
        _carrier(address),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        director.add_handler(handler)
    return director


def _carrier(address: str) -> urllib.request.BaseHandler:
    if address.startswith(config.UNIX):
        return _UnixHandler(address.removeprefix(config.UNIX))
    if address.startswith(HTTPS):
        return urllib.request.HTTPSHandler(context=_trusting())
    return urllib.request.HTTPHandler()


def _trusting() -> ssl.SSLContext:
    """Trusts the certificates in the file that `ONELANE_ADMIN_CA` names, else those of the system; shows a certificate
    where `ONELANE_ADMIN_CERT` and `ONELANE_ADMIN_KEY` name one."""
    ca, cert = os.environ.get(CA_VARIABLE), os.environ.get(CERT_VARIABLE)
    try:
        context = ssl.create_default_context(cafile=ca)
        # The server's own certificate may be the one to trust.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if cert:
            context.load_cert_chain(cert, os.environ.get(KEY_VARIABLE))
    except OSError as error:
        reason = f"{CA_VARIABLE}={ca} {CERT_VARIABLE}={cert}: {error.strerror or error}"
        raise Invalid(f"the certificates for the admin address cannot be used: {reason}") from error
    return context


def _answer(address: str, request: urllib.request.Request, timeout_s: float) -> dict[str, Any]:
    with _reading(address, request, timeout_s) as response:
        return _document(address, json.load(response))


@contextmanager
def _reading(address: str, request: urllib.request.Request, timeout_s: float) -> Iterator[Any]:
    """The response to a request; whatever goes wrong while it is read is an error that says what to do."""
    try:
        with opener(address).open(request, timeout=timeout_s) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise _refusal(address, error) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _failure(address, error, timeout_s) from error


def _document(address: str, body: Any) -> dict[str, Any]:
    document = printable(body)
    if not isinstance(document, dict):
        raise ForeignServer(f"{address} answers, but not as the admin address of `onelane up` does; {HINT}")
    return document


def _refusal(address: str, error: urllib.error.HTTPError) -> Exception:
    text = printable(_fault_in(error.read().decode("utf-8", "replace").strip()))
    if error.code == 404:
        return NotThere(f"{address}: {text}")
    if error.code in (400, 401, 403, 409):
        return Transient(f"{address} refuses: {text}")
    return ForeignServer(f"{address} answers with status {error.code}: {text[:200]}; {HINT}")


def _fault_in(text: str) -> str:
    """The `fault` of a JSON object; else the text as it is."""
    try:
        document = json.loads(text)
    except ValueError:
        return text
    return str(document["fault"]) if isinstance(document, dict) and "fault" in document else text


def _failure(address: str, error: Exception, timeout_s: float) -> Exception:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLError):
        reason = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else cause.reason
        return Unreachable(f"{address}: no TLS connection ({reason}); {CA_VARIABLE} names the certificates to trust")
    if isinstance(cause, ConnectionRefusedError | FileNotFoundError):
        return Unreachable(f"nothing listens at {address}; is `onelane up` running? ({HINT})")
    if isinstance(cause, TimeoutError):
        return NoAnswer(f"{address} has not answered within {timeout_s:g} s; {HINT}")
    if isinstance(cause, socket.gaierror):
        return Unreachable(f"{address}: the host is not known ({cause.strerror}); {HINT}")
    if isinstance(cause, OSError) and not isinstance(cause, ConnectionError):
        return Unreachable(f"{address} cannot be reached: {cause.strerror or cause}; {HINT}")
    return ForeignServer(f"{address} answers, but not as the admin address of `onelane up` does; {HINT}")


def printable(document: Any) -> Any:
    """A JSON document without control characters: clients choose some of its names, attributes and keys, and services
    the texts of exceptions."""
    if isinstance(document, str):
        return replaced(document)
    if isinstance(document, list):
        return [printable(element) for element in document]
    if isinstance(document, dict):
        return {printable(name): printable(member) for name, member in document.items()}
    return document
