"""The minimizer: from a scenario with a finding to the smallest one that still has it.

How to read this file
---------------------
*Smaller* is one thing, `sort_key`. The minimizer takes a step only where the key gets smaller and the signature stays,
so it ends, whatever it tries, and it never returns something larger than it was given.

*The contract of a judge* is one function: from a scenario to the signatures of its findings. It has to be
deterministic, as a run is. Its answers are kept, so that no scenario runs twice.

*Passes* propose smaller scenarios, and every proposal that keeps the signature becomes the new current one:

1. operations: halves, quarters … single ones (delta debugging). Large pieces first, because most of a long scenario has
   nothing to do with the finding, and a run is what costs.
2. devices, one after the other. Operations name devices by a number, so a device is also taken out together with a
   renumbering of the operations behind it; likewise an `add-device`, whose device may also be there from the start.
3. the environment, and its single permissions, so that a hostile scenario becomes a conforming one where it can.
4. references to one device turned into references to an earlier one, all at once: an argument alone cannot move
   where two operations have to speak of the same device.
5. arguments: the first value of the field's list, otherwise half of the way there, again and again. Where another value
   needs another permission, that one takes the place of the old value's.
6. the order of notifications: edk2's; for `fifo` the permutations that do the same to groups of up to 16; for a
   permutation one swap of neighbours after the other, towards edk2's.
7. xenstored offers the reconnection feature, as today's do.
8. the expensive ones, only when nothing above moves any more: *every* simpler value of every argument; and an
   operation or a device taken out while a failure is armed at an earlier call, because whatever ran less also
   called less.

From the top again after each pass that changed something, until none does. What comes out is *1-minimal*: none of
`smaller_neighbours` has the signature. `is_minimal` says so by brute force, and shares nothing with the passes but
what a value and a device's number are, and how a device that is added comes to be there from the start.

What is never touched: world, design and seeded fault. They say *what* was tested, not how.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from reference_impl.scenario import (
    DEVICE_KINDS,
    ENVIRONMENTS,
    MAX_DEVICES,
    MAX_ORDER,
    OPERATIONS,
    ORDER_EDK2,
    ORDER_FIFO,
    Blob,
    Choice,
    Field,
    Operation,
    Scenario,
    canonical_order,
    switches_needed,
)

Judge: TypeAlias = Callable[[Scenario], Iterable[str]]
"""From a scenario to the signatures of its findings."""

MAX_RUNS = 20_000
"""Runs after which `minimize` gives up getting smaller: about a minute on the reference platform."""

DEVICE_NUMBERS = 8
"""How many devices operations can name ("child-0" to "child-7")."""

_KINDS = {kind: index for index, kind in enumerate(OPERATIONS)}
_PLACES: dict[str, tuple[dict[Any, int], ...]] = {
    kind: tuple(
        {value: index for index, value in enumerate(field.values)} if isinstance(field, Choice) else {}
        for field in entry.fields
    )
    for kind, entry in OPERATIONS.items()
}


def signatures(scenario: Scenario) -> list[str]:
    """The signatures of all findings of one real run."""
    from fuzz_targets.harness import run_and_judge  # the world is large, and judges of tests do without it

    return [finding.signature for finding in run_and_judge(scenario).findings]


def minimize(
    scenario: Scenario,
    signature: str,
    judge: Judge = signatures,
    *,
    max_runs: int = MAX_RUNS,
    stop: Callable[[], bool] | None = None,
    remark: Callable[[str], None] | None = None,
) -> Scenario:
    """The smallest scenario found that still has `signature`; 1-minimal unless it ended before that.

    max_runs  runs after which it ends
    stop      asked before each run: whether to end now
    remark    told in one sentence where it ended early; without it, the sentence goes to standard error

    Raises ValueError where `scenario` itself does not have the signature.
    """
    assert max_runs > 0
    shrinker = _Shrinker(scenario, signature, judge, max_runs, stop)
    try:
        if not shrinker.fails(scenario):
            raise ValueError(f"the scenario does not have the finding {signature}")
        shrinker.run()
    except _OutOfRunsError as reason:
        sentence = f"{signature}: {reason}; the scenario may not be the smallest"
        if remark is None:
            print(sentence, file=sys.stderr)
        else:
            remark(sentence)
    return shrinker.current


def sort_key(scenario: Scenario) -> tuple[Any, ...]:
    """The one meaning of "smaller": scenarios of one finding are compared by these, the first difference decides.

    1. the number of operations: each is something that the reader must follow;
    2. the number of devices: each multiplies the trace of everything that is done to all of them;
    3. the environment's place in `ENVIRONMENTS`, then the number of single permissions: what happens in the conforming
       one is beyond dispute;
    4. operation by operation, the kind's place in `OPERATIONS`, and its arguments' distance from the front of their
       fields' lists: what stands at the front is what happens at every boot. Bytes count by length, then as they are;
    5. the order of notifications: edk2's is what runs in the field. Then permutations by the number of pairs that run
       the other way round than in edk2, because each is one thing to explain, then by their numbers. `fifo` last: short
       to write, but it turns around every pair of every group, so that nothing is said about which pair matters;
    6. reconnection offered before not offered: it is the newer way, and the one that needs no second mechanism;
    7. the kinds of the devices by their place in `DEVICE_KINDS`: a block device is the best known.
    """
    return (
        len(scenario.operations),
        len(scenario.devices),
        list(ENVIRONMENTS).index(scenario.environment),
        len(scenario.switches),
        tuple((_KINDS[step.kind], *map(_place, _PLACES[step.kind], step.arguments)) for step in scenario.operations),
        _order_key(scenario.order),
        not scenario.reconnection,
        tuple(DEVICE_KINDS.index(kind) for kind in scenario.devices),
    )


def is_minimal(scenario: Scenario, signature: str, judge: Judge = signatures) -> list[Scenario]:
    """The smaller neighbours that still have the signature, by brute force: none where `scenario` is 1-minimal."""
    return [neighbour for neighbour in smaller_neighbours(scenario) if signature in judge(neighbour)]


def smaller_neighbours(scenario: Scenario) -> Iterator[Scenario]:
    """Every scenario that is one step smaller, as "1-minimal" means it.

    Without one operation; with a device at the start that one adds; without one device (numbers in operations kept, and
    shifted); with one simpler value of one argument; with a simpler kind of one device; with two neighbouring
    notifications swapped towards edk2's order; with edk2's order; `fifo` as each permutation that turns a whole group
    around; without one permission; with an environment that permits less; with reconnection.
    """
    for index in range(len(scenario.operations)):
        yield scenario.with_operations(scenario.operations[:index] + scenario.operations[index + 1 :])
    yield from _with_earlier_devices(scenario)
    for index in range(len(scenario.devices)):
        devices = scenario.devices[:index] + scenario.devices[index + 1 :]
        yield replace(scenario, devices=devices)
        yield replace(scenario, devices=devices, operations=_closed_up(scenario.operations, index))
    for position, step in enumerate(scenario.operations):
        for number, (field, value) in enumerate(zip(OPERATIONS[step.kind].fields, step.arguments, strict=True)):
            for simpler in _simpler_values(field, value):
                yield _with_value(scenario, position, number, simpler)
    for index, kind in enumerate(scenario.devices):
        for simpler in DEVICE_KINDS[: DEVICE_KINDS.index(kind)]:
            yield replace(scenario, devices=(*scenario.devices[:index], simpler, *scenario.devices[index + 1 :]))
    if scenario.order != ORDER_EDK2:
        yield replace(scenario, order=ORDER_EDK2)
    if scenario.order == ORDER_FIFO:
        for length in range(2, MAX_ORDER + 1):
            yield replace(scenario, order=tuple(reversed(range(length))))
    elif not isinstance(scenario.order, str):
        for index in range(len(scenario.order) - 1):
            if scenario.order[index] > scenario.order[index + 1]:
                swapped = list(scenario.order)
                swapped[index], swapped[index + 1] = swapped[index + 1], swapped[index]
                yield replace(scenario, order=canonical_order(tuple(swapped)))
    for switch in scenario.switches:
        yield replace(scenario, switches=tuple(other for other in scenario.switches if other != switch))
    for environment in list(ENVIRONMENTS)[: list(ENVIRONMENTS).index(scenario.environment)]:
        yield replace(scenario, environment=environment, switches=())
    if not scenario.reconnection:
        yield replace(scenario, reconnection=True)


class _OutOfRunsError(Exception):
    """No more scenarios may be judged; the message says why."""


class _Shrinker:
    """The current scenario, what is known about others, and the passes that make it smaller."""

    def __init__(
        self, scenario: Scenario, signature: str, judge: Judge, max_runs: int, stop: Callable[[], bool] | None
    ) -> None:
        self.current = scenario
        self._key = sort_key(scenario)
        self._signature = signature
        self._judge = judge
        self._max_runs = self._runs_left = max_runs
        self._stop = stop
        self._verdicts: dict[Scenario, bool] = {}

    def run(self) -> None:
        """All passes, from the top after each change, until none of them finds anything. Raises `_OutOfRunsError`."""
        passes = (
            self._drop_operations,
            self._begin_with_devices,
            self._drop_devices,
            self._permit_less,
            self._merge_references,
            self._lower_arguments,
            self._straighten_order,
            self._offer_reconnection,
            self._simplify_kinds,
            self._lower_arguments_exhaustively,
            self._drop_and_fail_earlier,
        )
        index = 0
        while index < len(passes):
            before = self.current
            passes[index]()
            index = 0 if self.current is not before else index + 1

    def fails(self, scenario: Scenario) -> bool:
        """Whether `scenario` has the signature."""
        known = self._verdicts.get(scenario)
        if known is None:
            if not self._runs_left:
                raise _OutOfRunsError(f"{self._max_runs} runs were used up")
            if self._stop is not None and self._stop():
                raise _OutOfRunsError("no time was left")
            self._runs_left -= 1
            known = self._verdicts[scenario] = self._signature in self._judge(scenario)
        return known

    def _try(self, scenario: Scenario) -> bool:
        """Make `scenario` the current one where it is smaller and has the signature."""
        key = sort_key(scenario)
        if key >= self._key or not self.fails(scenario):
            return False
        self.current, self._key = scenario, key
        return True

    # ---- what is there ----------------------------------------------------------------------------------------------

    def _drop_operations(self) -> None:
        """Pieces of operations, from a half down to one, from the end: what is late seldom carries what is early."""
        length = max(1, len(self.current.operations) // 2)
        while True:
            end = len(self.current.operations)
            while end > 0:
                start = max(0, end - length)
                for candidate in _without_operations(self.current, start, end):
                    if self._try(candidate):
                        break
                end = start
            if length == 1:
                return
            length //= 2

    def _begin_with_devices(self) -> None:
        while any(self._try(candidate) for candidate in _with_earlier_devices(self.current)):
            pass

    def _drop_devices(self) -> None:
        for index in reversed(range(len(self.current.devices))):
            for candidate in _without_device(self.current, index):
                if self._try(candidate):
                    break

    def _permit_less(self) -> None:
        for environment in ENVIRONMENTS:
            if self._try(replace(self.current, environment=environment, switches=())):
                break
        for switch in self.current.switches:
            fewer = tuple(other for other in self.current.switches if other != switch)
            self._try(replace(self.current, switches=fewer))

    # ---- what it says -----------------------------------------------------------------------------------------------

    def _merge_references(self) -> None:
        """Every reference to device `j` becomes one to device `i`, nearer to the front."""
        used = sorted({device for step in self.current.operations for device in _references(step)}, reverse=True)
        for old in used:
            for new in range(old):
                if self._try(self.current.with_operations(_renamed(self.current.operations, {old: new}))):
                    break

    def _lower_arguments(self) -> None:
        """Each argument to the front, or as far towards it as bisection gets."""
        for position, number, field in self._arguments():
            if isinstance(field, Blob):
                self._shorten(position, number)
            elif not self._try_value(position, number, field.values[0]):
                low, high = 0, field.values.index(self._value(position, number))
                while high - low > 1:
                    middle = (low + high) // 2
                    if self._try_value(position, number, field.values[middle]):
                        high = middle
                    else:
                        low = middle

    def _lower_arguments_exhaustively(self) -> None:
        """Each argument to the very first value that keeps the signature."""
        for position, number, field in self._arguments():
            for value in _simpler_values(field, self._value(position, number)):
                if self._try_value(position, number, value):
                    break

    def _shorten(self, position: int, number: int) -> None:
        """Cut pieces out of bytes, from all of them down to single ones, then turn bytes to zero."""
        length = len(self._value(position, number))
        while length:
            start = 0
            while start < len(data := self._value(position, number)):
                if not self._try_value(position, number, data[:start] + data[start + length :]):
                    start += length
            length //= 2
        for index in range(len(self._value(position, number))):
            data = self._value(position, number)
            self._try_value(position, number, data[:index] + b"\0" + data[index + 1 :])

    def _simplify_kinds(self) -> None:
        for index in range(len(self.current.devices)):
            for kind in DEVICE_KINDS:
                devices = (*self.current.devices[:index], kind, *self.current.devices[index + 1 :])
                if self._try(replace(self.current, devices=devices)):
                    break

    # ---- the platform -----------------------------------------------------------------------------------------------

    def _straighten_order(self) -> None:
        """Towards edk2's order: at once, else `fifo` as a permutation, and permutations by swaps of neighbours."""
        if self.current.order == ORDER_EDK2 or self._try(replace(self.current, order=ORDER_EDK2)):
            return
        if self.current.order == ORDER_FIFO and not any(
            self._try(replace(self.current, order=tuple(reversed(range(length))))) for length in range(2, MAX_ORDER + 1)
        ):
            return
        index = 0
        while not isinstance(order := self.current.order, str) and index < len(order) - 1:
            swapped = (*order[:index], order[index + 1], order[index], *order[index + 2 :])
            if order[index] > order[index + 1] and self._try(replace(self.current, order=canonical_order(swapped))):
                index = max(
                    0, index - 1
                )  # the pair before has a new neighbour; all others come again in the next round
            else:
                index += 1

    def _offer_reconnection(self) -> None:
        self._try(replace(self.current, reconnection=True))

    # ---- what takes two changes at once -----------------------------------------------------------------------------

    def _drop_and_fail_earlier(self) -> None:
        """Without an operation or a device, and with one failure armed at an earlier call than before."""
        smaller: list[Scenario] = []
        for index in range(len(self.current.operations)):
            smaller += _without_operations(self.current, index, index + 1)
        for index in range(len(self.current.devices)):
            smaller += _without_device(self.current, index)
        for candidate in smaller:
            for position, step in enumerate(candidate.operations):
                if step.kind != "fail":
                    continue
                call, nth = step.arguments
                for earlier in range(1, nth):
                    steps = list(candidate.operations)
                    steps[position] = Operation("fail", (call, earlier))
                    if self._try(candidate.with_operations(steps)):
                        return

    # ---- arguments by place -----------------------------------------------------------------------------------------

    def _arguments(self) -> Iterator[tuple[int, int, Field]]:
        """Every argument: index of its operation, its own index, its field. Passes change values, not the kinds."""
        for position, step in enumerate(self.current.operations):
            for number, field in enumerate(OPERATIONS[step.kind].fields):
                yield position, number, field

    def _value(self, position: int, number: int) -> Any:
        return self.current.operations[position].arguments[number]

    def _try_value(self, position: int, number: int, value: Any) -> bool:
        return self._try(_with_value(self.current, position, number, value))


# ---- keys and values ------------------------------------------------------------------------------------------------


def _place(places: Mapping[Any, int], value: Any) -> Any:
    """How far a value is from the simplest of its field: its place in the list; for bytes (no list), their length."""
    return places[value] if places else (len(value), value)


def _order_key(order: str | tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    if isinstance(order, str):
        return (0 if order == ORDER_EDK2 else 2, 0, ())
    inversions = sum(later < earlier for index, earlier in enumerate(order) for later in order[index + 1 :])
    return (1, inversions, order)


def _with_value(scenario: Scenario, position: int, number: int, value: Any) -> Scenario:
    """With another value of one argument. In a hostile environment permissions go and come with what needs them."""
    steps = list(scenario.operations)
    old = steps[position]
    new = Operation(old.kind, (*old.arguments[:number], value, *old.arguments[number + 1 :]))
    steps[position] = new
    changed = scenario.with_operations(steps)
    gone, come = switches_needed(old), switches_needed(new)
    if gone == come or scenario.environment == "conforming":
        return changed
    gone -= set[str]().union(*map(switches_needed, steps))
    return replace(changed, switches=tuple(sorted(come.union(scenario.switches) - gone)))


def _simpler_values(field: Field, value: Any) -> Iterable[Any]:
    """The values in front of this one, simplest first. Of bytes: without one byte, and with one byte turned to zero.

    Bytes have no short list of simpler values; one step at a time is what "1-minimal" means for them.
    """
    if isinstance(field, Choice):
        return field.values[: field.values.index(value)]
    shorter = [value[:index] + value[index + 1 :] for index in range(len(value))]
    return shorter + [value[:index] + b"\0" + value[index + 1 :] for index in range(len(value)) if value[index]]


# ---- devices by number ----------------------------------------------------------------------------------------------


def _child(value: Any) -> int | None:
    """The device that an argument names, if it names one: "child-3", or 3 in a field `device`."""
    if isinstance(value, str) and value.startswith("child-"):
        return int(value.removeprefix("child-"))
    return None


def _references(step: Operation) -> list[int]:
    """The numbers of the devices that an operation names."""
    found = []
    for field, value in zip(OPERATIONS[step.kind].fields, step.arguments, strict=True):
        number = value if field.name == "device" else _child(value)
        if number is not None:
            found.append(number)
    return found


def _renamed(operations: Iterable[Operation], numbers: Mapping[int, int]) -> tuple[Operation, ...]:
    """Operations that name devices by other numbers; those that `numbers` does not have keep theirs."""
    renamed = []
    for step in operations:
        arguments = []
        for field, value in zip(OPERATIONS[step.kind].fields, step.arguments, strict=True):
            child = _child(value)
            if field.name == "device":
                arguments.append(numbers.get(value, value))
            elif child is not None:
                arguments.append(f"child-{numbers.get(child, child)}")
            else:
                arguments.append(value)
        renamed.append(Operation(step.kind, tuple(arguments)))
    return tuple(renamed)


def _closed_up(operations: Iterable[Operation], removed: int) -> tuple[Operation, ...]:
    """Operations as they are after device `removed` is gone: the devices behind it move up by one."""
    return _renamed(operations, {number: number - 1 for number in range(removed + 1, DEVICE_NUMBERS)})


def _without_operations(scenario: Scenario, start: int, end: int) -> Iterator[Scenario]:
    """Without operations[start:end]: the others as they are, and without the numbers of devices no longer added."""
    operations = scenario.operations
    yield scenario.with_operations(operations[:start] + operations[end:])
    added = sum(step.kind == "add-device" for step in operations[start:end])
    if added:
        first = len(scenario.devices) + sum(step.kind == "add-device" for step in operations[:start])
        behind = operations[end:]
        for _ in range(added):
            behind = _closed_up(behind, first)
        yield scenario.with_operations(operations[:start] + behind)


def _with_earlier_devices(scenario: Scenario) -> Iterator[Scenario]:
    """With a device at the start instead of one `add-device`, and the same numbers for what operations mean by them."""
    first = len(scenario.devices)
    if first == MAX_DEVICES:
        return
    positions = [position for position, step in enumerate(scenario.operations) if step.kind == "add-device"]
    for count, position in enumerate(positions):
        others = scenario.operations[:position] + scenario.operations[position + 1 :]
        numbers = {first + count: first, **{number: number + 1 for number in range(first, first + count)}}
        (kind,) = scenario.operations[position].arguments
        yield replace(scenario, devices=(*scenario.devices, kind), operations=_renamed(others, numbers))


def _without_device(scenario: Scenario, index: int) -> Iterator[Scenario]:
    """Without one device of the start: with the operations as they are, and with the devices behind it renumbered."""
    devices = scenario.devices[:index] + scenario.devices[index + 1 :]
    yield replace(scenario, devices=devices)
    yield replace(scenario, devices=devices, operations=_closed_up(scenario.operations, index))
