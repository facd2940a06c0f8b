"""Events, TPLs, timers and the clock, beyond what the firmware's answers say (`test_dxecore_events.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reference_impl.trace import Kind, Record, StepBudgetExceeded
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import EventType, TimerDelay
from reference_impl.uefi.events import DEPTH_MAX, EVENT_SIZE_BYTES, TIMER_TICK_100NS, WaitError
from reference_impl.uefi.status import EfiError, EfiStatus

PLAIN, WAIT, SIGNAL, TIMER = 0, int(EventType.NOTIFY_WAIT), int(EventType.NOTIFY_SIGNAL), int(EventType.TIMER)
CANCEL, PERIODIC, RELATIVE = int(TimerDelay.CANCEL), int(TimerDelay.PERIODIC), int(TimerDelay.RELATIVE)
GROUP = "00000000-0000-0000-0000-000000000001"
MS_100NS = 10_000


def refusal(service: Callable[..., Any], *arguments: Any) -> EfiStatus:
    """The status with which a service refuses."""
    with pytest.raises(EfiError) as caught:
        service(*arguments)
    return caught.value.status


def records_of(core: Core, kind: Kind) -> list[Record]:
    """All records of one kind."""
    return [Record(*record) for record in core.trace.records if record[0] == kind]


def logger(log: list[Any], entry: Any) -> Callable[[int, Any], None]:
    """A notification function that only logs."""
    return lambda event, context: log.append(entry)


def do(action: Callable[[], object]) -> Callable[[int, Any], None]:
    """A notification function that only does one thing."""
    return lambda event, context: action() and None  # type: ignore[func-returns-value]


class Notifier:
    """A notification function without a name of its own."""

    def __call__(self, event: int, context: Any) -> None:
        """Do nothing."""


# ---- creating and closing -------------------------------------------------------------------------------------------


def test_notification_gets_its_event_and_context(boot_services: BootServices) -> None:
    """The function is called with the event and with the context that the event was created with."""
    seen: list[Any] = []
    event = boot_services.create_event(SIGNAL, 8, lambda event, context: seen.append((event, context)), "context")
    boot_services.signal_event(event)
    assert seen == [(event, "context")]


def test_notification_is_recorded_for_the_image_that_created_the_event(core: Core) -> None:
    """A notification's record names the event's creator and group, and not the image that signalled it."""
    event = BootServices(core, "Creator").create_event_ex(SIGNAL, 8, logger([], 0), None, GROUP)
    BootServices(core, "Signaller").signal_event(event)
    (notified,) = records_of(core, Kind.ENTRY)
    assert notified == (Kind.ENTRY, "Creator", 8, 1, 0, "Notify", (event, GROUP), EfiStatus.SUCCESS, None)


def test_create_event_is_recorded_in_plain_values(core: Core, boot_services: BootServices) -> None:
    """The trace has the function by name and leaves out a context that is an object, so that traces can be compared."""

    def on_exit(event: int, context: Any) -> None:
        raise AssertionError("never signalled")

    boot_services.create_event(SIGNAL, 8, on_exit, core)
    boot_services.create_event(SIGNAL, 8, Notifier(), 7)
    boot_services.create_event_ex(PLAIN, 0, None, None, GROUP)
    assert [record.arguments for record in records_of(core, Kind.SERVICE)] == [
        (SIGNAL, 8, "on_exit", None),
        (SIGNAL, 8, "Notifier", 7),
        (PLAIN, 0, "", None, GROUP),
    ]


def test_create_allocates_and_close_frees_inside_the_core(core: Core, boot_services: BootServices) -> None:
    """The memory of an event is the core's own, and stands in the trace under the service that took or gave it."""
    boot_services.close_event(boot_services.create_event(PLAIN, 0, None))
    taken, given = records_of(core, Kind.CORE_MEMORY)
    assert (taken.agent, taken.name, taken.arguments) == ("Driver", "CreateEvent", ("allocate", EVENT_SIZE_BYTES))
    assert (given.name, given.arguments[0], given.value) == ("CloseEvent", "free", taken.value)
    assert not core.memory.is_live(taken.value)


def test_create_without_memory_is_refused(core: Core, boot_services: BootServices, monkeypatch: Any) -> None:
    """OUT_OF_RESOURCES comes after the other checks, and leaves no member in the group."""

    def no_memory(*arguments: Any) -> int:
        raise EfiError(EfiStatus.OUT_OF_RESOURCES)

    monkeypatch.setattr("reference_impl.uefi.memory.Memory.allocate_pool", no_memory)
    arguments = (8, logger([], 0), None, GROUP)
    assert refusal(boot_services.create_event_ex, 3, *arguments) == EfiStatus.INVALID_PARAMETER
    assert refusal(boot_services.create_event_ex, SIGNAL, *arguments) == EfiStatus.OUT_OF_RESOURCES
    core.events.signal_group(GROUP)
    assert core.events.live() == []


def test_create_ex_needs_a_place_for_the_event(boot_services: BootServices) -> None:
    """CreateEventEx with a NULL event pointer is refused."""
    arguments = (SIGNAL, 8, logger([], 0), None, GROUP, False)
    assert refusal(boot_services.create_event_ex, *arguments) == EfiStatus.INVALID_PARAMETER


def test_plain_event_in_the_exit_group_becomes_a_notifying_one(core: Core, boot_services: BootServices) -> None:
    """In the EXIT group a plain event with a function takes the type of that group, and then needs a sensible TPL."""
    log: list[str] = []
    arguments = (logger(log, "ran"), None, guids.EVENT_GROUP_EXIT_BOOT_SERVICES)
    boot_services.create_event_ex(PLAIN, 9, *arguments)
    core.events.signal_group(guids.EVENT_GROUP_EXIT_BOOT_SERVICES)
    assert log == ["ran"]
    assert refusal(boot_services.create_event_ex, PLAIN, 31, *arguments) == EfiStatus.INVALID_PARAMETER


@pytest.mark.parametrize("service", ["close_event", "signal_event", "check_event"])
def test_closed_event_is_dead(core: Core, boot_services: BootServices, service: str) -> None:
    """No service takes a closed event, and no later event has its id."""
    event = boot_services.create_event(PLAIN, 0, None)
    assert core.events.is_live(event)
    boot_services.close_event(event)
    assert not core.events.is_live(event)
    assert boot_services.create_event(PLAIN, 0, None) != event
    assert refusal(getattr(boot_services, service), event) == EfiStatus.INVALID_PARAMETER


def test_close_tells_the_hook_while_the_event_is_known(core: Core, boot_services: BootServices) -> None:
    """Whoever has registered an event learns of its end in time to look it up."""
    seen: list[tuple[int, bool]] = []
    core.events.on_close = lambda event: seen.append((event, core.events.is_live(event)))
    event = boot_services.create_event(PLAIN, 0, None)
    boot_services.close_event(event)
    assert seen == [(event, True)]


def test_close_without_a_hook(core: Core, boot_services: BootServices) -> None:
    """A core in which nobody registers events closes them all the same."""
    core.events.on_close = None
    boot_services.close_event(boot_services.create_event(PLAIN, 0, None))
    assert core.events.live() == []


# ---- order in a group -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "ran"),
    [
        ("edk2", "DCBA"),
        ("fifo", "ABCD"),
        ((1, 0), "CDBA"),
        ((3, 1, 0, 2), "ACDB"),
        ((0, 1, 2, 3), "DCBA"),
        ((5, 4, 3, 2, 1, 0), "ABCD"),
    ],
)
def test_order_of_a_group_is_the_scenarios(core: Core, boot_services: BootServices, order: Any, ran: str) -> None:
    """Members run as the order says; numbers beyond the membership are skipped, and what it does not name follows."""
    core.events.order = order
    log: list[str] = []
    for name in "ABCD":
        boot_services.create_event_ex(SIGNAL, 8, logger(log, name), None, GROUP)
    core.events.signal_group(GROUP)
    assert "".join(log) == ran


def test_order_of_a_group_respects_tpls(core: Core, boot_services: BootServices) -> None:
    """Whatever the order, TPL_NOTIFY runs before TPL_CALLBACK."""
    core.events.order = "fifo"
    log: list[str] = []
    for name, tpl in zip("ABCD", (8, 16, 8, 16), strict=True):
        boot_services.create_event_ex(SIGNAL, tpl, logger(log, name), None, GROUP)
    core.events.signal_group(GROUP)
    assert "".join(log) == "BDAC"


def test_group_without_members_costs_nothing(core: Core) -> None:
    """Signalling a group that nobody is in does nothing and records nothing."""
    core.events.signal_group(guids.EVENT_GROUP_MEMORY_MAP_CHANGE)
    assert core.trace.records == []


def test_memory_map_change_notifies_its_group(core: Core, boot_services: BootServices) -> None:
    """A moving map key runs the members of EFI_EVENT_GROUP_MEMORY_MAP_CHANGE."""
    log: list[str] = []
    group = guids.EVENT_GROUP_MEMORY_MAP_CHANGE
    boot_services.create_event_ex(SIGNAL, 8, logger(log, "changed"), None, group)
    log.clear()
    core.memory.allocate_pages(0, 4, 1, 0, "Driver")
    assert log == ["changed"]


# ---- task priority levels -------------------------------------------------------------------------------------------


def test_restore_above_the_current_tpl_sets_it(core: Core, boot_services: BootServices) -> None:
    """A RestoreTPL that raises is done as edk2's release build does it; judging it is an oracle's business."""
    boot_services.restore_tpl(16)
    assert core.trace.tpl == 16


def test_raise_below_the_current_tpl_dispatches_nothing_by_itself(core: Core, boot_services: BootServices) -> None:
    """A RaiseTPL that lowers sets the TPL, and the next service runs what has been held back."""
    log: list[str] = []
    event = boot_services.create_event(SIGNAL, 8, logger(log, "ran"))
    boot_services.raise_tpl(16)
    boot_services.signal_event(event)
    assert boot_services.raise_tpl(4) == 16
    assert log == []
    boot_services.close_event(boot_services.create_event(PLAIN, 0, None))
    assert log == ["ran"]


def test_function_that_leaves_the_tpl_lowered_lets_the_queue_overtake(boot_services: BootServices) -> None:
    """edk2 has taken B out of the queue when it notices that C may run; so C runs before B."""
    log: list[str] = []

    def lower(event: int, context: Any) -> None:
        log.append("A")
        boot_services.raise_tpl(4)

    events = [
        boot_services.create_event(SIGNAL, 8, lower),
        boot_services.create_event(SIGNAL, 8, logger(log, "B")),
        boot_services.create_event(SIGNAL, 8, logger(log, "C")),
    ]
    boot_services.raise_tpl(16)
    for event in events:
        boot_services.signal_event(event)
    boot_services.restore_tpl(4)
    assert log == ["A", "C", "B"]


def test_function_that_leaves_the_tpl_raised_keeps_it_for_its_queue_only(
    core: Core, boot_services: BootServices
) -> None:
    """The rest of the queue runs at the TPL that was left behind; the dispatcher ends at the TPL that it was asked for."""
    seen: list[int] = []
    first = boot_services.create_event(SIGNAL, 8, do(lambda: boot_services.raise_tpl(16)))
    second = boot_services.create_event(SIGNAL, 8, do(lambda: seen.append(core.trace.tpl)))
    boot_services.raise_tpl(16)
    boot_services.signal_event(first)
    boot_services.signal_event(second)
    boot_services.restore_tpl(4)
    assert seen == [16]
    assert core.trace.tpl == 4


def test_any_number_is_a_tpl(core: Core, boot_services: BootServices) -> None:
    """TPLs of 64 bits break nothing."""
    huge = (1 << 64) - 1
    boot_services.raise_tpl(huge)
    event = boot_services.create_event(SIGNAL, 8, logger([], 0))
    boot_services.signal_event(event)
    boot_services.restore_tpl(huge)
    assert core.trace.tpl == huge


def test_endless_nesting_ends_the_run(core: Core, boot_services: BootServices) -> None:
    """A function that signals itself and lowers the TPL nests for ever; the run ends as a stack overflow would end it."""

    def again(event: int, context: Any) -> None:
        boot_services.signal_event(event)
        boot_services.restore_tpl(4)

    event = boot_services.create_event(SIGNAL, 8, again)
    with pytest.raises(StepBudgetExceeded):
        boot_services.signal_event(event)
    (stuck,) = records_of(core, Kind.STUCK)
    assert (stuck.agent, stuck.name, stuck.arguments) == ("Driver", "nesting", ("RestoreTPL",))
    assert max(record[3] for record in core.trace.records) <= DEPTH_MAX + 3


def test_refusal_that_a_function_lets_through_is_its_own_answer(core: Core, boot_services: BootServices) -> None:
    """An EfiError out of a notification function does not disturb the one who signalled."""
    log: list[str] = []
    closed = boot_services.create_event(PLAIN, 0, None)
    boot_services.close_event(closed)
    failing = boot_services.create_event_ex(SIGNAL, 16, do(lambda: boot_services.close_event(closed)), None, GROUP)
    boot_services.create_event_ex(SIGNAL, 8, logger(log, "B"), None, GROUP)
    boot_services.signal_event(failing)
    assert log == ["B"]
    assert records_of(core, Kind.ENTRY)[0].status == EfiStatus.INVALID_PARAMETER


# ---- waiting and polling --------------------------------------------------------------------------------------------


def test_wait_gives_the_platform_its_turns(core: Core, boot_services: BootServices) -> None:
    """While the platform has something to do, WaitForEvent lets it, at 100 µs a step."""
    event = boot_services.create_event(PLAIN, 0, None)
    steps: list[int] = []

    def idle() -> bool:
        steps.append(core.events.now_100ns)
        if len(steps) == 5:
            core.events.signal(event)
        return True

    core.idle = idle
    assert boot_services.wait_for_event((event,)) == 0
    assert steps == [0, 1_000, 2_000, 3_000, 4_000]


def test_wait_sees_what_the_last_step_signalled(core: Core, boot_services: BootServices) -> None:
    """A platform that signals and then has nothing more to do has still answered."""
    event = boot_services.create_event(PLAIN, 0, None)

    def idle() -> bool:
        core.events.signal(event)
        return False

    core.idle = idle
    assert boot_services.wait_for_event((event,)) == 0
    assert core.events.now_100ns == 0


def test_peer_that_answers_soon_beats_a_time_limit(core: Core, boot_services: BootServices) -> None:
    """A wait for an answer with a limit of a second does not jump to the limit while the platform is at work."""
    answer = boot_services.create_event(PLAIN, 0, None)
    limit = boot_services.create_event(TIMER, 0, None)
    boot_services.set_timer(limit, RELATIVE, 1000 * MS_100NS)
    left = [20]

    def idle() -> bool:
        left[0] -= 1
        if left[0] == 0:
            core.events.signal(answer)
        return left[0] > 0

    core.idle = idle
    assert boot_services.wait_for_event((limit, answer)) == 1


def test_wait_jumps_to_the_next_timer_when_the_platform_is_quiet(core: Core, boot_services: BootServices) -> None:
    """Nothing else can happen before, so an hour costs a few turns."""
    event = boot_services.create_event(TIMER, 0, None)
    boot_services.set_timer(event, RELATIVE, 3_600_000 * MS_100NS)
    assert boot_services.wait_for_event((event,)) == 0
    assert core.events.now_100ns == 3_600_000 * MS_100NS
    assert len(core.trace.records) < 10


def test_wait_that_nothing_can_end_is_stuck(core: Core, boot_services: BootServices) -> None:
    """Without a timer and with a platform at rest, the run ends and the trace names who waits."""
    event = boot_services.create_event(PLAIN, 0, None)
    with pytest.raises(StepBudgetExceeded):
        boot_services.wait_for_event((event,))
    (stuck,) = records_of(core, Kind.STUCK)
    assert (stuck.agent, stuck.name, stuck.arguments) == ("Driver", "no-progress", ("WaitForEvent",))


def test_wait_for_a_timer_after_timers_are_off_is_stuck(core: Core, boot_services: BootServices) -> None:
    """An armed timer is no source of progress once the timer interrupt is off."""
    event = boot_services.create_event(TIMER, 0, None)
    boot_services.set_timer(event, RELATIVE, MS_100NS)
    core.events.timers_off()
    with pytest.raises(StepBudgetExceeded):
        boot_services.wait_for_event((event,))
    assert records_of(core, Kind.STUCK)[0].name == "no-progress"


@pytest.mark.parametrize("budget", [300, 301])
def test_wait_with_somebody_elses_periodic_timer_has_no_end(
    core: Core, boot_services: BootServices, budget: int
) -> None:
    """A ticking machine on which the awaited event never comes uses up the budget, though nothing is recorded.

    Whether it runs out in a look at the event or in a tick is all the same.
    """
    ticking, never = boot_services.create_event(TIMER, 0, None), boot_services.create_event(PLAIN, 0, None)
    boot_services.set_timer(ticking, PERIODIC, MS_100NS)
    core.step_budget = budget
    with pytest.raises(StepBudgetExceeded):
        boot_services.wait_for_event((never,))
    assert records_of(core, Kind.STUCK)[0].name == "endless-wait"


def test_many_bounded_waits_are_no_endless_one(core: Core, boot_services: BootServices) -> None:
    """Each wait takes a tenth of the budget of turns: together they use it up."""
    ticking, awaited = boot_services.create_event(TIMER, 0, None), boot_services.create_event(TIMER, 0, None)
    boot_services.set_timer(ticking, PERIODIC, MS_100NS)
    core.step_budget = 300
    with pytest.raises(StepBudgetExceeded):  # noqa: PT012
        for _ in range(20):
            boot_services.set_timer(awaited, RELATIVE, 300 * MS_100NS)
            boot_services.wait_for_event((awaited,))
    assert records_of(core, Kind.STUCK)[0].name == "step-budget"


def test_wait_error_carries_the_index(boot_services: BootServices) -> None:
    """The caller learns which event cannot be waited for."""
    plain = boot_services.create_event(PLAIN, 0, None)
    with pytest.raises(WaitError) as caught:
        boot_services.wait_for_event((plain, 0))
    assert (caught.value.status, caught.value.index) == (EfiStatus.INVALID_PARAMETER, 1)


def test_wait_error_when_an_event_is_closed_meanwhile(core: Core, boot_services: BootServices) -> None:
    """An event that a notification closes while somebody waits for it ends the wait."""
    event = boot_services.create_event(PLAIN, 0, None)
    timer = boot_services.create_event(TIMER | SIGNAL, 8, do(lambda: boot_services.close_event(event)))
    boot_services.set_timer(timer, RELATIVE, MS_100NS)
    assert refusal(boot_services.wait_for_event, (event,)) == EfiStatus.INVALID_PARAMETER


def test_polling_lets_time_pass(core: Core, boot_services: BootServices) -> None:
    """A loop around CheckEvent ends when its time limit comes, and the platform gets a turn each time."""
    turns: list[int] = []
    core.idle = lambda: turns.append(0) is None
    event = boot_services.create_event(TIMER, 0, None)
    boot_services.set_timer(event, RELATIVE, 10 * MS_100NS)
    polls = 0
    while True:
        try:
            boot_services.check_event(event)
            break
        except EfiError:
            polls += 1
    assert polls == len(turns) == 10 * MS_100NS // 100


# ---- clock and timers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("microseconds", "turns"), [(0, 0), (1, 1), (100, 1), (101, 2), (6_400, 64), (10**9, 64)])
def test_stall_gives_the_platform_a_turn_for_each_100_us(
    core: Core, boot_services: BootServices, microseconds: int, turns: int
) -> None:
    """One turn for every 100 µs begun, at most 64 for one Stall; the clock moves by exactly its time."""
    seen: list[int] = []
    core.idle = lambda: seen.append(0) is None
    boot_services.stall(microseconds)
    assert len(seen) == turns
    assert core.events.now_100ns == microseconds * 10


def test_stall_inside_a_notification_of_a_stall(core: Core, boot_services: BootServices) -> None:
    """Time that a notification takes belongs to the stall that it interrupts; it can only make it longer."""
    event = boot_services.create_event(TIMER | SIGNAL, 8, do(lambda: boot_services.stall(30_000)))
    boot_services.set_timer(event, RELATIVE, MS_100NS)
    boot_services.stall(20_000)
    assert core.events.now_100ns == TIMER_TICK_100NS + 30_000 * 10


def test_relative_timer_fires_once_at_the_interrupt_after_its_time(core: Core, boot_services: BootServices) -> None:
    """A timer of 15 ms comes due at the second timer interrupt, and no more after that."""
    seen: list[int] = []
    event = boot_services.create_event(TIMER | SIGNAL, 8, do(lambda: seen.append(core.events.now_100ns)))
    boot_services.set_timer(event, RELATIVE, 15 * MS_100NS)
    core.events.advance(100 * MS_100NS)
    assert seen == [2 * TIMER_TICK_100NS]


def test_periodic_timer_faster_than_the_interrupt_fires_once_each(core: Core, boot_services: BootServices) -> None:
    """Periods that were missed are not made up for."""
    log: list[str] = []
    event = boot_services.create_event(TIMER | SIGNAL, 8, logger(log, "tick"))
    boot_services.set_timer(event, PERIODIC, 1)
    core.events.advance(50 * MS_100NS)
    assert log == ["tick"] * 5


def test_timers_of_one_moment_come_in_the_order_of_setting(core: Core, boot_services: BootServices) -> None:
    """Of equal times, the timer that was set first is signalled first; setting again loses the place."""
    log: list[str] = []
    events = [boot_services.create_event(TIMER | SIGNAL, 8, logger(log, name)) for name in "ABC"]
    for event in (*events, events[0]):
        boot_services.set_timer(event, RELATIVE, MS_100NS)
    core.events.advance(TIMER_TICK_100NS)
    assert log == ["B", "C", "A"]


def test_closing_cancels_the_timer(core: Core, boot_services: BootServices) -> None:
    """Nothing comes due for an event that is closed."""
    log: list[str] = []
    event = boot_services.create_event(TIMER | SIGNAL, 8, logger(log, "never"))
    boot_services.set_timer(event, PERIODIC, MS_100NS)
    boot_services.close_event(event)
    core.events.advance(100 * MS_100NS)
    assert log == []


@pytest.mark.parametrize("tpl", [30, 31])
def test_timer_that_is_due_at_a_high_tpl_comes_when_the_tpl_drops(
    core: Core, boot_services: BootServices, tpl: int
) -> None:
    """Time passes at any TPL, but the timer interrupt's work waits."""
    log: list[str] = []
    event = boot_services.create_event(TIMER | SIGNAL, 16, logger(log, "ran"))
    boot_services.set_timer(event, RELATIVE, MS_100NS)
    old = boot_services.raise_tpl(tpl)
    core.events.advance(100 * MS_100NS)
    assert core.events.now_100ns == 100 * MS_100NS
    assert log == []
    boot_services.restore_tpl(old)
    assert log == ["ran"]


def test_timers_off_keeps_the_clock_running(core: Core, boot_services: BootServices) -> None:
    """After timers are off time passes and nothing comes due, except a time of 0, which needs no interrupt."""
    log: list[str] = []
    event = boot_services.create_event(TIMER | SIGNAL, 8, logger(log, "late"))
    boot_services.set_timer(event, PERIODIC, MS_100NS)
    core.events.timers_off()
    core.events.timers_off()
    boot_services.stall(100_000)
    assert core.events.now_100ns == 100 * MS_100NS
    assert log == []
    at_once = boot_services.create_event(TIMER | SIGNAL, 8, logger(log, "at once"))
    boot_services.set_timer(at_once, RELATIVE, 0)
    assert log == ["at once"]


def test_timer_notification_may_turn_timers_off(core: Core, boot_services: BootServices) -> None:
    """What comes due after that in the same stretch of time does not."""
    log: list[str] = []
    first = boot_services.create_event(TIMER | SIGNAL, 8, do(core.events.timers_off))
    second = boot_services.create_event(TIMER | SIGNAL, 8, logger(log, "never"))
    boot_services.set_timer(first, RELATIVE, 10 * MS_100NS)
    boot_services.set_timer(second, RELATIVE, 20 * MS_100NS)
    core.events.advance(100 * MS_100NS)
    assert log == []
    assert core.events.now_100ns == 100 * MS_100NS


def test_periodic_timer_in_an_endless_stall_uses_up_the_budget(core: Core, boot_services: BootServices) -> None:
    """Timer interrupts count as steps, so that Stall(2^64 - 1) ends."""
    event = boot_services.create_event(TIMER, 0, None)
    boot_services.set_timer(event, PERIODIC, 0)
    core.step_budget = 300
    with pytest.raises(StepBudgetExceeded):
        boot_services.stall((1 << 64) - 1)
    assert records_of(core, Kind.STUCK)[0].arguments == ("Stall",)


def test_timer_signals_a_plain_event_until_it_is_checked(core: Core, boot_services: BootServices) -> None:
    """A waitable timer event that comes due twice is signalled once."""
    event = boot_services.create_event(TIMER | WAIT, 8, logger([], 0))
    boot_services.set_timer(event, PERIODIC, 10 * MS_100NS)
    core.events.advance(25 * MS_100NS)
    boot_services.check_event(event)
    assert refusal(boot_services.check_event, event) == EfiStatus.NOT_READY
    boot_services.set_timer(event, CANCEL, 0)
