"""The translator of requests of browsers and curl, loaded with the first of them: most shards have none, and what it
imports is 1.5 MiB of each process and 25 ms of its start."""

from collections.abc import Mapping
from typing import Any

from onelane.config import CorsSettings
from onelane.server.methods import Method
from onelane.wire.limits import Limits
from onelane.wire.server import Stream, WebTranslator


class LateWeb:
    """See the module; `wire.server.WebTranslator`. Owned by its listener."""

    def __init__(
        self, methods: Mapping[bytes, Method], *, max_message: int, limits: Limits, cors: CorsSettings
    ) -> None:
        self._methods = methods
        self._max_message = max_message
        self._limits = limits
        self._cors = cors
        self._web: WebTranslator | None = None

    def open(self, request: Stream, http: Any) -> Stream | None:
        if self._web is None:
            self._web = self._load()
        return self._web.open(request, http)

    def _load(self) -> WebTranslator:
        from onelane.server.cors import Cors
        from onelane.server.web import Web

        return Web(self._methods, max_message=self._max_message, limits=self._limits, cors=Cors(self._cors))
