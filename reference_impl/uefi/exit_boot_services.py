"""ExitBootServices, step by step (UEFI 2.10 §7.4.6, edk2's CoreExitBootServices).

    BEFORE group (first call only) → timers off → key check ─┬─ wrong: EBS-failed group → error, the caller tries again
                                                             └─ right: memory terminated → EXIT group → runtime

* The key is not checked again after the notifications of the EXIT group. One that allocates leaves the operating system
  with a map that is stale, and nobody says so.
* A failed attempt leaves the timers off, and the BEFORE group is not signalled a second time.
* The notifications of a group run inside the call as far as the caller's TPL allows; at TPL_APPLICATION, all of them.
* A core of old can be had as well (`Core.notifies_early`, a hostile environment): it signals the EXIT group before the key
  check, and so once in every attempt.

Every step is a record of `Kind.EXIT`, and `Trace.phase` follows.

Not modelled, since nothing here could see it: watchdog, status code, debug timer, the fields of the system table that
are cleared, its CRC. edk2 also checks here that runtime regions are aligned; pages are all that this model has, so they
are. After the runtime phase has begun, no boot service answers any more (`core.service`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference_impl.trace import Kind, Phase
from reference_impl.uefi import guids
from reference_impl.uefi.configuration_table import ConfigurationTableServices
from reference_impl.uefi.core import service
from reference_impl.uefi.status import EfiError, EfiStatus

if TYPE_CHECKING:
    from reference_impl.uefi.core import Core

_EXIT = int(Kind.EXIT)
_BOOT, _BEFORE, _CHECK, _FAILED = int(Phase.BOOT), int(Phase.BEFORE), int(Phase.CHECK), int(Phase.FAILED)
_RETRY, _EXIT_PHASE, _RUNTIME = int(Phase.RETRY), int(Phase.EXIT), int(Phase.RUNTIME)


class ExitServices(ConfigurationTableServices):
    """ExitBootServices of `BootServices`, and what belongs to the system table."""

    __slots__ = ()

    core: Core
    agent: str
    image_handle: int

    @service("ExitBootServices")
    def exit_boot_services(self, image_handle: int, map_key: int) -> None:
        """Hand the machine over to the caller, if `map_key` is that of the current memory map.

        EFI_INVALID_PARAMETER: the key is stale. The image handle is not looked at, as in edk2. UEFI 2.10 §7.4.6.
        """
        core = self.core
        events, trace, agent = core.events, core.trace, self.agent
        trace.add(_EXIT, agent, "attempt", (map_key,))
        inside = trace.phase == _EXIT_PHASE
        if trace.phase == _BOOT:
            # The phase moves first: a notification that calls ExitBootServices does not signal the group again.
            trace.phase = _BEFORE
            trace.add(_EXIT, agent, "before-group")
            events.signal_group(guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES)
        trace.phase = _CHECK
        events.timers_off()
        trace.add(_EXIT, agent, "timers-off")
        if core.notifies_early and not inside:
            _notify(core, agent)
            trace.phase = _CHECK
        memory = core.memory
        first = not memory.terminated
        keys = (map_key, memory.map_key)
        try:
            memory.terminate(map_key)
        except EfiError as error:
            trace.add(_EXIT, agent, "key-check", keys, error.status)
            trace.phase = _FAILED
            trace.add(_EXIT, agent, "failed-group")
            events.signal_group(guids.EVENT_GROUP_EXIT_BOOT_SERVICES_FAILED)
            trace.phase = _RETRY
            raise
        trace.add(_EXIT, agent, "key-check", keys, EfiStatus.SUCCESS)
        # A notification of the EXIT group that calls ExitBootServices does not signal the group again.
        if first and not core.notifies_early:
            _notify(core, agent)
        trace.phase = _RUNTIME
        trace.add(_EXIT, agent, "runtime")


def _notify(core: Core, agent: str) -> None:
    """Signal the EXIT group."""
    core.trace.phase = _EXIT_PHASE
    core.trace.add(_EXIT, agent, "exit-group")
    core.events.signal_group(guids.EVENT_GROUP_EXIT_BOOT_SERVICES)
