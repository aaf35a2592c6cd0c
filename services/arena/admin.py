"""The admin address of the arena: its documents and commands, read without blocking the players."""

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

READ_S, COMMAND_S = 5.0, 60.0
"""How long a document, and a command, may take."""


class AdminError(Exception):
    """A command was refused or given up; the supervisor's words."""


class Admin:
    """See the module. address: `ip:port`. token: the admin token, where one is needed."""

    def __init__(self, address: str, token: str = "") -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def read(self, path: str) -> str:
        return await asyncio.to_thread(self._send, self._request(path, {}), READ_S)

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(await self.read("/status"))
        return status

    async def command(self, path: str) -> None:
        """Raises AdminError."""
        request = self._request(path, {"X-Onelane": "1"}, method="POST")
        try:
            await asyncio.to_thread(self._send, request, COMMAND_S)
        except urllib.error.HTTPError as error:
            raise AdminError(error.read().decode()) from error

    def _request(self, path: str, headers: dict[str, str], method: str = "GET") -> urllib.request.Request:
        return urllib.request.Request(f"http://{self._address}{path}", method=method, headers=self._headers | headers)

    def _send(self, request: urllib.request.Request, timeout_s: float) -> str:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            text: str = response.read().decode()
            return text
