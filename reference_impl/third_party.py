"""The third party: a driver that has nothing to do with the bus, and acts where nobody expects it.

It exists in the hostile environment alone. Each of its *hooks* acts once, with one act from `ACTS`, on one controller, at
one occasion: when the exit or the BEFORE group is notified, when its timer has ticked so many times, or *inside* another
handler: at one of the moments in the exit group at which somebody else lowers the TPL, and what an interrupt has signalled
meanwhile gets in between. Where in the order it comes is decided as for every notification: by its TPL, by the time of its
creation, and by the scenario's order.

What it does itself is never a finding (`oracles.reading.PLATFORM_AGENTS`). What becomes of the drivers, of the bus and of
the hand-over is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from reference_impl.trace import Phase
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import (
    BY_DRIVER,
    EVT_NOTIFY_SIGNAL,
    EVT_TIMER,
    TPL_CALLBACK,
    TPL_NOTIFY,
)
from reference_impl.uefi.driver_binding import DriverBinding, binding_at
from reference_impl.uefi.events import TIMER_TICK_100NS
from reference_impl.uefi.status import EfiError

AGENT = "third-party"

_TPLS = {"callback": TPL_CALLBACK, "notify": TPL_NOTIFY}
_GROUPS = {"exit": guids.EVENT_GROUP_EXIT_BOOT_SERVICES, "before": guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES}
_TIMER_RELATIVE = 2
_PAGES = 16  # more than any pool holds ready, so that the memory map moves
_WAIT_US = 100_000


class ThirdParty:
    """All hooks of one run. `find` gives the handle of a controller by the scenario's name, 0 where there is none."""

    def __init__(self, core: Core, find: Callable[[str], int]) -> None:
        self._core = core
        self._find = find
        self._services = BootServices(core, AGENT)
        self._waiting: list[list[int]] = []  # [drops of the TPL still to come, event]

    def hook(self, act: str, controller: str, when: str, tpl: str, nth: int) -> None:
        """Do `act` on `controller` once, at the occasion `when`. Raises EfiError where no event can be had."""
        services = self._services
        acted = False

        def notify(event: int, context: object) -> None:
            nonlocal acted
            if not acted:
                acted = True
                ACTS[act](self, self._find(controller))

        group = _GROUPS.get(when, "")
        if group:
            services.create_event_ex(EVT_NOTIFY_SIGNAL, _TPLS[tpl], notify, None, group)
            return
        event = services.create_event(EVT_NOTIFY_SIGNAL | EVT_TIMER, _TPLS[tpl], notify, None)
        if when == "timer":
            services.set_timer(event, _TIMER_RELATIVE, nth * TIMER_TICK_100NS)
        else:
            self._waiting.append([nth, event])

    def tpl_drops(self) -> None:
        """Somebody lowers the TPL: hooks inside other handlers count that, and the one whose turn it is interrupts."""
        core = self._core
        if core.trace.phase != Phase.EXIT or core.outer_agent == AGENT:
            return
        for waiting in self._waiting:
            waiting[0] -= 1
            if not waiting[0]:
                with suppress(EfiError):
                    self._services.signal_event(waiting[1])

    # ---- acts -----------------------------------------------------------------------------------------------------

    def _disconnect(self, controller: int) -> None:
        self._services.disconnect_controller(controller, 0, 0)

    def _stop(self, controller: int) -> None:
        """Stop() of every driver that manages the controller, past the core and without a look at children."""
        for binding in self._managers(controller):
            self._core.enter(binding.agent, "Stop", (controller, ()), binding.stop, controller, ())

    def _connect(self, controller: int) -> None:
        self._services.connect_controller(controller, (), None, True)

    def _start(self, controller: int) -> None:
        """Start() of every driver that supports the controller, past the core."""
        core = self._core
        for handle in core.handles.handles_with(guids.DRIVER_BINDING_PROTOCOL):
            binding = self._binding(handle)
            if binding is not None and not core.enter(
                binding.agent, "Supported", (controller, None), binding.supported, controller, None
            ):
                core.enter(binding.agent, "Start", (controller, None), binding.start, controller, None)

    def _signal(self, controller: int) -> None:
        """Signal the event of a driver, and with it the whole group. Not before the loader leaves."""
        if self._core.trace.phase != Phase.BOOT:
            for event in self._exit_events(controller):
                self._services.signal_event(event)

    def _close(self, controller: int) -> None:
        for event in self._exit_events(controller):
            self._services.close_event(event)

    def _allocate(self, controller: int) -> None:
        self._services.allocate_pages(0, 4, _PAGES, 0)

    def _raise_tpl(self, controller: int) -> None:
        """Raise the TPL, and never restore it."""
        if self._core.trace.tpl < TPL_NOTIFY:
            self._services.raise_tpl(TPL_NOTIFY)

    def _wait(self, controller: int) -> None:
        self._services.stall(_WAIT_US)

    # ---- who manages what -----------------------------------------------------------------------------------------

    def _managers(self, controller: int) -> list[DriverBinding]:
        """The driver bindings that have the controller open BY_DRIVER, each once."""
        handle = self._core.handles.handles.get(controller)
        agents = {
            record.agent: None
            for instance in (handle.newest_first() if handle else ())
            for record in instance.opens
            if record.attributes & BY_DRIVER
        }
        return [binding for agent in agents if (binding := self._binding(agent)) is not None]

    def _binding(self, handle: int) -> DriverBinding | None:
        address = self._core.handles.interface_of(handle, guids.DRIVER_BINDING_PROTOCOL)
        return binding_at(self._core, address) if address else None

    def _exit_events(self, controller: int) -> list[int]:
        """The newest event in the exit group of the driver that manages the controller, if it has one."""
        agents = {binding.agent for binding in self._managers(controller)}
        events = [
            event.id
            for event in self._core.events.live()
            if event.group == guids.EVENT_GROUP_EXIT_BOOT_SERVICES and event.agent in agents
        ]
        return events[-1:]


ACTS: dict[str, Callable[[ThirdParty, int], None]] = {
    "disconnect": ThirdParty._disconnect,
    "stop": ThirdParty._stop,
    "connect": ThirdParty._connect,
    "start": ThirdParty._start,
    "signal": ThirdParty._signal,
    "close": ThirdParty._close,
    "allocate": ThirdParty._allocate,
    "raise-tpl": ThirdParty._raise_tpl,
    "wait": ThirdParty._wait,
}
"""The scenario's name of an act → what it does to a controller. A refusal (EfiError) ends the notification."""
