"""Faults of what is outside of the guest: a peer that does not let go of what it was lent.

A driver cannot know: it waits for Closed, and Closed is what it sees. It can only leave nothing to the peer.
"""

from __future__ import annotations

from reference_impl.faulty.fault import Fault
from reference_impl.xen.backend import Backend
from reference_impl.xen.platform import XenPlatform
from reference_impl.xenbus.front_end import FrontEnd


class _KeepsThePort(Backend):
    __slots__ = ()

    def _disconnect(self) -> None:
        self._port = -1
        super()._disconnect()


class _KeepsThePortPlatform(XenPlatform):
    __slots__ = ()
    backend = _KeepsThePort


class _LeavesThePort(FrontEnd):
    def forget(self) -> None:
        self._port = 0  # the peer lets go of it
        super().forget()


class _KeepsThePages(Backend):
    __slots__ = ()

    def _disconnect(self) -> None:
        self._references.clear()
        super()._disconnect()


class _KeepsThePagesPlatform(XenPlatform):
    __slots__ = ()
    backend = _KeepsThePages


FAULTS: dict[str, Fault] = {
    "peer-keeps-the-port": Fault(
        "a peer goes to Closed and stays bound to the event channel, which the device's notification leaves to it",
        "",
        ("hand-over/event-channel-left",),
        platform=_KeepsThePortPlatform,
        front_end=_LeavesThePort,
    ),
    "peer-keeps-the-pages": Fault(
        "a peer goes to Closed and keeps the pages that it has mapped",
        "",
        ("hand-over/grant-left",),
        platform=_KeepsThePagesPlatform,
    ),
}
