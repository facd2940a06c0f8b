"""Events, task priority levels, timers and the clock (UEFI 2.10 §7.1), as edk2's core runs them.

How it works:

* There is one queue of notifications per TPL. `restore_tpl` is the dispatcher: when the processor's TPL drops, all that
  is pending above the new TPL runs, highest TPL first, each queue from its front. edk2 does its work inside services
  under a lock at a high TPL; giving the lock back restores the caller's TPL and so dispatches. Here a service changes
  state first and calls `_settle` last, which comes to the same.
* An event leaves its queue, and its signal state is cleared, before its function runs. An event that is queued again
  loses its place and goes to the end.
* Signalling a group queues its members, in an order that the scenario chooses (`Events.order`), without touching their
  own signal state.
* Timers come due at the timer interrupt, once in `TIMER_TICK_100NS`. The interrupt queues one internal event at
  TPL_HIGH_LEVEL - 1; its function signals the events that are due. A timer that is set counts from the last interrupt,
  and so may come up to one tick early.
* Time passes only where the processor waits: Stall, WaitForEvent, and a CheckEvent that finds nothing. There the rest
  of the platform gets its turn as well (`core.idle`).

Events are integers to everybody else. They are never used again, so that a closed event stays recognisable.

What deliberately lives elsewhere: ExitBootServices (`exit_boot_services.py`); who may call which service at which TPL
(an oracle). Not modelled: the runtime list of EVT_RUNTIME events, as nothing here calls SetVirtualAddressMap.

Sources: UEFI 2.10 §7.1 and §7.5; edk2 MdeModulePkg/Core/Dxe/Event.
"""

from __future__ import annotations

from bisect import insort_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reference_impl.uefi import guids
from reference_impl.uefi.core import service
from reference_impl.uefi.definitions import (
    EVT_NOTIFY_SIGNAL,
    EVT_NOTIFY_WAIT,
    EVT_SIGNAL_EXIT_BOOT_SERVICES,
    EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE,
    EVT_TIMER,
    TPL_APPLICATION,
    TPL_CALLBACK,
    TPL_HIGH_LEVEL,
    TPL_NOTIFY,
)
from reference_impl.uefi.status import EfiError, EfiStatus

if TYPE_CHECKING:
    from reference_impl.uefi.core import Core

Notify = Callable[[int, Any], object]
"""A notification function: `function(event, context)`."""

EVENT_TYPES = frozenset(
    {
        0,
        EVT_TIMER,
        EVT_NOTIFY_WAIT,
        EVT_NOTIFY_SIGNAL,
        EVT_TIMER | EVT_NOTIFY_WAIT,
        EVT_TIMER | EVT_NOTIFY_SIGNAL,
        EVT_SIGNAL_EXIT_BOOT_SERVICES,
        EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE,
    }
)
"""The types that CreateEvent takes; every other combination of bits is refused."""

FIRST_EVENT = 0xE0000001
EVENT_SIZE_BYTES = 184  # of edk2's record of one event
TIMER_TPL = TPL_HIGH_LEVEL - 1
TIMER_TICK_100NS = 100_000  # edk2's default timer period: 10 ms
PLATFORM_STEP_100NS = 1_000  # what one step of the rest of the platform takes: 100 µs
POLL_100NS = 100  # what a fruitless CheckEvent takes: 10 µs
STALL_STEPS_MAX = 64
DEPTH_MAX = 128  # of the trace: deeper nesting overflows the stack of real firmware, too

_NOTIFY = EVT_NOTIFY_WAIT | EVT_NOTIFY_SIGNAL
_NOTIFY_TPLS = (TPL_APPLICATION, TPL_CALLBACK, TPL_NOTIFY)
_TYPE_OF_GROUP = {
    guids.EVENT_GROUP_EXIT_BOOT_SERVICES: EVT_SIGNAL_EXIT_BOOT_SERVICES,
    guids.EVENT_GROUP_VIRTUAL_ADDRESS_CHANGE: EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE,
}
_GROUP_OF_TYPE = {event_type: group for group, event_type in _TYPE_OF_GROUP.items()}
_TIMER_CANCEL, _TIMER_PERIODIC, _TIMER_RELATIVE = 0, 1, 2
_UNARMED = -1


class WaitError(EfiError):
    """WaitForEvent's refusal of one event: it tells the caller the index of that event as well."""

    def __init__(self, status: EfiStatus, index: int) -> None:
        super().__init__(status)
        self.index = index


class Event:
    """One event.

    id               what everybody else knows it by
    event_type       one of `EVENT_TYPES`
    tpl              of its notification; 0 where it has none
    function         what runs, None where nothing does
    group            GUID, "" outside of any group
    agent            the image that created it
    address          of the core's record of it
    signalled        its own signal state; signalling a group does not set it
    queued           whether it stands in the queue of its TPL
    trigger_100ns    when its timer comes due, `_UNARMED` where the timer is off
    period_100ns     of a periodic timer, else 0
    """

    __slots__ = (
        "address",
        "agent",
        "context",
        "event_type",
        "function",
        "group",
        "id",
        "period_100ns",
        "queued",
        "signalled",
        "tpl",
        "trigger_100ns",
    )

    def __init__(
        self,
        event_id: int,
        event_type: int,
        tpl: int,
        function: Notify | None,
        context: Any,
        group: str,
        agent: str,
        address: int,
    ) -> None:
        self.id = event_id
        self.event_type = event_type
        self.tpl = tpl
        self.function = function
        self.context = context
        self.group = group
        self.agent = agent
        self.address = address
        self.signalled = False
        self.queued = False
        self.trigger_100ns = _UNARMED
        self.period_100ns = 0


def _trigger_of(event: Event) -> int:
    return event.trigger_100ns


class Events:
    """All events of one core, the queues of their notifications, and the clock.

    now_100ns   the clock
    order       in which the members of a group are queued: "edk2" (newest-created first), "fifo" (oldest first), or a
                permutation of edk2's order: the k-th is edk2's number order[k]; members that it does not name follow in
                edk2's order
    pending     bit n: notifications of TPL n may wait; one test tells that there is nothing to dispatch
    on_close    called with each event that is closed, while it is still known; the handle database forgets its
                registrations there
    on_drop     called when RestoreTPL is about to lower the TPL: what interrupts may bring before that, it brings there
    """

    __slots__ = (
        "_events",
        "_frozen_100ns",
        "_groups",
        "_next_event",
        "_queues",
        "_steps",
        "_timer_event",
        "_timers",
        "_waiting_since",
        "core",
        "now_100ns",
        "on_close",
        "on_drop",
        "order",
        "pending",
        "trace",
    )

    def __init__(self, core: Core) -> None:
        self.core = core
        self.trace = core.trace
        self.order: str | tuple[int, ...] = "edk2"
        self.on_close: Callable[[int], object] | None = None
        self.on_drop: Callable[[], object] | None = None
        self.now_100ns = 0
        self._events: dict[int, Event] = {}
        self._next_event = FIRST_EVENT
        self._groups: dict[str, list[Event]] = {}  # oldest first; only members that have something to queue
        self._queues: list[list[Event]] = [[] for _ in range(TPL_HIGH_LEVEL)]
        self.pending = 0
        self._timers: list[Event] = []  # armed, the next to come due first
        self._timer_event = Event(0, EVT_NOTIFY_SIGNAL, TIMER_TPL, None, None, "", "", 0)
        self._frozen_100ns = -1  # the clock at the last timer interrupt of all, once there are none any more
        self._steps = 0
        self._waiting_since: int | None = None  # the count of steps when the wait under way began

    # ---- task priority level --------------------------------------------------------------------------------------

    def raise_tpl(self, new: int) -> int:
        """Set the TPL and give the one before. edk2's release build sets a lower TPL, too."""
        trace = self.trace
        old = trace.tpl
        trace.tpl = new
        return old

    def restore_tpl(self, new: int) -> None:
        """Run what is pending above the TPL `new`, then set it. edk2's release build sets a higher TPL, too."""
        if self.on_drop is not None and new < self.trace.tpl:
            self.on_drop()
        while self.pending:
            tpl = self.pending.bit_length() - 1
            if tpl <= new:
                break
            self.trace.tpl = tpl
            self._drain(tpl)
        self.trace.tpl = new

    def _settle(self) -> None:
        """End of a service: giving its lock back lets run what is pending above the caller's TPL."""
        tpl = self.trace.tpl
        if self.pending.bit_length() > tpl + 1:
            self.restore_tpl(tpl)

    def _drain(self, tpl: int) -> None:
        """Run the notifications of one TPL until there are none, including those that are queued meanwhile."""
        core = self.core
        trace = self.trace
        queue = self._queues[tpl]
        if trace.depth > DEPTH_MAX:
            self._stuck("nesting")
        while queue:
            event = queue.pop(0)
            event.queued = False
            # A waitable event keeps its state: CheckEvent clears it.
            if event.event_type & EVT_NOTIFY_SIGNAL:
                event.signalled = False
            # Only where a function before has left the TPL lower than it found it.
            if self.pending.bit_length() > trace.tpl + 1:
                self.restore_tpl(trace.tpl)
            function = event.function
            if function is None:  # the internal event of the timer
                self._check_timers()
            else:
                core.enter(event.agent, "Notify", (event.id, event.group), function, event.id, event.context)
        self.pending &= ~(1 << tpl)

    def _queue(self, event: Event) -> None:
        queue = self._queues[event.tpl]
        if event.queued:
            queue.remove(event)
        else:
            event.queued = True
        queue.append(event)
        self.pending |= 1 << event.tpl

    # ---- events ---------------------------------------------------------------------------------------------------

    def create(self, event_type: int, tpl: int, function: Notify | None, context: Any, group: str, agent: str) -> int:
        """Make an event and give its id.

        Raises EfiError: INVALID_PARAMETER for a type that does not exist, a TPL that is not allowed for notifications,
        a legacy type together with a group, or a missing function; OUT_OF_RESOURCES.
        UEFI 2.10 §7.1.1 and §7.1.2.
        """
        notifies = event_type & _NOTIFY
        if event_type not in EVENT_TYPES or (notifies and tpl not in _NOTIFY_TPLS):
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        if not group:
            group = _GROUP_OF_TYPE.get(event_type, "")
        elif event_type in _GROUP_OF_TYPE:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        else:
            # A member of the two groups of old has their type, whatever it asked for: a plain event must notify, then.
            event_type = _TYPE_OF_GROUP.get(group, event_type)
            notifies = event_type & _NOTIFY
        if not notifies:
            tpl, function, context = 0, None, None
        elif function is None or not TPL_APPLICATION < tpl < TPL_HIGH_LEVEL:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        address = self.core.allocate(EVENT_SIZE_BYTES)
        event_id = self._next_event
        self._next_event = event_id + 1
        event = Event(event_id, event_type, tpl, function, context, group, agent, address)
        self._events[event_id] = event
        if group and event_type & EVT_NOTIFY_SIGNAL:
            self._groups.setdefault(group, []).append(event)
        return event_id

    def find(self, event_id: int) -> Event:
        """The event behind an id. Raises EfiError(INVALID_PARAMETER) for what is no event or closed."""
        event = self._events.get(event_id)
        if event is None:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        return event

    def is_live(self, event_id: int) -> bool:
        """Whether this event exists and is not closed."""
        return event_id in self._events

    def live(self) -> list[Event]:
        """All events that are not closed, oldest first."""
        return list(self._events.values())

    def close(self, event_id: int) -> None:
        """End an event: its timer is off, its queued notification never runs, its memory is given back.

        Raises EfiError(INVALID_PARAMETER) for what is no event. UEFI 2.10 §7.1.3.
        """
        event = self.find(event_id)
        self._disarm(event)
        if event.queued:
            event.queued = False
            self._queues[event.tpl].remove(event)
        if event.group and event.event_type & EVT_NOTIFY_SIGNAL:
            members = self._groups[event.group]
            members.remove(event)
            if not members:
                del self._groups[event.group]
        if self.on_close is not None:
            self.on_close(event_id)
        del self._events[event_id]
        self.core.free(event.address)
        self._settle()

    def signal(self, event_id: int) -> None:
        """Signal an event, or the whole group that it belongs to. Nothing happens where it is signalled already.

        Raises EfiError(INVALID_PARAMETER) for what is no event. UEFI 2.10 §7.1.4.
        """
        self._signal(self.find(event_id))
        self._settle()

    def _signal(self, event: Event) -> None:
        if event.signalled:
            return
        event.signalled = True
        if event.event_type & EVT_NOTIFY_SIGNAL:
            if event.group:
                self._queue_group(event.group)
            else:
                self._queue(event)

    def signal_group(self, group: str) -> None:
        """Queue every member of a group and run what the TPL allows. One look-up where the group has no member."""
        if group in self._groups:
            self._queue_group(group)
            self._settle()

    def _queue_group(self, group: str) -> None:
        members = self._groups.get(group, ())
        order = self.order
        if isinstance(order, str):
            chosen = members[::-1] if order == "edk2" else members[:]
        else:
            newest_first = members[::-1]
            chosen = [newest_first[index] for index in order if index < len(newest_first)]
            chosen += newest_first[len(order) :]
        for event in chosen:
            self._queue(event)

    def check(self, event_id: int) -> bool:
        """Whether the event is signalled; clears that. The function of an event that notifies waiters runs first.

        Raises EfiError(INVALID_PARAMETER) for what is no event, and for EVT_NOTIFY_SIGNAL. UEFI 2.10 §7.1.6.
        """
        event = self.find(event_id)
        event_type = event.event_type
        if event_type & EVT_NOTIFY_SIGNAL:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        if not event.signalled and event_type & EVT_NOTIFY_WAIT:
            self._queue(event)
            self._settle()
        signalled = event.signalled
        event.signalled = False
        return signalled

    def wait(self, event_ids: tuple[int, ...]) -> int:
        """Let time pass until one of the events is signalled; give its index and clear it.

        Raises EfiError: UNSUPPORTED above TPL_APPLICATION; INVALID_PARAMETER without events; WaitError for an event
        that cannot be waited for. Ends the run (StepBudgetExceeded) where nothing can ever signal one of them: no timer
        is armed, the platform has nothing left to do, and no event has a function that looks for itself.
        UEFI 2.10 §7.1.5.
        """
        if self.trace.tpl != TPL_APPLICATION:
            raise EfiError(EfiStatus.UNSUPPORTED)
        if not event_ids:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        quiet = False
        self._waiting_since = self._steps
        while True:
            for index, event_id in enumerate(event_ids):
                try:
                    if self.check(event_id):
                        self._waiting_since = None
                        return index
                except EfiError as error:
                    self._waiting_since = None
                    raise WaitError(error.status, index) from None
            self._step()
            # While the platform is at work, time passes at its pace and not up to the next timer: a time limit of
            # seconds must not run out before a peer that answers within milliseconds.
            if self.core.idle():
                quiet = False
                self.advance(PLATFORM_STEP_100NS)
            elif not quiet:
                quiet = True  # the platform's last step may have signalled something: look once more
            elif self._timers and self._frozen_100ns < 0:
                quiet = False
                self.advance(max(self._next_interrupt() - self.now_100ns, 0))
            elif any(self.find(event_id).event_type & EVT_NOTIFY_WAIT for event_id in event_ids):
                self.advance(PLATFORM_STEP_100NS)
            else:
                self._stuck("no-progress")

    # ---- clock and timers -----------------------------------------------------------------------------------------

    def set_timer(self, event_id: int, delay_type: int, trigger_time_100ns: int) -> None:
        """Arm or cancel an event's timer. The signal state stays as it is.

        Raises EfiError(INVALID_PARAMETER) for what is no event, an unknown delay type, or an event without EVT_TIMER.
        UEFI 2.10 §7.1.7.
        """
        event = self.find(event_id)
        if delay_type not in (_TIMER_CANCEL, _TIMER_PERIODIC, _TIMER_RELATIVE) or not event.event_type & EVT_TIMER:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        self._disarm(event)
        if delay_type == _TIMER_CANCEL:
            return
        if delay_type == _TIMER_PERIODIC:
            trigger_time_100ns = trigger_time_100ns or TIMER_TICK_100NS
            event.period_100ns = trigger_time_100ns
        self._arm(event, self._system_time() + trigger_time_100ns)
        if trigger_time_100ns == 0:
            self._queue(self._timer_event)
            self._settle()

    def _arm(self, event: Event, trigger_100ns: int) -> None:
        event.trigger_100ns = trigger_100ns
        insort_right(self._timers, event, key=_trigger_of)

    def _disarm(self, event: Event) -> None:
        event.period_100ns = 0
        if event.trigger_100ns != _UNARMED:
            event.trigger_100ns = _UNARMED
            self._timers.remove(event)

    def timers_off(self) -> None:
        """From now on there is no timer interrupt. What is armed stays armed and never comes due."""
        if self._frozen_100ns < 0:
            self._frozen_100ns = self._system_time()

    def _system_time(self) -> int:
        """The clock at the last timer interrupt: all that timers know of the time."""
        frozen = self._frozen_100ns
        return self.now_100ns - self.now_100ns % TIMER_TICK_100NS if frozen < 0 else frozen

    def _next_interrupt(self) -> int:
        """The timer interrupt at which the next timer comes due."""
        return -(-self._timers[0].trigger_100ns // TIMER_TICK_100NS) * TIMER_TICK_100NS

    def advance(self, duration_100ns: int) -> None:
        """Let time pass. Timers come due in order, and their notifications run as far as the TPL allows."""
        target = self.now_100ns + duration_100ns
        while self._timers and self._frozen_100ns < 0:
            due = self._next_interrupt()
            if due > target:
                break
            if due > self.now_100ns:
                self.now_100ns = due
            self._queue(self._timer_event)
            if self.trace.tpl >= TIMER_TPL:
                break  # what has come due is signalled when the TPL drops
            self._step()
            self._settle()
        if target > self.now_100ns:
            self.now_100ns = target

    def _check_timers(self) -> None:
        """Signal the events whose time has come, the earliest first; of equal times, the one that was set first."""
        timers = self._timers
        time = self._system_time()
        while timers and timers[0].trigger_100ns <= time:
            event = timers.pop(0)
            due = event.trigger_100ns
            event.trigger_100ns = _UNARMED
            self._signal(event)
            period = event.period_100ns
            if period:
                # Periods that were missed are not made up for.
                self._arm(event, due + period if due + period > time else time + period)

    def _step(self) -> None:
        """Count a turn that leaves no record. Nothing else would end a wait that turns in circles.

        A wait that took most of the budget had no end; many that took it together may each have had one.
        """
        self._steps += 1
        budget = self.core.step_budget
        if self._steps > budget:
            since = self._waiting_since
            self._stuck("step-budget" if since is None or 2 * (self._steps - since) <= budget else "endless-wait")

    def _stuck(self, reason: str) -> None:
        core = self.core
        core.give_up(core.outer_agent, reason, core.outer_service)


def _plain_create(event_type: Any, notify_tpl: Any, function: Any, context: Any = None, *rest: Any) -> tuple[Any, ...]:
    """CreateEvent's arguments for the trace: the function by its name, a context that is an object left out."""
    name = "" if function is None else getattr(function, "__name__", type(function).__name__)
    return (event_type, notify_tpl, name, context if isinstance(context, int | str) else None, *rest)


class EventServices:
    """Event, timer and task priority services of `BootServices`."""

    __slots__ = ()

    core: Core
    agent: str
    image_handle: int

    @service("CreateEvent", _plain_create)
    def create_event(
        self, event_type: int, notify_tpl: int, function: Notify | None, context: Any = None, out: bool = True
    ) -> int:
        """Create an event and give it.

        EFI_INVALID_PARAMETER: no place for the event, unknown type, TPL of the notification neither TPL_CALLBACK nor
        TPL_NOTIFY, no function. EFI_OUT_OF_RESOURCES. UEFI 2.10 §7.1.1.
        """
        if not out:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        return self.core.events.create(event_type, notify_tpl, function, context, "", self.agent)

    @service("CreateEventEx", _plain_create)
    def create_event_ex(
        self,
        event_type: int,
        notify_tpl: int,
        function: Notify | None,
        context: Any,
        group: str,
        out: bool = True,
    ) -> int:
        """Create an event that belongs to a group, and give it. Without a group ("") it is CreateEvent.

        EFI_INVALID_PARAMETER: as CreateEvent, and the two legacy types together with a group. EFI_OUT_OF_RESOURCES.
        UEFI 2.10 §7.1.2.
        """
        if not out:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        return self.core.events.create(event_type, notify_tpl, function, context, group, self.agent)

    @service("CloseEvent")
    def close_event(self, event: int) -> None:
        """End an event. A queued notification of it does not run any more.

        EFI_INVALID_PARAMETER: no such event. UEFI 2.10 §7.1.3.
        """
        self.core.events.close(event)

    @service("SignalEvent")
    def signal_event(self, event: int) -> None:
        """Signal an event, or the whole group that it belongs to.

        EFI_INVALID_PARAMETER: no such event (edk2; the specification has no status for it). UEFI 2.10 §7.1.4.
        """
        self.core.events.signal(event)

    @service("WaitForEvent")
    def wait_for_event(self, events: tuple[int, ...], out: bool = True) -> int:
        """Wait until one of the events is signalled, clear it, and give its index (0 where no index is asked for).

        EFI_UNSUPPORTED: not at TPL_APPLICATION. EFI_INVALID_PARAMETER: no events; or an event that does not exist or is
        of type EVT_NOTIFY_SIGNAL, whose index `WaitError` carries. UEFI 2.10 §7.1.5.
        """
        index = self.core.events.wait(events)
        return index if out else 0

    @service("CheckEvent")
    def check_event(self, event: int) -> None:
        """Succeed where the event is signalled, and clear it.

        EFI_INVALID_PARAMETER: no such event, or one of type EVT_NOTIFY_SIGNAL. EFI_NOT_READY: not signalled; a little
        time passes then, and the platform moves on, so that polling comes to an end. UEFI 2.10 §7.1.6.
        """
        core = self.core
        if not core.events.check(event):
            core.idle()
            core.events.advance(POLL_100NS)
            raise EfiError(EfiStatus.NOT_READY)

    @service("SetTimer")
    def set_timer(self, event: int, delay_type: int, trigger_time_100ns: int) -> None:
        """Signal the event once after a time, or periodically, or no more.

        EFI_INVALID_PARAMETER: no such event, unknown delay type, no EVT_TIMER. UEFI 2.10 §7.1.7.
        """
        self.core.events.set_timer(event, delay_type, trigger_time_100ns)

    @service("RaiseTPL")
    def raise_tpl(self, new_tpl: int) -> int:
        """Raise the TPL and give the one before. It has no status. UEFI 2.10 §7.1.8."""
        return self.core.events.raise_tpl(new_tpl)

    @service("RestoreTPL")
    def restore_tpl(self, old_tpl: int) -> None:
        """Lower the TPL again; notifications that were held back run. It has no status. UEFI 2.10 §7.1.9."""
        self.core.events.restore_tpl(old_tpl)

    @service("Stall")
    def stall(self, microseconds: int) -> None:
        """Do nothing for a time, while the platform moves on and timers come due. UEFI 2.10 §7.5.2."""
        core = self.core
        events = core.events
        target = events.now_100ns + microseconds * 10
        for _ in range(min(-(-microseconds // 100), STALL_STEPS_MAX)):
            core.idle()
            events.advance(max(min(PLATFORM_STEP_100NS, target - events.now_100ns), 0))
        events.advance(max(target - events.now_100ns, 0))
