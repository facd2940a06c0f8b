"""The machine on which drivers run: an X64 processor (Unicorn), its memory, and the ways in and out.

How it works
* Guest memory belongs to Python: three anonymous mappings stand behind physical memory, the window of pool addresses,
  and the pages that a hypervisor moves about. Unicorn is handed their host addresses, so that both sides look at the
  same bytes and nothing is copied. The mappings are large and cost only the pages that are touched.
* The guest sees nothing but what was mapped for it: code, data, stack, and each allocation of pages for as long as it
  lives. Everything else, page 0 before all, is a `GuestFault`. What Python does for the guest goes through the same
  check (`read`, `write`), so a bad pointer that is passed to a service is a fault of the guest as well.
* Out: a *trap* is a few bytes of guest code (written by `calling_convention`) that put arguments into the mailbox and
  execute `in eax, dx` with a port of its own, the cheapest way out that Unicorn has. Its handler runs inside the hook.
* In: `run` starts the processor at an address until it comes to another. A handler may call `run` again: guest code
  calls services, and services call guest code.
* An exception cannot pass through Unicorn. It is kept, the processor stopped, and it is raised again where `run` was
  called, level by level.
* A loop that calls nothing is seen in two ways. A machine that counts (`counting`) sees every basic block: after each
  `SPIN_BLOCKS` blocks without a trap `spinning` is asked whether anything outside can still change, and a loop that
  waits for nothing is a fault. That costs as much as all else together; so a machine that does not count is only
  watched by the clock of the processor, and whoever runs it repeats the run on one that counts (`NotCountedError`).

This is the only module that knows Unicorn. Making a `Machine` raises ExtraMissing where it is not installed.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from guest import require
from reference_impl.uefi.memory import MEMORY_END, POOL_WINDOW

PAGE = 4096
POOL_SIZE = 1 << 30
POOL_CHUNK = 1 << 20  # of the pool window, mapped at once
PLACED_PAGES = 64  # pages that can be moved about

TRAP_PORTS = 0x5A00  # 256 ports that belong to traps; no platform device of a PC is there
TRAPS_MAX = 256

MAILBOX = 0x1E90_0000
"""Where traps leave six words (four arguments, stack pointer, return address), and behind them the answer."""
ANSWER = MAILBOX + 48
SCRATCH = MAILBOX - 0x1_0000
"""What calls hand over lies between here and the mailbox."""
TABLES = MAILBOX + PAGE
TABLES_SIZE = 0x4_0000
"""Where the firmware's own memory is."""
STACK_END = 0x1F00_0000
STACK_SIZE = 0x10_0000
CODE = STACK_END  # traps and images, up to CODE_END
CODE_END = 0x1F40_0000

_ALWAYS = {SCRATCH: TABLES + TABLES_SIZE - SCRATCH, STACK_END - STACK_SIZE: STACK_SIZE}
"""Memory that the guest sees in every world, besides the first chunk of the pool window: address → size."""

SPIN_BLOCKS = 5_000
SPINS_MAX = 100
WATCH_SECONDS = 3.0

STRAY_PC = 0
"""Where the processor is while it uses a port: Unicorn does not tell."""

READ, WRITE, EXECUTE = 1, 2, 4

_MAILBOX = struct.Struct("<6Q")
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_MASK64 = (1 << 64) - 1
_UNMAPPED, _RAM, _PLACED = 0, 1, 2
_ACCESSES = {
    "READ_UNMAPPED": "read",
    "WRITE_UNMAPPED": "write",
    "FETCH_UNMAPPED": "fetch",
    "READ_PROT": "read",
    "WRITE_PROT": "write",
    "FETCH_PROT": "fetch",
}
_EXCEPTIONS = {
    0: "divide error",
    1: "debug exception",
    3: "breakpoint",
    4: "overflow",
    5: "bound range exceeded",
    6: "invalid opcode",
    7: "device not available",
    13: "general protection",
    14: "page fault",
    16: "floating-point error",
    17: "alignment check",
    19: "SIMD floating-point error",
}

Trap = Callable[[int, int, int, int, int, int], int]
"""What runs for a trap: four arguments, the stack pointer and the return address at its first instruction → answer."""


class GuestFault(BaseException):
    """Guest code did what no processor or memory allows, or turns in a circle for ever. It ends the run.

    kind     "read", "write" or "fetch" of memory that is not there; "exception"; "dead-loop"; "halt"
    address  what was touched; 0 for the other kinds
    detail   the exception in words, "" otherwise
    pc       where the processor was
    sp       its stack pointer
    """

    def __init__(self, kind: str, address: int, pc: int, sp: int, detail: str = "") -> None:
        super().__init__(f"{kind} {address:#x} at {pc:#x} {detail}")
        self.kind = kind
        self.address = address
        self.pc = pc
        self.sp = sp
        self.detail = detail


class NotCountedError(BaseException):
    """The guest did not come back in time on a machine that does not count. The run must be repeated on one that does."""


class Machine:
    """One processor with its memory. `close` gives everything back.

    counting       whether every basic block is counted
    watched        False: whoever makes it sees to its time, where it does not count
    tracing        whether `blocks` is kept
    blocks         addresses of the basic blocks that were translated
    spinning       asked when the guest turns without a trap: whether something outside of it still moves on
    read_port      what guest code reads from a port that is no trap's: (port, bytes) → value
    write_port     takes what it writes: (port, bytes, value)
    entered, left  called before guest code goes on and when it has stopped, for a trap as well
    ram            what is behind physical memory
    """

    def __init__(self, counting: bool = False, *, watched: bool = True, tracing: bool = False) -> None:
        unicorn = require("unicorn")
        x86 = require("unicorn.x86_const")
        self._error_type: type[Exception] = unicorn.UcError
        self._invalid_instruction = unicorn.UC_ERR_INSN_INVALID
        self._accesses = {getattr(unicorn, f"UC_MEM_{name}"): kind for name, kind in _ACCESSES.items()}
        self._pc, self._sp = x86.UC_X86_REG_RIP, x86.UC_X86_REG_RSP
        self.counting = counting
        self.blocks: set[int] = set()
        self.spinning: Callable[[], bool] = lambda: False
        self.read_port: Callable[[int, int], int] = _ones
        self.write_port: Callable[[int, int, int], None] = _drop
        self.entered: Callable[[], None] = _nothing
        self.left: Callable[[], None] = _nothing
        self.stop_address = 0
        self._handlers: list[Trap] = []
        self._error: BaseException | None = None
        self._fault: tuple[str, int, str] | None = None
        self._blocks = self._spins = 0
        self._level = 0
        self._pages = bytearray(MEMORY_END >> 12)
        self._placed: dict[int, int] = {}
        self._free_pages = list(range(PLACED_PAGES - 1, -1, -1))
        self._pool_end = POOL_WINDOW
        self.ram = _anonymous(MEMORY_END)
        self._pool = _anonymous(POOL_SIZE)
        self._special = _anonymous(PLACED_PAGES * PAGE)
        self._ram_at = _address_of(self.ram)
        self._pool_at = _address_of(self._pool)
        self._special_at = _address_of(self._special)
        self._uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._hooks = [
            self._uc.hook_add(unicorn.UC_HOOK_INSN, self._on_in, None, 1, 0, x86.UC_X86_INS_IN),
            self._uc.hook_add(unicorn.UC_HOOK_INSN, self._on_out, None, 1, 0, x86.UC_X86_INS_OUT),
            self._uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_bad_access),
            self._uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception),
        ]
        if counting:
            self._hooks.append(self._uc.hook_add(unicorn.UC_HOOK_BLOCK, self._on_block))
        if tracing:
            self._hooks.append(self._uc.hook_add(unicorn.UC_HOOK_EDGE_GENERATED, self._on_translation))
        self._kept: dict[int, int] = {}
        self._code = b""
        self.map_pool(POOL_WINDOW + POOL_CHUNK)
        self._begin()
        self._watch = _Watch(self) if watched and not counting else None

    def _begin(self) -> None:
        """What every machine has from the beginning."""
        for address, size in _ALWAYS.items():
            self.map(address, size)
        self._uc.reg_write(self._sp, STACK_END - 64)

    def renew(self) -> None:
        """Become like new for another world, but keep what was translated: most of what a first run takes.

        That is of use only where the next world puts the same code at the same addresses. `settle` sees to it.
        """
        uc = self._uc
        self._kept.clear()
        for first, last, _ in list(uc.mem_regions()):
            size = last - first + 1
            if CODE <= first < CODE_END or _ALWAYS.get(first) == size:
                self._kept[first] = size
            elif first != POOL_WINDOW:
                uc.mem_unmap(first, size)
        self._code = self.ram[CODE : max((first + size for first, size in self._kept.items()), default=CODE)]
        for memory in (self.ram, self._pool, self._special):
            memory.madvise(mmap.MADV_DONTNEED)
        self._handlers.clear()
        self._pages = bytearray(MEMORY_END >> 12)
        self._placed.clear()
        self._free_pages = list(range(PLACED_PAGES - 1, -1, -1))
        self._pool_end = POOL_WINDOW + POOL_CHUNK
        self.spinning = lambda: False
        self.read_port, self.write_port = _ones, _drop
        self.entered = self.left = _nothing
        self._begin()

    def settle(self, end: int) -> None:
        """A world has been laid out after `renew`, its code as far as `end`. Translations of other code are thrown away."""
        if self._kept or self.ram[CODE:end] != self._code[: end - CODE]:
            for address, size in self._kept.items():
                self._uc.mem_unmap(address, size)
            self._kept.clear()
            self._uc.ctl_flush_tb()
            self.blocks.clear()

    def close(self) -> None:
        """Give the processor and the memory back. Nothing of the machine may be used afterwards."""
        if self._watch is not None:
            self._watch.end()
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._hooks = []
        self._handlers = []
        self._uc = None
        self.spinning = lambda: False
        self.entered = self.left = _nothing
        self.read_port, self.write_port = _ones, _drop

    # ---- in and out -----------------------------------------------------------------------------------------------

    def add_trap(self, handler: Trap) -> int:
        """A new trap: `handler` runs when guest code reads from the port that is given back."""
        assert len(self._handlers) < TRAPS_MAX, "no trap is left"
        self._handlers.append(handler)
        return TRAP_PORTS + len(self._handlers) - 1

    def run(self, address: int) -> None:
        """Run guest code from `address` until it comes to `stop_address`.

        Raises GuestFault, NotCountedError, and whatever a trap's handler raised.
        """
        outermost = self._level == 0
        if outermost:
            self._blocks = self._spins = 0
        self._level += 1
        uc = self._uc
        self.entered()
        try:
            uc.emu_start(address, self.stop_address)
        except self._error_type as error:
            if self._error is None:
                self._error = self._as_fault(error)
        finally:
            self._level -= 1
            self.left()
        if self._error is None:
            pc = uc.reg_read(self._pc)
            if pc != self.stop_address:
                self._error = self.fault("halt")
        if self._error is not None:
            kept = self._error
            if outermost:
                self._error = self._fault = None
                uc.reg_write(self._sp, STACK_END - 64)
            raise kept

    def stop(self) -> None:
        """Let the processor come back soon, from another thread: the run ends with NotCountedError."""
        if self._error is None:
            self._error = NotCountedError()
        uc = self._uc
        if uc is not None:
            uc.emu_stop()

    def _on_in(self, uc: Any, port: int, size: int, _: Any) -> int:
        number = port - TRAP_PORTS
        if not 0 <= number < len(self._handlers):
            return self._at_port(self.read_port, port, size)
        self._spins = self._blocks = 0
        self.left()
        try:
            answer = self._handlers[number](*_MAILBOX.unpack_from(self.ram, MAILBOX))
            _U64.pack_into(self.ram, ANSWER, answer & _MASK64)
            if self._error is None:
                return 0
        except BaseException as error:
            if self._error is None:
                self._error = error
        finally:
            self.entered()
        uc.emu_stop()
        return 0

    def _on_out(self, uc: Any, port: int, size: int, value: int, _: Any) -> None:
        self._at_port(self.write_port, port, size, value)

    def _at_port(self, access: Callable[..., Any], *arguments: int) -> int:
        """Let the platform answer at a port; the answer. What it raises ends the run, as everything does."""
        try:
            return access(*arguments) or 0
        except BaseException as error:
            if self._error is None:
                self._error = error
            self._uc.emu_stop()
            return 0

    @property
    def stack_pointer(self) -> int:
        """Where the processor's stack is."""
        return int(self._uc.reg_read(self._sp))

    def _on_bad_access(self, uc: Any, access: int, address: int, size: int, value: int, _: Any) -> bool:
        self._fault = (self._accesses.get(access, "access"), address & _MASK64, "")
        return False

    def _on_exception(self, uc: Any, number: int, _: Any) -> None:
        if self._error is None:
            self._error = self.fault("exception", _EXCEPTIONS.get(number, f"vector {number}"))
        uc.emu_stop()

    def _on_block(self, uc: Any, address: int, size: int, _: Any) -> None:
        self._blocks += 1
        if self._blocks >= SPIN_BLOCKS and self._error is None:
            self._blocks = 0
            if self._fills(address):
                return
            self._spins += 1
            self.left()
            try:
                if self.spinning() or self._spins < SPINS_MAX:
                    return
                self._error = self.fault("dead-loop")
            except BaseException as error:
                self._error = error
            finally:
                self.entered()
            uc.emu_stop()

    def _fills(self, address: int) -> bool:
        """Whether a repeated string instruction stands there: it fills or copies memory, and each turn counts as a block."""
        code = self.ram[address : address + 3]
        return code[:1] in (b"\xf3", b"\xf2") and code[1 + (code[1] & 0xF0 == 0x40)] & 0xFE in (0xA4, 0xAA)

    def _on_translation(self, uc: Any, block: Any, before: Any, _: Any) -> None:
        self.blocks.add(block.pc)

    def _as_fault(self, error: Any) -> GuestFault:
        if self._fault is not None:
            kind, address, detail = self._fault
            return self.fault(kind, detail, address)
        if error.errno == self._invalid_instruction:
            return self.fault("exception", _EXCEPTIONS[6])
        return self.fault("exception", str(error))

    def fault(self, kind: str, detail: str = "", address: int = 0) -> GuestFault:
        """A fault at the place where the processor is, to be raised."""
        uc = self._uc
        pc, sp = uc.reg_read(self._pc), uc.reg_read(self._sp)
        return GuestFault(kind, address, pc, sp, detail)

    # ---- what is mapped -------------------------------------------------------------------------------------------

    def map(self, address: int, size: int, access: int = READ | WRITE) -> None:
        """Let the guest see physical memory, whole pages of it. What it holds stays as it was."""
        if self._kept.pop(address, 0) != size:
            self._uc.mem_map_ptr(address, size, access, self._ram_at + address)
        first = address >> 12
        self._pages[first : first + (size >> 12)] = bytes([_RAM]) * (size >> 12)

    def unmap(self, address: int, size: int) -> None:
        """Take physical memory away from the guest."""
        self._uc.mem_unmap(address, size)
        first = address >> 12
        self._pages[first : first + (size >> 12)] = bytes(size >> 12)

    def map_pool(self, end: int) -> None:
        """Let the guest see the pool window up to `end` at least."""
        while self._pool_end < end:
            offset = self._pool_end - POOL_WINDOW
            assert offset < POOL_SIZE, "the pool window is used up"
            self._uc.mem_map_ptr(self._pool_end, POOL_CHUNK, READ | WRITE, self._pool_at + offset)
            self._pool_end += POOL_CHUNK

    def make_page(self) -> tuple[int, memoryview]:
        """A page that is nowhere yet, with zeros: its number for `place_page`, and its bytes."""
        number = self._free_pages.pop()
        view = memoryview(self._special)[number * PAGE : (number + 1) * PAGE]
        return number, view

    def place_page(self, number: int, address: int) -> None:
        """Let the guest see the page `number` at `address`, instead of what was there."""
        if address < MEMORY_END:
            if self._pages[address >> 12]:
                self._uc.mem_unmap(address, PAGE)
            self._pages[address >> 12] = _PLACED
        self._placed[address] = number
        self._uc.mem_map_ptr(address, PAGE, READ | WRITE, self._special_at + number * PAGE)

    def remove_page(self, address: int) -> None:
        """Take a placed page away. What is left is a hole, as Xen leaves one."""
        del self._placed[address]
        self._uc.mem_unmap(address, PAGE)
        if address < MEMORY_END:
            self._pages[address >> 12] = _UNMAPPED

    def is_mapped(self, address: int) -> bool:
        """Whether the guest sees anything at `address`."""
        if address < MEMORY_END:
            return self._pages[address >> 12] != _UNMAPPED
        return POOL_WINDOW <= address < self._pool_end or address & -PAGE in self._placed

    def is_placed(self, address: int) -> bool:
        """Whether what the guest sees at `address` is a placed page."""
        return address & -PAGE in self._placed

    # ---- the guest's memory, as services read and write it --------------------------------------------------------

    def _find(self, address: int, size: int, kind: str) -> tuple[mmap.mmap, int]:
        """The mapping behind `address` and the offset in it. Raises GuestFault where the guest sees nothing there."""
        end = address + size
        if address >= POOL_WINDOW and end <= self._pool_end:
            return self._pool, address - POOL_WINDOW
        if end <= MEMORY_END and self._pages[address >> 12] == _RAM:
            last = (end - 1) >> 12 if size else address >> 12
            if last == address >> 12 or self._pages.find(b"\0", address >> 12, last + 1) < 0:
                return self.ram, address
        number = self._placed.get(address & -PAGE)
        if number is None or (address & (PAGE - 1)) + size > PAGE:
            raise self.fault(kind, "for a service", address)
        return self._special, number * PAGE + (address & (PAGE - 1))

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the guest. Raises GuestFault, as all of the following do."""
        memory, offset = self._find(address, size, "read")
        return memory[offset : offset + size]

    def write(self, address: int, data: bytes | bytearray) -> None:
        """Put bytes into the guest's memory."""
        memory, offset = self._find(address, len(data), "write")
        memory[offset : offset + len(data)] = data

    def physical(self, address: int) -> memoryview | None:
        """The page at `address` as a device sees it, whether the guest may see it or not; None where there is none."""
        if address < MEMORY_END:
            return memoryview(self.ram)[address : address + PAGE]
        if POOL_WINDOW <= address < POOL_WINDOW + POOL_SIZE:
            return memoryview(self._pool)[address - POOL_WINDOW : address - POOL_WINDOW + PAGE]
        return None

    def u64(self, address: int) -> int:
        """The 64-bit word at `address`."""
        memory, offset = self._find(address, 8, "read")
        return int(_U64.unpack_from(memory, offset)[0])

    def u32(self, address: int) -> int:
        """The 32-bit word at `address`."""
        memory, offset = self._find(address, 4, "read")
        return int(_U32.unpack_from(memory, offset)[0])

    def u16(self, address: int) -> int:
        """The 16-bit word at `address`."""
        memory, offset = self._find(address, 2, "read")
        return int(_U16.unpack_from(memory, offset)[0])

    def put_u64(self, address: int, value: int) -> None:
        """Set the 64-bit word at `address`."""
        memory, offset = self._find(address, 8, "write")
        _U64.pack_into(memory, offset, value & _MASK64)

    def put_u32(self, address: int, value: int) -> None:
        """Set the 32-bit word at `address`."""
        memory, offset = self._find(address, 4, "write")
        _U32.pack_into(memory, offset, value & 0xFFFFFFFF)


def _nothing() -> None:
    """Before anybody wants to know."""


def _ones(port: int, size: int) -> int:
    """What a bus answers where nobody is."""
    return (1 << 8 * size) - 1


def _drop(port: int, size: int, value: int) -> None:
    """Nobody takes it."""


def _anonymous(size: int) -> mmap.mmap:
    """Zeros that cost memory only where they are touched."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))


def _address_of(memory: mmap.mmap) -> int:
    """The host address of a mapping."""
    anchor = ctypes.c_char.from_buffer(memory)
    return ctypes.addressof(anchor)


class _Watch:
    """Stops a machine that has used up `WATCH_SECONDS` of processor time: the load of the host must not count."""

    __slots__ = ("_begin", "_machine", "_timer")

    def __init__(self, machine: Machine) -> None:
        self._machine: Machine | None = machine
        self._begin = time.process_time()
        self._timer = self._start(WATCH_SECONDS)

    def end(self) -> None:
        """Stop watching."""
        self._machine = None
        self._timer.cancel()

    def _start(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._look)
        timer.daemon = True
        timer.start()
        return timer

    def _look(self) -> None:
        machine = self._machine
        if machine is None:
            return
        left = WATCH_SECONDS - (time.process_time() - self._begin)
        if left > 0:
            self._timer = self._start(left)
        else:
            machine.stop()
