"""Runtime services: time, variables, the monotonic counter and the reset (UEFI 2.10 §8).

Drivers in Python ask for none of them; real ones do, in library constructors above all. Time is the clock of the core.
Variables are kept for as long as the world; none is there at the beginning, and none is authenticated.

Alarms, capsules and the change to virtual addresses are not modelled.
"""

from __future__ import annotations

from typing import NamedTuple

from reference_impl.trace import StepBudgetExceeded
from reference_impl.uefi.core import Core, service
from reference_impl.uefi.handle_database import RefusalWithValue
from reference_impl.uefi.status import EfiError, EfiStatus

NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS, APPEND_WRITE = 1, 2, 4, 0x40
ATTRIBUTES = NON_VOLATILE | BOOTSERVICE_ACCESS | RUNTIME_ACCESS
STORE_SIZE, VARIABLE_SIZE_MAX = 0x40000, 0x8000

FIRST_YEAR = 2020
"""The clock begins on its 1st of January, at midnight."""

_SECOND_100NS = 10_000_000
_DAY_S = 86_400
_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_INVALID, _NOT_FOUND = EfiStatus.INVALID_PARAMETER, EfiStatus.NOT_FOUND


class SystemReset(StepBudgetExceeded):
    """ResetSystem was called: the run ends, and its last service is a call that never returned."""


class Time(NamedTuple):
    """EFI_TIME, but for time zone and daylight, which nobody has set."""

    year: int
    month: int
    day: int
    hour: int
    minute: int
    second: int
    nanosecond: int


class Variable(NamedTuple):
    """A variable's attributes and data."""

    attributes: int
    data: bytes


class RuntimeState:
    """What the services keep: variables by (vendor, name), and the upper half of the monotonic counter."""

    __slots__ = ("high_count", "variables")

    def __init__(self) -> None:
        self.variables: dict[tuple[str, str], Variable] = {}
        self.high_count = 0


class RuntimeServices:
    """gRT of one image, called in the name of `agent`. A refusal is an EfiError."""

    __slots__ = ("agent", "core", "state")

    def __init__(self, core: Core, agent: str, state: RuntimeState) -> None:
        self.core = core
        self.agent = agent
        self.state = state

    @service("GetTime")
    def get_time(self, out: bool = True) -> Time:
        """The time. EFI_INVALID_PARAMETER: no place for it. UEFI 2.10 §8.3.1."""
        if not out:
            raise EfiError(_INVALID)
        return time_at(self.core.events.now_100ns)

    @service("GetVariable")
    def get_variable(self, name: str, vendor: str, size_bytes: int) -> Variable:
        """A variable. EFI_INVALID_PARAMETER: no name, no vendor. EFI_NOT_FOUND. EFI_BUFFER_TOO_SMALL. UEFI 2.10 §8.2.1."""
        if not vendor:
            raise EfiError(_INVALID)
        found = self.state.variables.get((vendor, name))
        if found is None:
            raise EfiError(_NOT_FOUND)
        if len(found.data) > size_bytes:
            raise RefusalWithValue(EfiStatus.BUFFER_TOO_SMALL, len(found.data))
        return found

    @service("GetNextVariableName")
    def get_next_variable_name(self, name: str, vendor: str, size_bytes: int) -> tuple[str, str]:
        """The variable behind this one (the first where the name is empty): name and vendor.

        EFI_INVALID_PARAMETER: there is no such variable. EFI_NOT_FOUND: it was the last. EFI_BUFFER_TOO_SMALL: for the
        name in UTF-16 with its end. UEFI 2.10 §8.2.2.
        """
        known = list(self.state.variables)
        if name and (vendor, name) not in known:
            raise EfiError(_INVALID)
        place = known.index((vendor, name)) + 1 if name else 0
        if place == len(known):
            raise EfiError(_NOT_FOUND)
        next_vendor, next_name = known[place]
        needed = len(next_name.encode("utf-16le", "surrogatepass")) + 2
        if needed > size_bytes:
            raise RefusalWithValue(EfiStatus.BUFFER_TOO_SMALL, needed)
        return next_name, next_vendor

    @service("SetVariable")
    def set_variable(self, name: str, vendor: str, attributes: int, data: bytes) -> None:
        """Set, append to, or (no data, or no access) delete a variable.

        EFI_INVALID_PARAMETER: no name; attributes that are unknown, at runtime only, or others than it has.
        EFI_NOT_FOUND: nothing to delete. EFI_OUT_OF_RESOURCES. UEFI 2.10 §8.2.3.
        """
        state = self.state
        key = (vendor, name)
        kept = attributes & ~APPEND_WRITE
        if (
            not name
            or not vendor
            or kept & ~ATTRIBUTES
            or kept & (BOOTSERVICE_ACCESS | RUNTIME_ACCESS) == RUNTIME_ACCESS
        ):
            raise EfiError(_INVALID)
        found = state.variables.get(key)
        if attributes & APPEND_WRITE:
            if found is not None:
                data = found.data + data
            elif not data:
                return
        if not data or not kept & (BOOTSERVICE_ACCESS | RUNTIME_ACCESS):
            if found is None:
                raise EfiError(_NOT_FOUND)
            del state.variables[key]
            return
        if found is not None and found.attributes != kept:
            raise EfiError(_INVALID)
        before = 0 if found is None else len(found.data)
        if len(data) > VARIABLE_SIZE_MAX or self._used() - before + len(data) > STORE_SIZE:
            raise EfiError(EfiStatus.OUT_OF_RESOURCES)
        state.variables[key] = Variable(kept, data)

    @service("QueryVariableInfo")
    def query_variable_info(self, attributes: int) -> tuple[int, int, int]:
        """Bytes of the store, bytes that are left, bytes that a variable can have. UEFI 2.10 §8.2.4."""
        if not attributes or attributes & ~ATTRIBUTES:
            raise EfiError(_INVALID)
        return STORE_SIZE, STORE_SIZE - self._used(), VARIABLE_SIZE_MAX

    @service("GetNextHighMonotonicCount")
    def get_next_high_monotonic_count(self, out: bool = True) -> int:
        """The next upper half of the monotonic counter. UEFI 2.10 §8.5.2."""
        if not out:
            raise EfiError(_INVALID)
        self.state.high_count += 1
        return self.state.high_count

    @service("ResetSystem")
    def reset_system(self, reset_type: int, status: int) -> None:
        """Reset the machine: the run ends. UEFI 2.10 §8.5.1."""
        raise SystemReset(self.agent)

    def _used(self) -> int:
        return sum(len(variable.data) for variable in self.state.variables.values())


def time_at(now_100ns: int) -> Time:
    """The time of the clock that began with `FIRST_YEAR`."""
    seconds, rest = divmod(now_100ns, _SECOND_100NS)
    days, seconds = divmod(seconds, _DAY_S)
    year, month = FIRST_YEAR, 0
    while days >= (length := _MONTHS[month] + (month == 1 and _is_leap(year))):
        days -= length
        month += 1
        if month == len(_MONTHS):
            year, month = year + 1, 0
    return Time(year, month + 1, days + 1, seconds // 3600, seconds // 60 % 60, seconds % 60, rest * 100)


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
