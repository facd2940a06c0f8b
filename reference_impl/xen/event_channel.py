"""Event channels of the guest: who allocated each port, and who is bound at the other end.

A port is *unbound* after its allocation, until a peer in the other domain binds to it. When the peer lets go, the port
is unbound again; it stays allocated until the guest closes it. An event for the guest is a bit in the shared info page.

Operations answer 0 (or the port) or a negative errno, as Xen does; `hypervisor.Hypercalls` makes errors of them.
Source: Xen, public header event_channel.h and common/event_channel.c.
"""

from __future__ import annotations

from typing import Protocol

EINVAL = -22
ENOSPC = -28
PORTS_MAX = 256  # Xen has 4096 for a 64-bit guest; a leak shows itself as well with fewer
PENDING_OFFSET = 2048  # of the pending bits in the shared info page of a 64-bit guest


class Peer(Protocol):
    """The other end of a port: xenstored or a backend."""

    path: str

    def notified(self, agent: str) -> None:
        """`agent` has sent an event to this end."""


class Channel:
    """One port of the guest. `peer` is None while nobody is bound at the other end."""

    __slots__ = ("owner", "peer", "port", "remote_domain")

    def __init__(self, port: int, owner: str, remote_domain: int) -> None:
        self.port = port
        self.owner = owner
        self.remote_domain = remote_domain
        self.peer: Peer | None = None


class EventChannels:
    """All ports of the guest, and their pending bits in `shared_info`."""

    __slots__ = ("channels", "shared_info")

    def __init__(self, shared_info: bytearray | memoryview) -> None:
        self.channels: dict[int, Channel] = {}
        self.shared_info = shared_info

    def allocate(self, owner: str, remote_domain: int) -> int:
        """A new port that `remote_domain` may bind to, the lowest free one; ENOSPC where none is left."""
        channels = self.channels
        port = 1
        while port in channels:
            port += 1
        if port >= PORTS_MAX:
            return ENOSPC
        channels[port] = Channel(port, owner, remote_domain)
        return port

    def close(self, port: int) -> int:
        """Give a port back; a peer that is bound loses its end. EINVAL for a port that is not allocated."""
        if self.channels.pop(port, None) is None:
            return EINVAL
        self.test_and_clear(port)
        return 0

    def send(self, port: int, agent: str) -> int:
        """Notify the peer of a port. EINVAL for a port that is not allocated. Without a peer the event is lost."""
        channel = self.channels.get(port)
        if channel is None:
            return EINVAL
        if channel.peer is not None:
            channel.peer.notified(agent)
        return 0

    # ---- the peer's end -------------------------------------------------------------------------------------------

    def bind(self, port: int, peer: Peer, domain: int = 0) -> bool:
        """Bind `peer` in `domain` to a port of the guest; False where the port is not there, not for it, or taken."""
        channel = self.channels.get(port)
        if channel is None or channel.peer is not None or channel.remote_domain != domain:
            return False
        channel.peer = peer
        return True

    def unbind(self, port: int, peer: Peer) -> None:
        """Let go of a port, if `peer` is still the one that is bound to it."""
        channel = self.channels.get(port)
        if channel is not None and channel.peer is peer:
            channel.peer = None

    def raise_event(self, port: int, peer: Peer) -> None:
        """Set the pending bit of a port that `peer` is bound to."""
        channel = self.channels.get(port)
        if channel is not None and channel.peer is peer:
            self.shared_info[PENDING_OFFSET + (port >> 3)] |= 1 << (port & 7)

    # ---- the guest's view -----------------------------------------------------------------------------------------

    def test_and_clear(self, port: int) -> bool:
        """Whether an event was pending at a port; it no longer is."""
        offset, bit = PENDING_OFFSET + (port >> 3), 1 << (port & 7)
        if self.shared_info[offset] & bit:
            self.shared_info[offset] &= ~bit
            return True
        return False

    def bound(self) -> list[tuple[Channel, Peer]]:
        """The ports that have a peer, with that peer, in the order of their allocation."""
        return [(channel, channel.peer) for channel in self.channels.values() if channel.peer is not None]
