"""The machinery that all boot services share: one core's state, the rhythm of a service, and the way into driver code.

* `Core` is the firmware: the parts (`events`, `handles`, `memory`) and what connects them. Worlds share nothing.
* `@service` gives every boot service the same rhythm: record begun, armed failure, the service itself, record completed.
  It is the one place where a refusal (`EfiError`) becomes a recorded status.
* `Core.enter` is the one place where the core calls driver code: Supported, Start, Stop, Unload, notifications.

Everything that crosses the boundary between core and driver is a value: handles, events, interfaces and addresses are
integers, protocols are GUID strings. A driver may therefore be Python code or a guest in a CPU emulator. Where a driver
keeps a Python object (its private data, an interface), the object is *placed* at an address of memory that the driver
allocated; `object_at` finds it again and sees the use of freed memory.

Each image calls through a `BootServices` of its own (`boot_services.py`), which is how the core knows who calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from reference_impl.failures import Failures
from reference_impl.trace import Kind, Phase, StepBudgetExceeded, Trace
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA
from reference_impl.uefi.status import EfiError, EfiStatus

if TYPE_CHECKING:
    from reference_impl.uefi.boot_services import BootServices
    from reference_impl.uefi.events import Events
    from reference_impl.uefi.handle_database import HandleDatabase
    from reference_impl.uefi.memory import Memory

F = TypeVar("F", bound=Callable[..., Any])

_SERVICE, _ENTRY, _CORE_MEMORY = int(Kind.SERVICE), int(Kind.ENTRY), int(Kind.CORE_MEMORY)
_SUCCESS = EfiStatus.SUCCESS
_BOOT, _RUNTIME = int(Phase.BOOT), int(Phase.RUNTIME)

STEP_BUDGET = 20_000


class Core:
    """One firmware core.

    trace        where everything is recorded; also holds the current TPL, nesting depth and phase
    failures     what the scenario has armed
    idle         called whenever the processor waits or stalls: the rest of the platform takes one step.
                 Answers whether anything there is still going to happen.
    entry        name of the innermost driver entry point that runs now ("Start"), "" outside of driver code
    step_budget  records after which the run is stopped (`StepBudgetExceeded`)
    notifies_early
                 ExitBootServices notifies before it checks the map key, as older cores did
    """

    __slots__ = (
        "_stuck",
        "configuration_tables",
        "entry",
        "events",
        "failures",
        "handles",
        "idle",
        "memory",
        "notifies_early",
        "objects",
        "outer_agent",
        "outer_service",
        "step_budget",
        "trace",
    )

    def __init__(self, trace: Trace, failures: Failures, step_budget: int = STEP_BUDGET) -> None:
        from reference_impl.uefi.configuration_table import ConfigurationTables
        from reference_impl.uefi.events import Events
        from reference_impl.uefi.handle_database import HandleDatabase
        from reference_impl.uefi.memory import Memory

        self.trace = trace
        self.failures = failures
        self.step_budget = step_budget
        self.idle: Callable[[], bool] = lambda: False
        self.entry = ""
        self.notifies_early = False
        self._stuck = False
        self.outer_agent = ""  # who called the service that runs now, and which: for what the core allocates itself
        self.outer_service = ""
        self.objects: dict[int, tuple[Any, int]] = {}
        self.memory: Memory = Memory(self)
        self.events: Events = Events(self)
        self.handles: HandleDatabase = HandleDatabase(self)
        self.configuration_tables: ConfigurationTables = ConfigurationTables(self)

    # ---- driver code ----------------------------------------------------------------------------------------------

    def enter(
        self, agent: str, entry: str, arguments: tuple[Any, ...], function: Callable[..., Any], *call_arguments: Any
    ) -> EfiStatus:
        """Run one driver entry point and give its status: a refusal that the driver let through becomes its own answer."""
        trace = self.trace
        records = trace.records
        index = len(records)
        tpl, depth, phase = trace.tpl, trace.depth, trace.phase
        records.append((_ENTRY, agent, tpl, depth, phase, entry, arguments, None, None))
        trace.depth = depth + 1
        outer = self.entry
        self.entry = entry
        try:
            function(*call_arguments)
            status = _SUCCESS
        except EfiError as error:
            status = error.status
        finally:
            trace.depth = depth
            self.entry = outer
        returned = None if trace.tpl == tpl else trace.tpl
        records[index] = (_ENTRY, agent, tpl, depth, phase, entry, arguments, status, returned)
        return status

    def give_up(self, agent: str, reason: str, name: str) -> NoReturn:
        """End the run: nothing moves on in the call `name`. Recorded as STUCK, once: ways back that are gone on the way out
        find the budget used up again.
        """
        if not self._stuck:
            self._stuck = True
            self.trace.add(Kind.STUCK, agent, reason, (name,))
        raise StepBudgetExceeded(agent)

    # ---- objects of Python drivers --------------------------------------------------------------------------------

    def place(self, address: int, item: Any, allocation: int = 0) -> int:
        """Keep `item` at `address`, inside the pool or page `allocation` (0: in the image itself). Gives the address."""
        self.objects[address] = (item, allocation)
        return address

    def object_at(self, address: int, agent: str) -> Any:
        """The object placed at `address`. Where its memory has been freed, the use is recorded, and still succeeds.

        Raises EfiError(NOT_FOUND) where nothing was ever placed.
        """
        found = self.objects.get(address)
        if found is None:
            raise EfiError(EfiStatus.NOT_FOUND)
        item, allocation = found
        if allocation and not self.memory.is_live(allocation):
            self.trace.add(Kind.MEMORY, agent, "use-after-free", (address, self.memory.last_owner_of(allocation)))
        return item

    # ---- what the core allocates for itself -----------------------------------------------------------------------

    def allocate(self, size_bytes: int) -> int:
        """Pool for the core's own records. Raises EfiError(OUT_OF_RESOURCES). Recorded as CORE_MEMORY."""
        address = self.memory.allocate_pool(BOOT_SERVICES_DATA, size_bytes, "DxeCore")
        self.trace.add(_CORE_MEMORY, self.outer_agent, self.outer_service, ("allocate", size_bytes), None, address)
        return address

    def free(self, address: int) -> None:
        """Give back what `allocate` gave. Recorded as CORE_MEMORY."""
        self.memory.free_pool(address, "DxeCore")
        self.trace.add(_CORE_MEMORY, self.outer_agent, self.outer_service, ("free", 0), None, address)


def service(name: str, plain: Callable[..., tuple[Any, ...]] | None = None) -> Callable[[F], F]:
    """Make a method of `BootServices` the boot service `name`.

    The method checks its arguments in the specification's order, changes state and returns its value, or raises
    EfiError. Around it: the record (`Kind.SERVICE`), the step budget, an armed failure, the answer after
    ExitBootServices (no service is there any more; EFI_UNSUPPORTED stands for the jump through a null pointer).
    Arguments are passed by position, so that they can be recorded as they are; where one of them is not a plain value,
    `plain(*arguments)` gives what is recorded instead.
    """

    def decorate(function: F) -> F:
        def call(self: BootServices, *arguments: Any) -> Any:
            core = self.core
            trace = core.trace
            records = trace.records
            index = len(records)
            agent = self.agent
            tpl, depth, phase = trace.tpl, trace.depth, trace.phase
            shown = arguments if plain is None else plain(*arguments)
            records.append((_SERVICE, agent, tpl, depth, phase, name, shown, None, None))
            if index > core.step_budget:
                core.give_up(agent, "step-budget", name)
            outer_agent, outer_service = core.outer_agent, core.outer_service
            core.outer_agent, core.outer_service = agent, name
            trace.depth = depth + 1
            try:
                if phase == _RUNTIME:
                    raise EfiError(EfiStatus.UNSUPPORTED)
                if core.failures.armed:
                    status = core.failures.fires(name, agent)
                    if status is not None:
                        raise EfiError(status)
                value = function(self, *arguments)
            except EfiError as error:
                records[index] = (_SERVICE, agent, tpl, depth, phase, name, shown, error.status, None)
                raise
            finally:
                trace.depth = depth
                core.outer_agent, core.outer_service = outer_agent, outer_service
            records[index] = (_SERVICE, agent, tpl, depth, phase, name, shown, _SUCCESS, value)
            return value

        call.__name__ = function.__name__
        call.__qualname__ = function.__qualname__
        call.__doc__ = function.__doc__
        call.__module__ = function.__module__
        call.__wrapped__ = function  # type: ignore[attr-defined]
        call.service_name = name  # type: ignore[attr-defined]
        return cast(F, call)

    return decorate
