"""Failures that a scenario arms: which call refuses, at which time, with which status; and every call that can be armed.

`CALLS` names all boot services, hypercalls, xenstore requests and PCI accesses with the refusals that each may answer.
The scenario language, `ebsfuzz list services` and the byte codec are made from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reference_impl.trace import Kind, Trace
from reference_impl.uefi.status import EfiStatus

_S = EfiStatus

_Calls = dict[str, tuple[Any, ...]]

BOOT_SERVICES: _Calls = {
    # UEFI 2.10 §7, "Status Codes Returned". Only refusals that need no particular argument stand here
    # (a caller cannot get EFI_ACCESS_DENIED from AllocatePool).
    "AllocatePool": (_S.OUT_OF_RESOURCES,),
    "AllocatePages": (_S.OUT_OF_RESOURCES, _S.NOT_FOUND),
    "FreePool": (_S.INVALID_PARAMETER,),
    "FreePages": (_S.NOT_FOUND, _S.INVALID_PARAMETER),
    "GetMemoryMap": (_S.BUFFER_TOO_SMALL,),
    "CreateEvent": (_S.OUT_OF_RESOURCES,),
    "CreateEventEx": (_S.OUT_OF_RESOURCES,),
    "CloseEvent": (_S.INVALID_PARAMETER,),
    "SignalEvent": (_S.INVALID_PARAMETER,),
    "WaitForEvent": (_S.UNSUPPORTED, _S.INVALID_PARAMETER),
    "CheckEvent": (_S.NOT_READY, _S.INVALID_PARAMETER),
    "SetTimer": (_S.INVALID_PARAMETER,),
    "InstallProtocolInterface": (_S.OUT_OF_RESOURCES, _S.INVALID_PARAMETER),
    "InstallMultipleProtocolInterfaces": (_S.OUT_OF_RESOURCES, _S.ALREADY_STARTED, _S.INVALID_PARAMETER),
    "UninstallProtocolInterface": (_S.ACCESS_DENIED, _S.NOT_FOUND),
    "UninstallMultipleProtocolInterfaces": (_S.INVALID_PARAMETER,),
    "ReinstallProtocolInterface": (_S.ACCESS_DENIED, _S.NOT_FOUND),
    "RegisterProtocolNotify": (_S.OUT_OF_RESOURCES,),
    "OpenProtocol": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED, _S.ACCESS_DENIED, _S.ALREADY_STARTED),
    "CloseProtocol": (_S.NOT_FOUND, _S.INVALID_PARAMETER),
    "OpenProtocolInformation": (_S.OUT_OF_RESOURCES, _S.NOT_FOUND),
    "HandleProtocol": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "LocateProtocol": (_S.NOT_FOUND,),
    "LocateHandle": (_S.NOT_FOUND, _S.BUFFER_TOO_SMALL),
    "LocateHandleBuffer": (_S.OUT_OF_RESOURCES, _S.NOT_FOUND),
    "ProtocolsPerHandle": (_S.OUT_OF_RESOURCES,),
    "ConnectController": (_S.NOT_FOUND, _S.OUT_OF_RESOURCES),
    "DisconnectController": (_S.OUT_OF_RESOURCES, _S.DEVICE_ERROR),
    "Stall": (),
    "RaiseTPL": (),
    "RestoreTPL": (),
    "LoadImage": (_S.OUT_OF_RESOURCES,),
    "StartImage": (_S.INVALID_PARAMETER,),
    "UnloadImage": (_S.UNSUPPORTED,),
    "InstallConfigurationTable": (_S.OUT_OF_RESOURCES,),
    "ExitBootServices": (_S.INVALID_PARAMETER,),
}

HYPERCALLS: _Calls = {  # negative errno as Xen answers it
    "HVMOP_get_param": (-22, -3),
    "EVTCHNOP_alloc_unbound": (-28, -22),
    "EVTCHNOP_send": (-22,),
    "EVTCHNOP_close": (-22,),
    "XENMEM_add_to_physmap": (-22, -12),
    "XENMEM_remove_from_physmap": (-22, -2),
}

XENSTORE_REQUESTS: _Calls = {  # error names of the xenstore protocol
    "XS_DIRECTORY": ("ENOENT", "EACCES", "EIO"),
    "XS_READ": ("ENOENT", "EACCES", "EIO"),
    "XS_WRITE": ("EACCES", "ENOSPC", "EIO"),
    "XS_RM": ("ENOENT", "EACCES"),
    "XS_WATCH": ("EEXIST", "E2BIG", "EACCES"),
    "XS_UNWATCH": ("ENOENT",),
    "XS_TRANSACTION_START": ("EBUSY", "ENOSPC"),
    "XS_TRANSACTION_END": ("EAGAIN", "EIO"),
}

PCI_ACCESSES: _Calls = {  # EFI_PCI_IO_PROTOCOL: UEFI 2.10 §14.4
    "PciIo.PollMem": (_S.TIMEOUT, _S.OUT_OF_RESOURCES),
    "PciIo.PollIo": (_S.TIMEOUT, _S.OUT_OF_RESOURCES),
    "PciIo.Mem.Read": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "PciIo.Mem.Write": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "PciIo.Io.Read": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "PciIo.Io.Write": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "PciIo.Pci.Read": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "PciIo.Pci.Write": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "PciIo.CopyMem": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "PciIo.Map": (_S.OUT_OF_RESOURCES, _S.DEVICE_ERROR),
    "PciIo.Unmap": (_S.DEVICE_ERROR,),
    "PciIo.AllocateBuffer": (_S.OUT_OF_RESOURCES,),
    "PciIo.FreeBuffer": (_S.INVALID_PARAMETER,),
    "PciIo.Flush": (_S.DEVICE_ERROR,),
    "PciIo.GetLocation": (),
    "PciIo.Attributes": (_S.UNSUPPORTED,),
    "PciIo.GetBarAttributes": (_S.OUT_OF_RESOURCES, _S.UNSUPPORTED),
    "PciIo.SetBarAttributes": (_S.UNSUPPORTED, _S.OUT_OF_RESOURCES),
}

GUEST_SERVICES: _Calls = {  # what only real drivers ask for: UEFI 2.10 §7.3.8 and §8
    "LocateDevicePath": (_S.NOT_FOUND,),
    "GetTime": (_S.DEVICE_ERROR,),
    "GetVariable": (_S.NOT_FOUND, _S.DEVICE_ERROR),
    "GetNextVariableName": (_S.DEVICE_ERROR,),
    "SetVariable": (_S.OUT_OF_RESOURCES, _S.WRITE_PROTECTED, _S.DEVICE_ERROR),
    "QueryVariableInfo": (_S.UNSUPPORTED,),
    "GetNextHighMonotonicCount": (_S.DEVICE_ERROR,),
    "ResetSystem": (),
}

CALLS: _Calls = {**BOOT_SERVICES, **HYPERCALLS, **XENSTORE_REQUESTS, **PCI_ACCESSES, **GUEST_SERVICES}
"""All of them. New ones come last: a failure's place in the list is its byte in a scenario."""

ALLOCATIONS = frozenset({"AllocatePool", "AllocatePages"})

CLEANUP = frozenset(
    {
        *(
            "FreePool",
            "FreePages",
            "CloseEvent",
            "SignalEvent",
            "SetTimer",
            "CheckEvent",
            "WaitForEvent",
            "CloseProtocol",
        ),
        *("UninstallProtocolInterface", "UninstallMultipleProtocolInterfaces", "DisconnectController", "UnloadImage"),
        *("EVTCHNOP_send", "EVTCHNOP_close", "XENMEM_remove_from_physmap", "XS_RM", "XS_UNWATCH"),
        *("PciIo.Unmap", "PciIo.FreeBuffer", "PciIo.Flush"),
    }
)
"""Calls that give back or finish. In the conforming environment they do not fail (a working event channel can be notified)."""


class Failures:
    """The armed failures of one world.

    `may_fail(call)` is the environment's word on whether a failure may fire at this moment; calls that may not fail are
    not counted either, so "the third AllocatePool" is the third that could have failed. `armed` is empty nearly always;
    every call looks at it first.
    """

    __slots__ = ("_trace", "armed", "may_fail")

    def __init__(self, trace: Trace, may_fail: Callable[[str], bool]) -> None:
        self.armed: dict[str, list[list[Any]]] = {}
        self._trace = trace
        self.may_fail = may_fail

    def arm(self, call: str, nth: int, status: Any) -> None:
        """Let the `nth` call (1 is the next) of `call` from now on answer `status` without doing anything."""
        self.armed.setdefault(call, []).append([nth, status])

    def fires(self, call: str, agent: str) -> Any:
        """Count one call; the status that it must answer, or None. Callers ask only while something is armed."""
        waiting = self.armed.get(call)
        if waiting is None or not self.may_fail(call):
            return None
        answer = None
        for armed in waiting:
            armed[0] -= 1
            if armed[0] == 0 and answer is None:
                answer = armed[1]
        waiting[:] = [armed for armed in waiting if armed[0] > 0]
        if not waiting:
            del self.armed[call]
        if answer is not None:
            self._trace.add(Kind.INJECTED, agent, call, (), answer)
        return answer
