"""Time, variables, the monotonic counter and the reset (UEFI 2.10 §8)."""

from __future__ import annotations

import pytest

from reference_impl.failures import Failures
from reference_impl.trace import Kind, Record, StepBudgetExceeded, Trace
from reference_impl.uefi.core import Core
from reference_impl.uefi.handle_database import RefusalWithValue
from reference_impl.uefi.runtime_services import (
    APPEND_WRITE,
    BOOTSERVICE_ACCESS,
    NON_VOLATILE,
    RUNTIME_ACCESS,
    STORE_SIZE,
    VARIABLE_SIZE_MAX,
    RuntimeServices,
    RuntimeState,
    Time,
    time_at,
)
from reference_impl.uefi.status import EfiError, EfiStatus

VENDOR, OTHER = "8be4df61-93ca-11d2-aa0d-00e098032b8c", "12345678-9abc-def0-1122-334455667788"
BOOT = BOOTSERVICE_ACCESS


@pytest.fixture
def runtime():
    """The services as one driver calls them."""
    trace = Trace()
    return RuntimeServices(Core(trace, Failures(trace, lambda call: True)), "Drv", RuntimeState())


def refusal(call, *arguments):
    """The status that a call answers."""
    with pytest.raises(EfiError) as caught:
        call(*arguments)
    return caught.value.status


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (0, Time(2020, 1, 1, 0, 0, 0, 0)),
        (59 * 86_400 + 3_661, Time(2020, 2, 29, 1, 1, 1, 0)),
        (60 * 86_400, Time(2020, 3, 1, 0, 0, 0, 0)),
        (366 * 86_400 - 1, Time(2020, 12, 31, 23, 59, 59, 0)),
        (366 * 86_400 + 59 * 86_400, Time(2021, 3, 1, 0, 0, 0, 0)),
    ],
)
def test_calendar_knows_leap_years(seconds, time):
    """From the first day of the clock on."""
    assert time_at(seconds * 10_000_000) == time


def test_time_is_the_clock_of_the_core(runtime):
    """It goes on as time passes there, in steps of 100 ns."""
    runtime.core.events.advance(15_000_001)
    assert runtime.get_time() == Time(2020, 1, 1, 0, 0, 1, 500_000_100)
    assert refusal(runtime.get_time, False) == EfiStatus.INVALID_PARAMETER


def test_variables_are_set_read_appended_to_and_deleted(runtime):
    """Name and vendor together name a variable; the attributes must stay."""
    runtime.set_variable("Boot", VENDOR, BOOT, b"one")
    runtime.set_variable("Boot", OTHER, BOOT | RUNTIME_ACCESS | NON_VOLATILE, b"two")
    assert runtime.get_variable("Boot", VENDOR, 3) == (BOOT, b"one")
    runtime.set_variable("Boot", VENDOR, BOOT | APPEND_WRITE, b"!")
    assert runtime.get_variable("Boot", VENDOR, 100).data == b"one!"
    assert refusal(runtime.set_variable, "Boot", VENDOR, BOOT | NON_VOLATILE, b"x") == EfiStatus.INVALID_PARAMETER
    runtime.set_variable("Boot", VENDOR, BOOT, b"")
    assert refusal(runtime.get_variable, "Boot", VENDOR, 100) == EfiStatus.NOT_FOUND
    assert runtime.get_variable("Boot", OTHER, 100).data == b"two"
    assert refusal(runtime.set_variable, "Boot", VENDOR, BOOT, b"") == EfiStatus.NOT_FOUND
    runtime.set_variable("Boot", VENDOR, BOOT | APPEND_WRITE, b"")
    assert refusal(runtime.set_variable, "", VENDOR, BOOT, b"x") == EfiStatus.INVALID_PARAMETER
    assert refusal(runtime.set_variable, "New", VENDOR, RUNTIME_ACCESS, b"x") == EfiStatus.INVALID_PARAMETER


def test_variable_that_does_not_fit_says_its_size(runtime):
    """EFI_BUFFER_TOO_SMALL tells how much is needed, for data and for a name with its end."""
    runtime.set_variable("Boot", VENDOR, BOOT, b"data")
    with pytest.raises(RefusalWithValue) as caught:
        runtime.get_variable("Boot", VENDOR, 3)
    assert caught.value.value == 4
    with pytest.raises(RefusalWithValue) as caught:
        runtime.get_next_variable_name("", "", 9)
    assert caught.value.value == 10
    assert refusal(runtime.get_variable, "Boot", "", 9) == EfiStatus.INVALID_PARAMETER


def test_names_are_gone_through_in_order(runtime):
    """From an empty name to the last; a name that is not there is refused."""
    for name in ("A", "B"):
        runtime.set_variable(name, VENDOR, BOOT, b"x")
    assert runtime.get_next_variable_name("", "", 100) == ("A", VENDOR)
    assert runtime.get_next_variable_name("A", VENDOR, 100) == ("B", VENDOR)
    assert refusal(runtime.get_next_variable_name, "B", VENDOR, 100) == EfiStatus.NOT_FOUND
    assert refusal(runtime.get_next_variable_name, "C", VENDOR, 100) == EfiStatus.INVALID_PARAMETER


def test_store_has_a_size(runtime):
    """Of the whole and of each variable."""
    assert runtime.query_variable_info(BOOT) == (STORE_SIZE, STORE_SIZE, VARIABLE_SIZE_MAX)
    assert refusal(runtime.set_variable, "A", VENDOR, BOOT, bytes(VARIABLE_SIZE_MAX + 1)) == EfiStatus.OUT_OF_RESOURCES
    for index in range(STORE_SIZE // VARIABLE_SIZE_MAX):
        runtime.set_variable(f"A{index}", VENDOR, BOOT, bytes(VARIABLE_SIZE_MAX))
    assert refusal(runtime.set_variable, "B", VENDOR, BOOT, b"x") == EfiStatus.OUT_OF_RESOURCES
    runtime.set_variable("A0", VENDOR, BOOT, b"less")
    assert runtime.query_variable_info(BOOT)[1] == VARIABLE_SIZE_MAX - 4
    assert refusal(runtime.query_variable_info, 0) == EfiStatus.INVALID_PARAMETER


def test_counter_only_rises(runtime):
    """Each call gives the next number."""
    assert [runtime.get_next_high_monotonic_count() for _ in range(2)] == [1, 2]
    assert refusal(runtime.get_next_high_monotonic_count, False) == EfiStatus.INVALID_PARAMETER


def test_reset_ends_the_run(runtime):
    """The last record is a call that never returned."""
    with pytest.raises(StepBudgetExceeded):
        runtime.reset_system(0, 0)
    last = Record(*runtime.core.trace.records[-1])
    assert (last.kind, last.agent, last.name, last.status) == (Kind.SERVICE, "Drv", "ResetSystem", None)


def test_services_can_be_made_to_fail(runtime):
    """As every call."""
    runtime.core.failures.arm("SetVariable", 1, EfiStatus.WRITE_PROTECTED)
    assert refusal(runtime.set_variable, "A", VENDOR, BOOT, b"x") == EfiStatus.WRITE_PROTECTED
    assert runtime.state.variables == {}
