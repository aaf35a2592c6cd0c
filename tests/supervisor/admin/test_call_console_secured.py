"""The console of the page before apps that ask for a token, serve by TLS, or want a certificate of their clients."""

import asyncio
import re
from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.issuer import AUDIENCE, ISSUER, Issuer
from tests.running_app import ECHO, NEVER_LATE, RunningApp, running
from tests.servers import Files
from tests.supervisor.admin.opened_page import CUT_OFF, opened
from tests.supervisor.admin.test_call_console import post

pytestmark = pytest.mark.slow
UNARY = "echo.v1.Echo/Unary"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def cluster(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("secured_console")
    files = Files(folder)
    common = f'{ECHO}\nlisten = "127.0.0.1:0"\nshards = 1\nreflection = true\n{NEVER_LATE}\n'
    pair = f'cert = "{files.path("server.pem")}"\nkey = "{files.path("server.key")}"\n'
    keys = f'{{ issuer = "{ISSUER}", audience = "{AUDIENCE}", keys_file = "{issuer.write(folder / "keys.json")}" }}'
    methods = f'"{UNARY}" = ["admin"]\n"grpc.reflection.*" = ["admin"]\n"*" = ["reader"]\n'
    toml = f"[apps.tokens]\n{common}[apps.tokens.auth]\njwt = {keys}\n[apps.tokens.auth.methods]\n{methods}"
    toml += f"[apps.secure]\n{common}[apps.secure.tls]\n{pair}"
    toml += f'[apps.mutual]\n{common}[apps.mutual.tls]\n{pair}client_ca = "{files.path("ca.pem")}"\n'
    with running(folder, toml) as cluster:
        yield cluster


async def test_with_a_token_as_metadata_methods_are_listed_and_called(
    browser: Browser, cluster: RunningApp, issuer: Issuer
) -> None:
    size = {"width": 390, "height": 844}
    async with opened(browser, cluster, "/#/console/tokens", viewport=size) as (page, console, _):
        await expect(page.get_by_role("alert")).to_contain_text("UNAUTHENTICATED: this method needs credentials")
        for role, text in (("reader", "PERMISSION_DENIED: not permitted to call grpc.reflection"), ("admin", "")):
            await page.locator("textarea[name=metadata]").fill(f"authorization: Bearer {issuer.token(role)}")
            await page.get_by_role("button", name="Ask again").click()
            await expect(page.get_by_role("alert")).to_have_text([re.compile(text)] if text else [])
        assert await page.evaluate(CUT_OFF) == []
        await page.get_by_label("Method").select_option(UNARY)
        await call_and_expect(page, "OK")
        # A token is read anew for each call: this one is of nobody that may.
        await page.locator("textarea[name=metadata]").fill(f"authorization: Bearer {issuer.token('admin', exp=1)}")
        await call_and_expect(page, "UNAUTHENTICATED")
        assert [line for line in console if "400 (Bad Request)" not in line] == []


async def call_and_expect(page: Page, code: str) -> None:
    await page.locator("input[name=key]").fill("apples")
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(page.get_by_role("region", name="answer")).to_contain_text(code)


async def test_an_app_with_tls_is_called_whatever_names_its_certificate_has(
    browser: Browser, cluster: RunningApp
) -> None:
    async with opened(browser, cluster, "/#/console/secure") as (page, console, _):
        await page.get_by_label("Method").select_option(UNARY)
        await call_and_expect(page, "OK")
        assert console == []


async def test_an_app_that_wants_a_certificate_says_so_and_how_to_call_it(
    browser: Browser, cluster: RunningApp
) -> None:
    async with opened(browser, cluster, "/#/console/mutual") as (page, _, _):
        alert = page.get_by_role("alert")
        await expect(alert).to_contain_text("mutual wants a certificate of its clients (tls.client_ca)")
        await expect(alert).to_contain_text(f"onelane call {cluster.listen['mutual']} --cert FILE --cert-key FILE")
    document = {"method": UNARY, "request": "{}", "deadline_s": 20, "metadata": []}
    assert "wants a certificate" in (await asyncio.to_thread(post, cluster, "mutual/call", document))[1]
