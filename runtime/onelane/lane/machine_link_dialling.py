"""How shards of other machines are dialled: by TCP, with mutual TLS, and only the machine that is meant.

Promises: no call is written to a peer whose certificate is not that of the machine; a machine that has become silent is
given up.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial

from onelane.client.options import Dialling
from onelane.core.machine_links import LinkAddress, link_address_of
from onelane.core.placement import Member
from onelane.lane.forwarder import SIBLING_DIALLING
from onelane.server.machine_link_tls import MachineLinkTls

LINK_DIALLING = replace(
    SIBLING_DIALLING,
    # A machine that is cut off refuses nothing: packets are lost without a word.
    connect_s=5.0,
    keepalive_s=5.0,
    ping_timeout_s=5.0,
    own_user_only=False,
    reads_to_end=False,
    # Its frames have deadlines by the sender's clock.
    offers_link=False,
)
ASK_LISTENING_S = 1.0


class MachineLinkDialling:
    """See `onelane.lane.forwarder.Reach`."""

    def __init__(self, links: MachineLinkTls) -> None:
        self._links = links

    def __call__(self, member: Member) -> tuple[str, Dialling]:
        address = link_address_of(member.socket)
        if self._links.client is None:
            return address.target, LINK_DIALLING
        check_peer = partial(self._check, address)
        return address.target, replace(LINK_DIALLING, tls=self._links.client, check_peer=check_peer)

    def _check(self, address: LinkAddress, transport: asyncio.BaseTransport) -> None:
        """
        Raises:
            PermissionError: another machine is there.
        """
        secured = transport.get_extra_info("ssl_object")
        if fault := self._links.fault_of(secured, address.machine):
            raise PermissionError(f"another machine is at {address.target}: {fault}")


async def is_listening(member: Member) -> bool:
    """Whether a process listens where the life of another machine is reached."""
    address = link_address_of(member.socket)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(ASK_LISTENING_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
        writer.transport.abort()
        return True
    return False
