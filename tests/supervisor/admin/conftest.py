"""A browser for the tests of the page."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser

from tests.supervisor.admin.opened_page import chromium


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser
