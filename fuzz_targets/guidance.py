"""Tells libFuzzer what a run has reached, in terms of the machine's state instead of lines of code.

Instrumented code costs several times what the model itself costs, and says little: the same lines run in every state.
The trace says what matters, and reading it once costs a few per cent of a run. `features` turns a trace into a set of
numbers below `SIZE`; `Guidance` has one 8-bit counter of atheris for each, and libFuzzer keeps an input that reaches a
counter which none has reached before.

What a feature is:

- two records of one agent that follow one another, each as (kind, name, status, phase): what the driver does next;
- two notifications that run one after the other: each new order is one;
- an armed failure, with the entry point and the phase in which it fired;
- a value of a reference count or of a variable that a driver keeps; a transition of a xenbus state;
- a basic block of a real image that nothing had run before (`Trace.blocks`);
- how often, roughly, things came that are worth counting: entry points, steps of exits, moves of the memory map, failures
  that fired, records as a whole.

Numbers come from CRC-32 over text, so they are the same in every process. Two features seldom share a number; where
they do, one of them is not noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from random import Random
from typing import Any
from zlib import crc32

from reference_impl.trace import Kind, Phase, RecordTuple, Trace

SIZE_BITS = 15
SIZE = 1 << SIZE_BITS
_MASK = SIZE - 1
_CACHE_MAX = 1 << 16

# Beyond these, more is no news: or else ever longer scenarios take over the corpus, because they reach ever higher counts.
_COUNT_MAX = 8
_RECORDS_MAX = 1 << 9

_CANDIDATES = 3  # states of which the archive takes the rarest
_LONGER_ONE_IN = 8  # of so many runs that reach a state, one may put a longer input in the place of what is kept

_ENTRY, _INJECTED = int(Kind.ENTRY), int(Kind.INJECTED)
_EXIT, _MAP_KEY = int(Kind.EXIT), int(Kind.MAP_KEY)
_REFERENCE = int(Kind.REFERENCE)
_STATES = frozenset((_REFERENCE, int(Kind.XENBUS_STATE), int(Kind.DRIVER_STATE)))
_SPECIAL = _STATES | {_ENTRY, _INJECTED, _EXIT, _MAP_KEY}
_BOOT = int(Phase.BOOT)

# What the scenario says anyway, and what follows from the service around it.
_SILENT = frozenset((int(Kind.OPERATION), int(Kind.CORE_MEMORY)))
# Calls: before the exit only those that fail are news. Which ones succeed is what the code does when nothing is wrong.
_CALLS = frozenset((int(Kind.SERVICE), int(Kind.HYPERCALL), int(Kind.XENSTORE), int(Kind.GRANT)))
_FINE = (0, None, "OK")

_NOTIFICATION = "Notify"


def feature(*what: object) -> int:
    """The number of a feature, the same in every process and run."""
    return crc32(repr(what).encode()) & _MASK


class _Contexts(dict[tuple[str, bool], int]):
    """(entry point, whether it succeeds) → a number to tell the records inside from the same ones elsewhere."""

    def __missing__(self, key: tuple[str, bool]) -> int:
        self[key] = number = crc32(f"{key[0]}|{key[1]:d}".encode())
        return number


class Features:
    """Turns traces into features. Keeps nothing between runs but a cache of numbers."""

    __slots__ = ("_codes", "_contexts", "_numbers", "groups")

    def __init__(self) -> None:
        # (kind, agent, phase, name, status) of a record → its number; negative where it has a feature of its own.
        self._codes: dict[tuple[int, str, int, str, object], int] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        self._contexts = _Contexts()
        # What sort of state a feature is, for those that are one.
        self.groups: dict[int, object] = {}

    def of(self, trace: Trace) -> set[int]:
        """The features of one run."""
        codes = self._codes
        contexts = self._contexts
        around: dict[str, int] = {}
        found: set[int] = set()
        special: list[int] = []
        for index, (kind, agent, _, _, phase, name, _, status, _) in enumerate(trace.records):
            key = (kind, agent, phase, name, status)
            try:
                code = codes[key]
            except KeyError:
                code = self._new_code(key)
            if code > 0:
                found.add((around.get(agent, 0) + code) & _MASK)
            elif code:
                special.append(index)
                if kind not in _STATES:
                    found.add((around.get(agent, 0) - code) & _MASK)
                if kind == _ENTRY:
                    around[agent] = contexts[name, status in _FINE]
        self._add_special(trace.records, special, found)
        for image, offsets in trace.blocks.items():
            for offset in offsets:
                found.add(self._number("block", image, offset))
        if trace.records:
            found.add(self._number("times", "records", min(len(trace.records), _RECORDS_MAX).bit_length()))
        return found

    def _new_code(self, key: tuple[int, str, int, str, object]) -> int:
        # Text and plain numbers: the repr of an enum's member depends on its class.
        kind, agent, phase, name, status = key
        code = (crc32(f"{int(kind)}|{agent}|{int(phase)}|{name}|{status}".encode()) >> 1) + 1
        if kind in _SPECIAL:
            code = -code
        elif kind in _SILENT or (kind in _CALLS and phase == _BOOT and status in _FINE):
            code = 0
        _keep(self._codes, key, code)
        return code

    def _number(self, *what: object) -> int:
        number = self._numbers.get(what)
        if number is None:
            number = feature(*what)
            _keep(self._numbers, what, number)
            if what[0] != "times":
                self.groups[number] = what[0]
        return number

    def _add_special(self, records: list[RecordTuple], places: list[int], found: set[int]) -> None:
        number = self._number
        counts: dict[tuple[object, ...], int] = {}
        notified = ""
        for index in places:
            kind, agent, _, depth, phase, name, arguments, _, value = records[index]
            what: tuple[object, ...] = (name, phase)
            if kind in _STATES:
                # A device's path without its number: the second disk is no news.
                if kind == _REFERENCE:
                    arguments = arguments[1:]
                if type(value) is int and value > _COUNT_MAX:
                    value = _COUNT_MAX
                found.add(number(kind, agent, name.rpartition("/")[0] or name, arguments, value, phase))
                continue
            if kind == _ENTRY:
                what = (agent, name)
                if name == _NOTIFICATION:
                    found.add(number("after", notified, agent, phase))
                    notified = agent
            elif kind == _INJECTED:
                found.add(number("injected", agent, name, _entry_around(records, index, depth)))
                what = ("injected", phase)
            counts[what] = counts.get(what, 0) + 1
        for what, count in counts.items():
            # More than eight times is no news: otherwise ever longer scenarios would be.
            found.add(number("times", *what, count if count < 4 else 4 if count < 8 else 8))


def _keep(cache: dict[Any, int], key: object, number: int) -> None:
    # Names and states are few. Where a fault in the model makes new ones for ever, memory must not grow with them.
    if len(cache) >= _CACHE_MAX:
        cache.clear()
    cache[key] = number


def _entry_around(records: list[RecordTuple], index: int, depth: int) -> str:
    """The driver entry point inside which a record stands, "" outside of driver code."""
    while index > 0 and depth > 0:
        index -= 1
        record = records[index]
        if record[3] < depth:
            if record[0] == _ENTRY:
                return record[5]
            depth = record[3]
    return ""


class Archive:
    """For each state that any run reached, an input that reached it, and how many runs did.

    libFuzzer spreads its attention over the whole corpus, in which a rare state is one entry of hundreds. The archive
    gives each sort of state the same attention, and within a sort the rarer states more: what few runs have reached is
    where the next step leads somewhere new. The input is a recent one, so that what is kept for a state goes on changing,
    and seldom gets longer: what is short runs soon and is easy to change.
    """

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        # Sort of state → number of the state → how many runs reached it, and the input. Two states of different sorts may
        # have the same number.
        self._groups: dict[object, dict[int, tuple[int, bytes]]] = {}

    def keep(self, data: bytes, found: set[int], groups: dict[int, object]) -> None:
        """Remember `data` for every state among the features that it has."""
        for number in found:
            group = groups.get(number)
            if group is not None:
                states = self._groups.setdefault(group, {})
                runs, kept = states.get(number, (0, data))
                replaces = len(data) <= len(kept) or runs % _LONGER_ONE_IN == 0
                states[number] = (runs + 1, data if replaces else kept)

    def choose(self, rng: Random) -> bytes | None:
        """An input from the archive; None while it is empty."""
        if not self._groups:
            return None
        states = list(rng.choice(list(self._groups.values())).values())
        return min(rng.choices(states, k=_CANDIDATES), key=itemgetter(0))[1]


class Guidance:
    """Feeds the features of each run to libFuzzer, and its states to the archive.

    reserve   gives the number of a new counter (`atheris._reserve_counter`)
    distinct  every feature that any run had; empty after a run means that the fuzzer sees nothing
    """

    __slots__ = ("_base", "_features", "archive", "distinct")

    def __init__(self, reserve: Callable[[], int]) -> None:
        self._base = reserve()
        for _ in range(SIZE - 1):
            reserve()
        self._features = Features()
        self.archive = Archive()
        self.distinct: set[int] = set()

    def feed(self, data: bytes, trace: Trace, hit: Callable[[int], None]) -> None:
        """Hit the counter of every feature of `trace` once. `hit` is `atheris._trace_branch` of the moment."""
        base = self._base
        found = self._features.of(trace)
        self.distinct |= found
        self.archive.keep(data, found, self._features.groups)
        for number in found:
            hit(base + number)
