"""RaiseTPL and RestoreTPL as guest code (UEFI 2.10 §7.1.8 and §7.1.9).

Nine of ten service calls of a driver are these two: every lock is a pair of them. Where such a call changes a number and
nothing else, it never leaves guest code and leaves no record; the TPL that every other record is stamped with is right
all the same. A call goes to the service in Python, and is recorded there, where it means more than that:

* RaiseTPL to a lower TPL than the current one, or above TPL_HIGH_LEVEL;
* RestoreTPL to a higher one, or with notifications waiting that the lower TPL lets run, or where somebody looks at every
  drop of the TPL (a hostile environment);
* any of them after ExitBootServices, when no service is there any more.

The machine says when control passes from guest code to Python and back; the number is carried over there.
"""

from __future__ import annotations

import struct

from guest.calling_convention import CallingConvention
from guest.machine import MAILBOX
from reference_impl.trace import Phase, Trace
from reference_impl.uefi.definitions import TPL_HIGH_LEVEL
from reference_impl.uefi.events import Events

_CELLS = MAILBOX + 0x100
_ENTERING = struct.Struct(
    "<3Q"
)  # TPL, a bit for each TPL at which notifications wait, highest TPL to be raised to here
_TPL = struct.Struct("<Q")
_COUNT = _CELLS + 24
_ALL_TPLS = (1 << 64) - 1
_RUNTIME = int(Phase.RUNTIME)


class TaskPriority:
    """The TPL services of one world.

    raise_tpl, restore_tpl  addresses of the services, for the table
    """

    __slots__ = ("_events", "_machine", "_trace", "raise_tpl", "restore_tpl")

    def __init__(
        self, convention: CallingConvention, trace: Trace, events: Events, raise_trap: int, restore_trap: int
    ) -> None:
        machine = self._machine = convention.machine
        self._trace = trace
        self._events = events
        cells = b"\x49\xba" + struct.pack("<Q", _CELLS)  # mov r10, cells
        done = (
            b"\x49\x89\x0a"  # mov [r10], rcx
            b"\x49\xff\x42\x18"  # inc qword [r10+24]
            b"\xc3"  # ret
        )
        self.raise_tpl = convention.write(
            cells + b"\x49\x8b\x02"  # mov rax, [r10]
            b"\x48\x39\xc1"  # cmp rcx, rax
            b"\x72\x0e"  # jb trap
            b"\x49\x3b\x4a\x10"  # cmp rcx, [r10+16]
            b"\x77\x08" + done,  # ja trap
            raise_trap,
        )
        self.restore_tpl = convention.write(
            cells + b"\x49\x3b\x0a"  # cmp rcx, [r10]
            b"\x77\x1e"  # ja trap
            b"\x49\x83\x7a\x10\x00"  # cmp qword [r10+16], 0
            b"\x74\x17"  # je trap
            b"\x49\x8b\x42\x08"  # mov rax, [r10+8]
            b"\x48\xd3\xe8"  # shr rax, cl
            b"\x48\xd1\xe8"  # shr rax, 1
            b"\x48\x85\xc0"  # test rax, rax
            b"\x75\x08" + done,  # jnz trap
            restore_trap,
        )
        machine.entered, machine.left = self._entered, self._left

    @property
    def count(self) -> int:
        """How many calls never left guest code."""
        return self._machine.u64(_COUNT)

    def _entered(self) -> None:
        trace = self._trace
        limit = 0 if trace.phase == _RUNTIME else TPL_HIGH_LEVEL
        pending = self._events.pending if self._events.on_drop is None else _ALL_TPLS
        _ENTERING.pack_into(self._machine.ram, _CELLS, trace.tpl, pending, limit)

    def _left(self) -> None:
        (self._trace.tpl,) = _TPL.unpack_from(self._machine.ram, _CELLS)
