"""ExitBootServices step by step, and InstallConfigurationTable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reference_impl.trace import Kind, Phase, Record
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.configuration_table import ENTRIES_PER_GROWTH
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import EventType, TimerDelay
from reference_impl.uefi.status import EfiError, EfiStatus

SIGNAL, TIMER = int(EventType.NOTIFY_SIGNAL), int(EventType.TIMER)
BEFORE, EXIT = guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES, guids.EVENT_GROUP_EXIT_BOOT_SERVICES
FAILED = guids.EVENT_GROUP_EXIT_BOOT_SERVICES_FAILED
FIRST_ATTEMPT = ["attempt", "before-group", "timers-off", "key-check"]


def refusal(service: Callable[..., Any], *arguments: Any) -> EfiStatus:
    """The status with which a service refuses."""
    with pytest.raises(EfiError) as caught:
        service(*arguments)
    return caught.value.status


def milestones(core: Core) -> list[Record]:
    """The steps of ExitBootServices."""
    return [Record(*record) for record in core.trace.records if record[0] == Kind.EXIT]


def names(core: Core) -> list[str]:
    """The names of the steps."""
    return [record.name for record in milestones(core)]


def notify(boot_services: BootServices, group: str, tpl: int, action: Callable[[], object]) -> int:
    """Let `action` run as notification of a group."""

    def function(event: int, context: Any) -> None:
        action()

    return boot_services.create_event_ex(SIGNAL, tpl, function, None, group)


@pytest.fixture
def loader(core: Core) -> BootServices:
    """The boot services of the operating system's loader."""
    return BootServices(core, "Loader")


def test_success_runs_every_step_in_order(core: Core, loader: BootServices) -> None:
    """BEFORE group, timers off, key check, EXIT group, runtime: each recorded once, with the loader as agent."""
    key = core.memory.map_key
    loader.exit_boot_services(1, key)
    steps = milestones(core)
    assert [step.name for step in steps] == [*FIRST_ATTEMPT, "exit-group", "runtime"]
    assert {step.agent for step in steps} == {"Loader"}
    assert steps[0].arguments == (key,)
    assert (steps[3].arguments, steps[3].status) == ((key, key), EfiStatus.SUCCESS)
    assert core.memory.terminated
    assert core.trace.phase == Phase.RUNTIME


def test_groups_run_in_their_phases(core: Core, loader: BootServices, boot_services: BootServices) -> None:
    """Notifications of BEFORE run before timers are off; those of EXIT after the key check, highest TPL first."""
    log: list[Any] = []
    notify(boot_services, EXIT, 8, lambda: log.append(("exit-8", core.trace.phase, names(core)[-1])))
    notify(boot_services, EXIT, 16, lambda: log.append(("exit-16", core.trace.phase, names(core)[-1])))
    notify(boot_services, BEFORE, 8, lambda: log.append(("before", core.trace.phase, names(core)[-1])))
    notify(boot_services, FAILED, 8, lambda: log.append("failed"))
    loader.exit_boot_services(1, core.memory.map_key)
    assert log == [
        ("before", Phase.BEFORE, "before-group"),
        ("exit-16", Phase.EXIT, "exit-group"),
        ("exit-8", Phase.EXIT, "exit-group"),
    ]


def test_event_of_the_legacy_type_is_in_the_exit_group(
    core: Core, loader: BootServices, boot_services: BootServices
) -> None:
    """EVT_SIGNAL_EXIT_BOOT_SERVICES and the group's GUID mean the same."""
    log: list[str] = []
    boot_services.create_event(int(EventType.SIGNAL_EXIT_BOOT_SERVICES), 8, lambda event, context: log.append("legacy"))
    notify(boot_services, EXIT, 8, lambda: log.append("group"))
    loader.exit_boot_services(1, core.memory.map_key)
    assert log == ["group", "legacy"]


def test_stale_key_signals_the_failed_group_and_is_refused(
    core: Core, loader: BootServices, boot_services: BootServices
) -> None:
    """A wrong key: BEFORE group, timers off, EBS-failed group in its phase, EFI_INVALID_PARAMETER, then RETRY."""
    log: list[Any] = []
    notify(boot_services, FAILED, 8, lambda: log.append(core.trace.phase))
    notify(boot_services, EXIT, 8, lambda: log.append("exit"))
    key = core.memory.map_key
    assert refusal(loader.exit_boot_services, 1, key + 1) == EfiStatus.INVALID_PARAMETER
    assert names(core) == [*FIRST_ATTEMPT, "failed-group"]
    check = milestones(core)[3]
    assert (check.arguments, check.status) == ((key + 1, key), EfiStatus.INVALID_PARAMETER)
    assert log == [Phase.FAILED]
    assert core.trace.phase == Phase.RETRY
    assert not core.memory.terminated


def test_retry_signals_before_no_second_time(core: Core, loader: BootServices, boot_services: BootServices) -> None:
    """However often ExitBootServices is called, BEFORE and EXIT are signalled once each."""
    log: list[str] = []
    notify(boot_services, BEFORE, 8, lambda: log.append("before"))
    notify(boot_services, FAILED, 8, lambda: log.append("failed"))
    notify(boot_services, EXIT, 8, lambda: log.append("exit"))
    for _ in range(2):
        refusal(loader.exit_boot_services, 1, 0)
    loader.exit_boot_services(1, core.memory.map_key)
    assert log == ["before", "failed", "failed", "exit"]
    assert names(core)[-5:] == ["attempt", "timers-off", "key-check", "exit-group", "runtime"]


def test_before_notification_that_allocates_makes_the_key_stale(
    core: Core, loader: BootServices, boot_services: BootServices
) -> None:
    """The key is checked after the BEFORE group, so that a loader has to fetch the map again."""
    notify(boot_services, BEFORE, 8, lambda: core.memory.allocate_pages(0, 4, 1, 0, "Driver"))
    assert refusal(loader.exit_boot_services, 1, core.memory.map_key) == EfiStatus.INVALID_PARAMETER
    loader.exit_boot_services(1, core.memory.map_key)


def test_key_is_not_checked_again_after_the_exit_group(
    core: Core, loader: BootServices, boot_services: BootServices
) -> None:
    """A notification of EXIT that allocates leaves the operating system with a stale map, silently."""
    notify(boot_services, EXIT, 8, lambda: core.memory.allocate_pages(0, 4, 1, 0, "Driver"))
    key = core.memory.map_key
    loader.exit_boot_services(1, key)
    assert core.memory.map_key != key
    assert core.trace.phase == Phase.RUNTIME


def test_timers_stay_off_after_a_failed_attempt(core: Core, loader: BootServices, boot_services: BootServices) -> None:
    """A failed attempt does not turn the timer on again; until BEFORE has run it still works."""
    log: list[str] = []
    event = boot_services.create_event(TIMER | SIGNAL, 8, lambda event, context: log.append("tick"))
    boot_services.set_timer(event, int(TimerDelay.PERIODIC), 100_000)
    notify(boot_services, BEFORE, 8, lambda: boot_services.stall(10_000))
    notify(boot_services, FAILED, 8, lambda: boot_services.stall(10_000))
    refusal(loader.exit_boot_services, 1, 0)
    loader.stall(10_000)
    assert log == ["tick"]


def test_notifications_wait_for_the_callers_tpl(core: Core, loader: BootServices, boot_services: BootServices) -> None:
    """At TPL_CALLBACK only the notifications at TPL_NOTIFY run; nothing enforces TPL_APPLICATION."""
    log: list[str] = []
    notify(boot_services, EXIT, 8, lambda: log.append("callback"))
    notify(boot_services, EXIT, 16, lambda: log.append("notify"))
    loader.raise_tpl(8)
    loader.exit_boot_services(1, core.memory.map_key)
    assert log == ["notify"]


@pytest.mark.parametrize("group", [BEFORE, EXIT])
def test_group_is_signalled_once_though_a_notification_calls_exit_boot_services(
    core: Core, loader: BootServices, boot_services: BootServices, group: str
) -> None:
    """A call from inside of a notification does not signal the groups again."""
    log: list[str] = []

    def call_again() -> None:
        log.append("ran")
        boot_services.exit_boot_services(1, core.memory.map_key)

    notify(boot_services, group, 8, call_again)
    loader.exit_boot_services(1, core.memory.map_key)
    assert log == ["ran"]
    assert names(core).count("before-group") == names(core).count("exit-group") == 1


def test_no_service_answers_in_the_runtime_phase(core: Core, loader: BootServices, boot_services: BootServices) -> None:
    """After success boot services are gone."""
    loader.exit_boot_services(1, core.memory.map_key)
    assert refusal(boot_services.raise_tpl, 8) == EfiStatus.UNSUPPORTED
    assert refusal(loader.exit_boot_services, 1, core.memory.map_key) == EfiStatus.UNSUPPORTED


# ---- configuration tables -------------------------------------------------------------------------------------------


def guid(number: int) -> str:
    """One of many GUIDs."""
    return f"00000000-0000-0000-0000-{number:012x}"


def test_configuration_tables_keep_their_order(core: Core, boot_services: BootServices) -> None:
    """A table that is replaced keeps its place, one that is removed leaves it to the next."""
    for number in range(3):
        boot_services.install_configuration_table(guid(number), 0x1000)
    boot_services.install_configuration_table(guid(0), 0x2000)
    boot_services.install_configuration_table(guid(1), 0)
    assert list(core.configuration_tables.tables.items()) == [(guid(0), 0x2000), (guid(2), 0x1000)]


def test_configuration_table_array_grows_inside_the_core(core: Core, boot_services: BootServices) -> None:
    """The first table, and each that finds the array full, makes the core allocate; then it frees the old array."""
    for number in range(ENTRIES_PER_GROWTH + 1):
        boot_services.install_configuration_table(guid(number), 0x1000)
    memory = [Record(*record).arguments[0] for record in core.trace.records if record[0] == Kind.CORE_MEMORY]
    assert memory == ["allocate", "allocate", "free"]


def test_configuration_table_without_memory_is_refused(
    core: Core, boot_services: BootServices, monkeypatch: Any
) -> None:
    """OUT_OF_RESOURCES leaves the tables as they were, and signals nothing."""

    def no_memory(*arguments: Any) -> int:
        raise EfiError(EfiStatus.OUT_OF_RESOURCES)

    log: list[str] = []
    notify(boot_services, guid(0), 8, lambda: log.append("changed"))
    monkeypatch.setattr("reference_impl.uefi.memory.Memory.allocate_pool", no_memory)
    assert refusal(boot_services.install_configuration_table, guid(0), 0x1000) == EfiStatus.OUT_OF_RESOURCES
    assert core.configuration_tables.tables == {}
    assert log == []
