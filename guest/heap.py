"""The guest's heap: what stands behind the addresses that `reference_impl.uefi.memory` hands out.

Which address a driver gets, what it costs, and who owns it is decided there. Here is only the memory itself:

* A new buffer is filled with `NEW`, so that nobody gets by on zeros that only an emulator provides; a freed one with
  `FREED`, a value that is no address when a pointer is taken from it. No address of the pool is used twice, so what was
  freed stays recognisable.
* Behind each buffer stand guard bytes, looked at when the buffer is freed and at the end of the run (`check`): writing
  over them is recorded as `Kind.MEMORY` "overrun".
* Pages are visible to the guest only while they are allocated.
"""

from __future__ import annotations

from guest.machine import PAGE, Machine
from reference_impl.trace import Kind
from reference_impl.uefi.core import Core

NEW, FREED, GUARD = 0xAF, 0xDF, 0xFD
GUARD_SIZE = 24  # less than the distance to the next buffer (`memory.POOL_OVERHEAD`)

_GUARD = bytes([GUARD]) * GUARD_SIZE
_MISUSE = int(Kind.MEMORY)


class Heap:
    """The pool buffers and pages of all guest drivers in one world."""

    __slots__ = ("_core", "_machine", "_sizes")

    def __init__(self, machine: Machine, core: Core) -> None:
        self._machine = machine
        self._core = core
        self._sizes: dict[int, int] = {}

    def pool_allocated(self, address: int, size: int) -> None:
        """A pool buffer was handed out."""
        machine = self._machine
        machine.map_pool(address + size + GUARD_SIZE)
        machine.write(address, bytes([NEW]) * size + _GUARD)
        self._sizes[address] = size

    def pool_freed(self, address: int, agent: str) -> None:
        """`agent` has given a pool buffer back."""
        size = self._sizes.pop(address, None)
        if size is not None:
            self._check(address, size, agent)
            self._machine.write(address, bytes([FREED]) * size)

    def pages_allocated(self, address: int, count: int) -> None:
        """Pages were handed out."""
        self._machine.map(address, count * PAGE)
        self._machine.write(address, bytes([NEW]) * (count * PAGE))

    def pages_freed(self, address: int, count: int) -> None:
        """Pages were given back. What the hypervisor has placed there stays."""
        for page in range(address, address + count * PAGE, PAGE):
            if self._machine.is_mapped(page) and not self._machine.is_placed(page):
                self._machine.unmap(page, PAGE)

    def size_of(self, address: int) -> int:
        """Bytes of the live pool buffer at `address`; 0 where there is none."""
        return self._sizes.get(address, 0)

    def check(self) -> None:
        """Look at the guards of everything that is still allocated."""
        for address, size in self._sizes.items():
            self._check(address, size, self._core.memory.owner_of(address))

    def _check(self, address: int, size: int, agent: str) -> None:
        if self._machine.read(address + size, GUARD_SIZE) != _GUARD:
            self._core.trace.add(_MISUSE, agent, "overrun", (address, self._core.memory.owner_of(address) or agent))
