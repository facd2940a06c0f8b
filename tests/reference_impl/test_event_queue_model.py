"""The event queues against a model of the same rules: one list of what is pending, and no queues at all.

The rules, from the reference and not from the code:
* what runs next is the pending notification with the highest TPL, of these the one that was queued first, as long as
  that TPL is above the processor's;
* it stops being pending, and a signal-type event is unsignalled, before it runs; it runs at its own TPL;
* every service gives what has become pending its chance before it returns;
* queueing again moves a notification to the end; signalling a signalled event does nothing; signalling a member queues
  the group; a group's signal leaves the members' own signal state alone; a closed event is pending no more.
"""

# ruff: noqa: D102 - the rules above say it all

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import EventType
from reference_impl.uefi.status import EfiError
from tests.reference_impl.conftest import make_core

PLAIN, WAIT, SIGNAL = 0, int(EventType.NOTIFY_WAIT), int(EventType.NOTIFY_SIGNAL)
GROUPS = ("", "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b")

actions = st.one_of(
    st.tuples(st.just("signal"), st.integers(0, 7)),
    st.tuples(st.just("close"), st.integers(0, 7)),
    st.tuples(st.just("group"), st.sampled_from(GROUPS[1:])),
    st.tuples(st.just("raised"), st.integers(0, 7)),
    st.tuples(st.just("check"), st.integers(0, 7)),
)
plans = st.tuples(
    st.sampled_from((SIGNAL, SIGNAL, SIGNAL, SIGNAL, WAIT, PLAIN)),
    st.sampled_from((8, 8, 16)),
    st.sampled_from((GROUPS[1], GROUPS[1], *GROUPS)),
    st.lists(actions, max_size=2),
)
orders = st.one_of(
    st.sampled_from(("edk2", "fifo")), st.integers(2, 4).flatmap(lambda count: st.permutations(range(count)).map(tuple))
)


class Modelled:
    """One event of the model; `actions` are what its function still does, one in each run."""

    def __init__(self, number: int, kind: int, tpl: int, group: str, todo: list[tuple[str, Any]]) -> None:
        self.number, self.kind, self.tpl, self.group, self.actions = number, kind, tpl, group, list(todo)
        self.signalled = self.closed = False


class Model:
    """The machine as the rules describe it."""

    def __init__(self, order: Any) -> None:
        self.order = order
        self.tpl = 4
        self.events: list[Modelled] = []
        self.pending: list[Modelled] = []
        self.log: list[tuple[Any, ...]] = []

    def run_above(self, level: int) -> None:
        while ready := [event for event in self.pending if event.tpl > level]:
            event = max(ready, key=lambda candidate: candidate.tpl)  # max gives the first of equals
            self.pending.remove(event)
            if event.kind == SIGNAL:
                event.signalled = False
            self.tpl = event.tpl
            self.log.append((event.number, self.tpl))
            if event.actions:
                self.act(*event.actions.pop(0))
        self.tpl = level

    def act(self, what: str, argument: Any) -> None:
        if what == "group":
            self.queue_group(argument)
            self.run_above(self.tpl)
        elif self.events:
            event = self.events[argument % len(self.events)]
            if what == "raised":
                level, self.tpl = self.tpl, max(self.tpl, 16)
                self.signal(event)
                self.run_above(level)
            else:
                self.log.append((what, getattr(self, what)(event)))

    def queue(self, event: Modelled) -> None:
        if event in self.pending:
            self.pending.remove(event)
        self.pending.append(event)

    def queue_group(self, group: str) -> None:
        members = [event for event in self.events if event.group == group and event.kind == SIGNAL and not event.closed]
        newest_first = sorted(members, key=lambda event: -event.number)
        if self.order == "fifo":
            newest_first.reverse()
        elif self.order != "edk2":
            place = {index: k for k, index in enumerate(self.order)}
            ranks = sorted(range(len(newest_first)), key=lambda index: place.get(index, index))
            newest_first = [newest_first[index] for index in ranks]
        for event in newest_first:
            self.queue(event)

    def signal(self, event: Modelled) -> str:
        if event.closed:
            return "INVALID_PARAMETER"
        if not event.signalled:
            event.signalled = True
            if event.kind == SIGNAL and event.group:
                self.queue_group(event.group)
            elif event.kind == SIGNAL:
                self.queue(event)
        self.run_above(self.tpl)
        return "SUCCESS"

    def close(self, event: Modelled) -> str:
        if event.closed:
            return "INVALID_PARAMETER"
        event.closed = True
        if event in self.pending:
            self.pending.remove(event)
        return "SUCCESS"

    def check(self, event: Modelled) -> str:
        if event.closed or event.kind == SIGNAL:
            return "INVALID_PARAMETER"
        if not event.signalled and event.kind == WAIT:
            self.queue(event)
            self.run_above(self.tpl)
        was, event.signalled = event.signalled, False
        return "SUCCESS" if was else "NOT_READY"


class Real:
    """The reference core, driven through its boot services in the same words."""

    def __init__(self, order: Any) -> None:
        self.core = make_core()
        self.core.events.order = order
        self.services = BootServices(self.core, "Driver")
        self.events: list[int] = []
        self.log: list[tuple[Any, ...]] = []

    def create(self, kind: int, tpl: int, group: str, todo: list[tuple[str, Any]]) -> None:
        number, left = len(self.events), list(todo)

        def notify(event: int, context: object) -> None:
            assert event == self.events[number]
            self.log.append((number, self.core.trace.tpl))
            if left:
                self.act(*left.pop(0))

        self.events.append(self.services.create_event_ex(kind, tpl, notify if kind else None, None, group))

    def act(self, what: str, argument: Any) -> None:
        if what == "group":
            self.core.events.signal_group(argument)
        elif self.events:
            event = self.events[argument % len(self.events)]
            if what == "raised":
                level = self.services.raise_tpl(max(self.core.trace.tpl, 16))
                self.answer("signal", event)
                self.services.restore_tpl(level)
            else:
                self.log.append((what, self.answer(what, event)))

    def answer(self, what: str, event: int) -> str:
        try:
            getattr(self.services, f"{what}_event")(event)
        except EfiError as error:
            return error.status.name
        return "SUCCESS"


class EventQueues(RuleBasedStateMachine):
    """Drives core and model with the same calls, and compares what ran and every event's state."""

    @initialize(order=orders, first=st.lists(plans, min_size=3, max_size=7))
    def start(self, order: Any, first: list[tuple[Any, ...]]) -> None:
        self.model, self.real = Model(order), Real(order)
        for plan in first:
            self.create(plan)

    @precondition(lambda self: len(self.model.events) < 8)
    @rule(plan=plans)
    def create_another(self, plan: tuple[Any, ...]) -> None:
        self.create(plan)

    def create(self, plan: tuple[Any, ...]) -> None:
        self.model.events.append(Modelled(len(self.model.events), *plan))
        self.real.create(*plan)

    @rule(level=st.sampled_from((8, 16, 31)), several=st.lists(actions, min_size=2, max_size=6))
    def act_at_a_raised_tpl(self, level: int, several: list[tuple[str, Any]]) -> None:
        before = self.model.tpl
        self.raise_tpl(level)
        for action in several:
            self.act(action)
        self.restore_tpl(before)

    @rule(action=actions)
    def act(self, action: tuple[str, Any]) -> None:
        self.model.act(*action)
        self.real.act(*action)

    @rule(tpl=st.sampled_from((8, 16, 31)))
    def raise_tpl(self, tpl: int) -> None:
        if tpl >= self.model.tpl:
            assert self.real.services.raise_tpl(tpl) == self.model.tpl
            self.model.tpl = tpl

    @rule(tpl=st.sampled_from((4, 8, 16)))
    def restore_tpl(self, tpl: int) -> None:
        if tpl <= self.model.tpl:
            self.real.services.restore_tpl(tpl)
            self.model.run_above(tpl)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.real.log == self.model.log
        assert self.real.core.trace.tpl == self.model.tpl
        live = [(self.real.events.index(event.id), event.signalled) for event in self.real.core.events.live()]
        assert live == [(event.number, event.signalled) for event in self.model.events if not event.closed]


EventQueues.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, database=None)
TestEventQueues = EventQueues.TestCase
