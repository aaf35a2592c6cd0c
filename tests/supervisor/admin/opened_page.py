"""The admin page in a real Chromium, for its tests."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, Error, Page, async_playwright, expect

from tests import tools
from tests.bounds import BOUND_S
from tests.running_app import RunningApp

BOUND_MS = BOUND_S * 1000
"""Of each thing that is waited for."""
expect.set_options(timeout=BOUND_MS)
Opened = tuple[Page, list[str], list[str]]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
GIVEN_UP = "net::ERR_NETWORK_CHANGED"
"""Chromium gives up all requests that are under way, those to this machine too, when another test makes a network
here."""
INTERRUPTED = "is interrupted by another navigation"
"""By that to its own page about a request that was given up, which comes a moment later."""
CUT_OFF = """() => {
  const cut = (node) => node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).overflowX !== "visible";
  const beyond = (node) => node.getBoundingClientRect().right > 391 && !node.closest(".skip");
  return [...document.querySelectorAll("body *")]
    .filter((node) => node.getClientRects().length && node.tagName !== "INPUT" && (cut(node) || beyond(node)))
    .filter((node) => !node.closest("thead, .uplot, svg"))
    .map((node) => `${node.tagName}.${node.className}: ${node.innerText?.slice(0, 60)}`);
}"""
"""What of the page is cut off, or beyond the right edge of a phone."""
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const part = (c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const found = rgb(getComputedStyle(node).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  let weakest = { ratio: 99 };
  for (const node of document.querySelectorAll("h1, h2, h3, small, td, th, button:not(:disabled), b, span, p, li")) {
    if (!node.innerText?.trim() || node.classList.contains("inside")) continue;
    const [one, other] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < weakest.ratio) weakest = { ratio, what: node.tagName + " " + node.className + " " + node.innerText };
  }
  return weakest;
}"""
"""The text with the weakest contrast, and its ratio."""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=tools.chromium(), args=ARGUMENTS)
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser, cluster: RunningApp, path: str = "/#/app/echo", *, events: str = "", **settings: Any
) -> AsyncIterator[Opened]:
    """The page, the lines of its console, and the URLs that it has requested. events: what it gets in place of the
    stream of its supervisor; that ends at once, so the page is not live."""
    context = await browser.new_context(**settings)
    context.set_default_timeout(BOUND_MS)
    page = await context.new_page()
    console: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: console.append(message.text) if GIVEN_UP not in message.text else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    if events:
        await page.route("**/events", lambda route: route.fulfill(content_type="text/event-stream", body=events))
    try:
        await load(page, f"http://{cluster.admin}{path}", console, asked)
        if not events:
            await expect(page.get_by_role("status").first).to_have_text("live")
        yield page, console, asked
    finally:
        # pytest shows it where the test has failed: as what it waits for never comes, it may be the page's own fault.
        sys.stdout.writelines(f"console of the page: {line}\n" for line in console)
    await context.close()


async def load(page: Page, url: str, *lists: list[str]) -> None:
    """Load the page from there, once more where a part of it was given up. lists: of what has happened on it since it
    was opened; empty then."""
    while not await _loads(page, url):
        # The same address again would be no more than another place on a page that has loaded.
        await blank(page)
        for happened in lists:
            happened.clear()


async def blank(page: Page) -> None:
    """Leave what is loaded, whatever interrupts it."""
    while page.url != "about:blank":
        try:
            await page.goto("about:blank")
        except Error as error:
            if INTERRUPTED not in error.message:
                raise


async def _loads(page: Page, url: str) -> bool:
    """Whether the page shows something; False where a request for a part of it was given up."""
    given_up = asyncio.Event()
    page.on("requestfailed", lambda request: given_up.set() if request.failure == GIVEN_UP else None)
    try:
        await page.goto(url)
    except Error as error:
        if GIVEN_UP not in error.message and INTERRUPTED not in error.message:
            raise
        return False
    shown = asyncio.ensure_future(page.get_by_role("status").first.wait_for())
    without_a_part = asyncio.ensure_future(given_up.wait())
    await asyncio.wait([shown, without_a_part], return_when=asyncio.FIRST_COMPLETED)
    for work in (shown, without_a_part):
        work.cancel()
    ended = await asyncio.gather(shown, without_a_part, return_exceptions=True)
    if isinstance(ended[0], Error):
        raise ended[0]
    return not isinstance(ended[0], BaseException)
