"""The stock client of Connect and gRPC-Web in Chromium, on a page of another origin: over HTTP/1.1, and over HTTP/2."""

import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from playwright.async_api import Page, async_playwright

from tests import tools
from tests.echo.v1 import echo_pb2
from tests.running_app import ECHO, RunningApp, running
from tests.servers import Files

pytestmark = pytest.mark.slow
ORIGIN = "http://localhost:4321"
APPS = f"""
[apps.plain]
{ECHO}
listen = "127.0.0.1:0"
shards = 1
[apps.plain.cors]
origins = ["{ORIGIN}"]
[apps.secure]
{ECHO}
listen = "127.0.0.1:0"
shards = 1
[apps.secure.cors]
origins = ["{ORIGIN}"]
[apps.secure.tls]
"""
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-features=LocalNetworkAccessChecks"]
"""A page of no address may not call this machine otherwise."""
SCHEMES = {"plain": "http", "secure": "https"}
VERSIONS = {"plain": "http/1.1", "secure": "h2"}


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("chromium")
    files = Files(folder)
    pair = f'cert = "{files.path("server.pem")}"\nkey = "{files.path("server.key")}"\n'
    with running(folder, APPS + pair) as apps:
        yield apps


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, bundled for a page."""
    bundle = tmp_path_factory.mktemp("bundle") / "client.js"
    subprocess.run([*tools.browser_bundler(), str(bundle)], check=True, timeout=60)
    return bundle


@pytest.fixture(scope="module")
async def page(script: Path) -> AsyncIterator[Page]:
    """An empty page of `ORIGIN`, which has the client."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=tools.chromium(), args=ARGUMENTS)
        context = await browser.new_context(ignore_https_errors=True)
        page = await context.new_page()
        await page.route(f"{ORIGIN}/", lambda route: route.fulfill(body="<p>", content_type="text/html"))
        await page.goto(f"{ORIGIN}/")
        await page.add_script_tag(path=script)
        yield page
        await browser.close()


def descriptors() -> str:
    """The file of Echo and those that it imports, in base64."""
    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        for imported in file.dependencies:
            add(imported)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            # Which protoc leaves out of generated code.
            for field in message.field:
                field.json_name = file.message_types_by_name[message.name].fields_by_name[field.name].json_name
        files.setdefault(file.name, proto)

    add(echo_pb2.DESCRIPTOR)
    return b64encode(descriptor_pb2.FileDescriptorSet(file=files.values()).SerializeToString()).decode()


@pytest.mark.parametrize("app", ["plain", "secure"])
@pytest.mark.parametrize(("protocol", "binary"), [("connect", False), ("connect", True), ("grpc-web", True)])
async def test_a_page_of_another_origin_calls(
    apps: RunningApp, page: Page, app: str, protocol: str, *, binary: bool
) -> None:
    base = f"{SCHEMES[app]}://{apps.listen[app]}"
    asked = {"baseUrl": base, "protocol": protocol, "useBinaryFormat": binary, "descriptors": descriptors()}
    seen = await page.evaluate("asked => callEcho(asked)", asked)
    assert (seen["text"], seen["shard"], seen["texts"]) == ("hi", f"{app}-0", ["x", "x", "x"])
    assert seen["rich"]["code"] != "OK"
    assert any(kind.startswith("google.rpc.") for kind in seen["rich"]["details"])
    assert seen["late"]["code"] == "DeadlineExceeded"
    spoken = await page.evaluate(
        "base => performance.getEntriesByType('resource').filter(e => e.name.startsWith(base)).at(-1).nextHopProtocol",
        base,
    )
    # The browser says so only of an origin that allows it, and says nothing otherwise.
    assert spoken in ("", VERSIONS[app])
