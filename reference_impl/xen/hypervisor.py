"""The hypervisor as the guest sees it: its physmap, HVM parameters, and the hypercalls.

`Hypervisor` is the state, `Hypercalls` the way in: one object for each agent, one method for each hypercall, each
recorded (`Kind.HYPERCALL`) and able to fail when a scenario says so. A refusal is a `HypercallError`.

Source: Xen, public headers memory.h, event_channel.h, hvm/params.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from reference_impl.failures import Failures
from reference_impl.trace import Kind, Trace
from reference_impl.xen.event_channel import EventChannels
from reference_impl.xen.grant_table import FRAMES, PAGE_SIZE, GrantTable

if TYPE_CHECKING:
    from reference_impl.xen.platform import XenPlatform

F = TypeVar("F", bound=Callable[..., Any])

EINVAL = -22
ENOENT = -2

STORE_PFN, STORE_EVTCHN = 1, 2  # indices of HVM parameters
PARAMETERS_MAX = 39

SHARED_INFO, GRANT_TABLE = 0, 1  # spaces of add_to_physmap

STORE_GFN = 0xFEFFC  # where Xen's domain builder puts the store page of an HVM guest

_HYPERCALL = int(Kind.HYPERCALL)


class HypercallError(Exception):
    """The hypervisor refuses. `errno` is negative, as Xen answers it."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"errno {errno}")
        self.errno = errno


class Hypervisor:
    """What the hypervisor knows of the guest.

    pages       the guest's memory by page number, made when somebody looks
    parameters  HVM parameters
    physmap     what the guest has placed: page number → (space, index)
    """

    __slots__ = ("event_channels", "grant_table", "pages", "parameters", "physmap", "shared_info")

    def __init__(self, trace: Trace) -> None:
        self.shared_info = bytearray(PAGE_SIZE)
        self.event_channels = EventChannels(self.shared_info)
        self.grant_table = GrantTable(trace)
        self.pages: dict[int, bytearray] = {STORE_GFN: bytearray(PAGE_SIZE)}
        self.parameters: dict[int, int] = {STORE_PFN: STORE_GFN}
        self.physmap: dict[int, tuple[int, int]] = {}

    def memory_page(self, gfn: int) -> bytearray:
        """What the guest sees at the page number `gfn`."""
        page = self.pages.get(gfn)
        if page is None:
            page = self.pages[gfn] = bytearray(PAGE_SIZE)
        return page

    def add_to_physmap(self, agent: str, space: int, index: int, gfn: int) -> int:
        """Place a page of the hypervisor at `gfn`. It leaves the place that it had; what was at `gfn` goes.

        EINVAL for an unknown space, then for an index outside of it.
        """
        if space == SHARED_INFO and index == 0:
            page = self.shared_info
        elif space == GRANT_TABLE and 0 <= index < FRAMES:
            page = self.grant_table.frames[index]
        else:
            return EINVAL
        what = (space, index)
        if self.physmap.get(gfn) == what:
            return 0
        earlier = [place for place, placed in self.physmap.items() if placed == what]
        if gfn in self.physmap:
            self.remove_from_physmap(agent, gfn)
        self.physmap[gfn] = what
        self.pages[gfn] = page
        if space == GRANT_TABLE:
            self.grant_table.place(agent, index, gfn)
        for place in earlier:
            del self.physmap[place]
            del self.pages[place]
        return 0

    def remove_from_physmap(self, agent: str, gfn: int) -> int:
        """Take a page of the hypervisor away from `gfn`. ENOENT where there is none."""
        placed = self.physmap.pop(gfn, None)
        if placed is None:
            return ENOENT
        del self.pages[gfn]
        if placed[0] == GRANT_TABLE:
            self.grant_table.displace(agent, placed[1])
        return 0

    def shared_info_placed(self) -> bool:
        """Whether the guest can see the shared info page."""
        return (SHARED_INFO, 0) in self.physmap.values()


def hypercall(name: str) -> Callable[[F], F]:
    """Make a method of `Hypercalls` the hypercall `name`.

    The method changes state and returns its value, or raises HypercallError. Around it: the record, and an armed
    failure. Arguments are passed by position, so that they can be recorded as they are.
    """

    def decorate(function: F) -> F:
        def call(self: Hypercalls, *arguments: Any) -> Any:
            trace = self.trace
            records = trace.records
            index = len(records)
            agent = self.agent
            tpl, depth, phase = trace.tpl, trace.depth, trace.phase
            records.append((_HYPERCALL, agent, tpl, depth, phase, name, arguments, None, None))
            trace.depth = depth + 1
            try:
                if self.failures.armed:
                    errno = self.failures.fires(name, agent)
                    if errno is not None:
                        raise HypercallError(errno)
                value = function(self, *arguments)
            except HypercallError as error:
                records[index] = (_HYPERCALL, agent, tpl, depth, phase, name, arguments, error.errno, None)
                raise
            finally:
                trace.depth = depth
            records[index] = (_HYPERCALL, agent, tpl, depth, phase, name, arguments, 0, value)
            return value

        call.__name__ = function.__name__
        call.__qualname__ = function.__qualname__
        call.__doc__ = function.__doc__
        call.__module__ = function.__module__
        call.__wrapped__ = function  # type: ignore[attr-defined]
        return cast(F, call)

    return decorate


class Hypercalls:
    """The hypercalls of one agent. Each may raise HypercallError."""

    __slots__ = ("agent", "failures", "hypervisor", "trace")

    def __init__(self, platform: XenPlatform, agent: str) -> None:
        self.agent = agent
        self.trace: Trace = platform.trace
        self.failures: Failures = platform.failures
        self.hypervisor: Hypervisor = platform.hypervisor

    @hypercall("HVMOP_get_param")
    def hvm_get_param(self, index: int) -> int:
        """The value of an HVM parameter, 0 where it was never set. EINVAL for an unknown one."""
        if not 0 <= index < PARAMETERS_MAX:
            raise HypercallError(EINVAL)
        return self.hypervisor.parameters.get(index, 0)

    @hypercall("EVTCHNOP_alloc_unbound")
    def event_channel_alloc_unbound(self, remote_domain: int) -> int:
        """A new port that `remote_domain` may bind to. ENOSPC where there is none."""
        port = self.hypervisor.event_channels.allocate(self.agent, remote_domain)
        if port < 0:
            raise HypercallError(port)
        return port

    @hypercall("EVTCHNOP_send")
    def event_channel_send(self, port: int) -> None:
        """Notify the other end of a port; what it does at once happens inside. EINVAL for a port not allocated."""
        errno = self.hypervisor.event_channels.send(port, self.agent)
        if errno:
            raise HypercallError(errno)

    @hypercall("EVTCHNOP_close")
    def event_channel_close(self, port: int) -> None:
        """Give a port back. EINVAL for a port that is not allocated."""
        errno = self.hypervisor.event_channels.close(port)
        if errno:
            raise HypercallError(errno)

    @hypercall("XENMEM_add_to_physmap")
    def add_to_physmap(self, space: int, index: int, gfn: int) -> None:
        """Place a page of the hypervisor at `gfn`. EINVAL for an unknown page."""
        errno = self.hypervisor.add_to_physmap(self.agent, space, index, gfn)
        if errno:
            raise HypercallError(errno)

    @hypercall("XENMEM_remove_from_physmap")
    def remove_from_physmap(self, gfn: int) -> None:
        """Take a page of the hypervisor away from `gfn`. ENOENT where there is none."""
        errno = self.hypervisor.remove_from_physmap(self.agent, gfn)
        if errno:
            raise HypercallError(errno)

    def pending(self, port: int) -> bool:
        """Whether an event was pending at `port`; it no longer is.

        False while the shared info page is not in the physmap. An access to memory, not a hypercall: no record.
        """
        hypervisor = self.hypervisor
        return hypervisor.shared_info_placed() and hypervisor.event_channels.test_and_clear(port)
