"""How guest code calls and is called on X64: the Microsoft convention that UEFI prescribes (UEFI 2.10 §2.3.4.2).

Arguments are in RCX, RDX, R8, R9 and then on the stack, above 32 bytes of shadow space; the answer is in RAX.

Python touches no register. Both ways go through a few bytes of guest code and the mailbox:

* `write_trap` writes a function that puts RCX, RDX, R8, R9, RSP and its return address into the mailbox, traps, and
  returns the answer that the handler has left there.
* The *gate* loads arguments from the mailbox, calls a function, leaves its answer, and stops. It keeps the stack pointer
  by itself, so a call from inside of a trap's handler finds everything as it was.

The mailbox of a trap is read before any other guest code runs, and its answer is written last: so one is enough for
calls that nest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from guest.machine import ANSWER, CODE, EXECUTE, MAILBOX, PAGE, READ, SCRATCH, Machine, Trap

CALL_ARGUMENTS = 8
STACK_ARGUMENTS = (
    0x28  # from the stack pointer at a function's first instruction: behind return address and shadow space
)

_CALL = MAILBOX + 64  # arguments, and behind them the function
_CALL_ANSWER = _CALL + 72
_I32 = struct.Struct("<i")
_CALL_WORDS = struct.Struct("<9Q")
_TRAP_SIZE = 64
_TRAP_BEGIN = b"\x49\xba" + struct.pack("<Q", MAILBOX)  # mov r10, MAILBOX; then arguments are put there
_TRAP_MIDDLE = (
    b"\x49\x89\x62\x20"  # mov [r10+0x20], rsp
    b"\x48\x8b\x04\x24"  # mov rax, [rsp]
    b"\x49\x89\x42\x28"  # mov [r10+0x28], rax
    b"\xba"  # mov edx, the port
)
_TRAP_END = (
    b"\xed"  # in eax, dx
    b"\x48\xa1" + struct.pack("<Q", ANSWER) + b"\xc3"  # mov rax, [ANSWER]; ret
)
_CODE_PAGES = 8


class CallingConvention:
    """Traps and calls of one machine. Its code is at the beginning of the machine's code."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.map(CODE, _CODE_PAGES * PAGE, READ | EXECUTE)
        self._next = CODE
        self._scratch = SCRATCH
        gate = (
            b"\x55"  # push rbp
            b"\x48\x89\xe5"  # mov rbp, rsp
            b"\x48\x83\xe4\xf0"  # and rsp, -16
            b"\x48\x83\xec\x40"  # sub rsp, 0x40
            + b"\x49\xba"  # mov r10, _CALL
            + struct.pack("<Q", _CALL)
            + b"\x49\x8b\x42\x20\x48\x89\x44\x24\x20"  # mov rax, [r10+0x20]; mov [rsp+0x20], rax
            b"\x49\x8b\x42\x28\x48\x89\x44\x24\x28"
            b"\x49\x8b\x42\x30\x48\x89\x44\x24\x30"
            b"\x49\x8b\x42\x38\x48\x89\x44\x24\x38"
            b"\x49\x8b\x0a"  # mov rcx, [r10]
            b"\x49\x8b\x52\x08"  # mov rdx, [r10+8]
            b"\x4d\x8b\x42\x10"  # mov r8, [r10+0x10]
            b"\x4d\x8b\x4a\x18"  # mov r9, [r10+0x18]
            b"\x41\xff\x52\x40"  # call [r10+0x40]
            + b"\x48\xa3"  # mov [_CALL_ANSWER], rax
            + struct.pack("<Q", _CALL_ANSWER)
            + b"\x48\x89\xec"  # mov rsp, rbp
            b"\x5d"  # pop rbp
        )
        self._gate = self.write(gate + b"\xf4")  # hlt is never executed
        machine.stop_address = self._gate + len(gate)

    def call(self, function: int, *arguments: int) -> int:
        """Call the guest's `function` and give its answer, 64 bits. Raises what `Machine.run` raises."""
        machine = self.machine
        words = (*arguments, *(0,) * (CALL_ARGUMENTS - len(arguments)), function)
        machine.write(_CALL, _CALL_WORDS.pack(*words))
        machine.run(self._gate)
        return machine.u64(_CALL_ANSWER)

    @contextmanager
    def scratch(self, data: bytes) -> Iterator[int]:
        """Memory that the guest sees for the time of a call, with `data` in it; its address."""
        address = self._scratch
        end = address + (len(data) + 23 & -16)
        if end > MAILBOX:
            raise self.machine.fault("read", "more data than a call can hand over", address)
        self._scratch = end
        self.machine.write(address, data)
        try:
            yield address
        finally:
            self._scratch = address

    def write_trap(self, handler: Trap) -> int:
        """Write a function that answers what `handler` answers. Gives its address."""
        return self._trap(
            handler,
            b"\x49\x89\x0a"  # mov [r10], rcx
            b"\x49\x89\x52\x08"  # mov [r10+8], rdx
            b"\x4d\x89\x42\x10"  # mov [r10+0x10], r8
            b"\x4d\x89\x4a\x18",  # mov [r10+0x18], r9
        )

    def write_hypercall(self, handler: Trap) -> int:
        """The same for a hypercall, whose arguments are in RDI, RSI, RDX and R10 (Xen, arch-x86/xen-x86_64.h).

        The fourth is not handed on: no driver has one.
        """
        return self._trap(
            handler,
            b"\x49\x89\x3a"  # mov [r10], rdi
            b"\x49\x89\x72\x08"  # mov [r10+8], rsi
            b"\x49\x89\x52\x10"  # mov [r10+0x10], rdx
            b"\x49\xc7\x42\x18\x00\x00\x00\x00",  # mov qword [r10+0x18], 0
        )

    def write_jumps(self, address: int, targets: Sequence[int], distance: int) -> None:
        """Let a jump to each of `targets` stand at every `distance` bytes from `address`, in code that the guest sees."""
        self.machine.write(address, _jumps(address, tuple(targets), distance))

    def reserve(self, size: int, alignment: int = 16) -> int:
        """Room in the code that the guest sees."""
        self._next = -(-self._next // alignment) * alignment
        address = self._next
        self._next += size
        assert self._next <= CODE + _CODE_PAGES * PAGE, "no room for more code"
        return address

    @property
    def end(self) -> int:
        """Where code of others may begin."""
        return CODE + _CODE_PAGES * PAGE

    def argument(self, sp: int, index: int) -> int:
        """The argument `index` (4 and above) of a function that has trapped with the stack pointer `sp`."""
        return self.machine.u64(sp + STACK_ARGUMENTS + (index - 4) * 8)

    def _trap(self, handler: Trap, spill: bytes) -> int:
        return self.write(_trap_code(spill, self.machine.add_trap(handler)))

    def write(self, code: bytes, otherwise: int = 0) -> int:
        """Write code that the guest may call, with a jump to `otherwise` behind it. Gives its address."""
        address = self.reserve(len(code) + 5)
        self.machine.ram[address : address + len(code)] = code
        if otherwise:
            self.write_jumps(address + len(code), [otherwise], 5)
        return address


# Every world has the same code at the same places, so what was made for one serves all.


@lru_cache(maxsize=1024)
def _trap_code(spill: bytes, port: int) -> bytes:
    return _TRAP_BEGIN + spill + _TRAP_MIDDLE + _I32.pack(port) + _TRAP_END


@lru_cache(maxsize=64)
def _jumps(address: int, targets: tuple[int, ...], distance: int) -> bytes:
    jumps = zip(range(address, address + len(targets) * distance, distance), targets, strict=True)
    return b"".join((b"\xe9" + _I32.pack(target - place - 5)).ljust(distance, b"\0") for place, target in jumps)
