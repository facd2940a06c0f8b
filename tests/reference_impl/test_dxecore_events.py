"""The reference core answers as real firmware does: one case for each line on TPLs and events in dxecore_answers.txt.

A probe does what the line's name says and gives the line's right-hand side. How a line reads is told in the
reference's own words: events are A, B, C, D in order of creation, `A( … )A` brackets what happens inside A's function,
"-" is nothing, and statuses have no EFI_ prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import EventType, TimerDelay
from reference_impl.uefi.events import WaitError
from reference_impl.uefi.status import EfiError
from tests.reference_impl.conftest import make_core

ANSWERS = dict(
    line.split(": ", 1)
    for line in Path(__file__).with_name("dxecore_answers.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith(("tpl.", "ev."))
)

NOT_MODELLED: dict[str, str] = {}
"""Lines that the model does not answer, with the reason."""

PLAIN, WAIT, SIGNAL, TIMER = 0, int(EventType.NOTIFY_WAIT), int(EventType.NOTIFY_SIGNAL), int(EventType.TIMER)
EXIT_TYPE = int(EventType.SIGNAL_EXIT_BOOT_SERVICES)
CANCEL, PERIODIC, RELATIVE = int(TimerDelay.CANCEL), int(TimerDelay.PERIODIC), int(TimerDelay.RELATIVE)
GROUP, OTHER_GROUP = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
BOGUS = 0x1234
MS_100NS = 10_000


class Machine:
    """A core, one image on it, the events A, B, C … by name, and what has happened."""

    def __init__(self) -> None:
        self.services = BootServices(make_core(), "Probe")
        self.log: list[str] = []
        self.events: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self.events[name]

    def create(
        self,
        name: str,
        event_type: int = SIGNAL,
        tpl: int = 8,
        group: str = "",
        body: Callable[[], object] | None = None,
        bracket: bool = True,
    ) -> int:
        """Create an event whose function logs its name, with `body` inside."""

        def notify(event: int, context: object) -> None:
            assert event == self.events[name]
            if body is None:
                self.log.append(name)
            elif bracket:
                self.log.append(f"{name}(")
                body()
                self.log.append(f"){name}")
            else:
                self.log.append(name)
                body()

        function = notify if event_type & (WAIT | SIGNAL) else None
        self.events[name] = self.services.create_event_ex(event_type, tpl, function, None, group)
        return self.events[name]

    def create_all(self, names: str, tpls: tuple[int, ...] = (8, 8, 8, 8), group: str = "") -> None:
        """Create events with these names, in this order."""
        for name, tpl in zip(names, tpls, strict=False):
            self.create(name, tpl=tpl, group=group)

    def signal(self, names: str) -> None:
        """Signal these events, one after another."""
        for name in names:
            self.services.signal_event(self[name])

    def signal_raised(self, names: str, tpl: int = 31) -> str:
        """Signal these events while the TPL is raised; what ran when it was restored."""
        old = self.services.raise_tpl(tpl)
        self.signal(names)
        assert not self.log
        self.services.restore_tpl(old)
        return self.ran()

    def ran(self) -> str:
        """What has been logged since the last question."""
        ran, self.log = " ".join(self.log) or "-", []
        return ran

    def status(self, service: Callable[..., object], *arguments: object) -> str:
        """The status that a service answers."""
        try:
            service(*arguments)
        except EfiError as error:
            return error.status.name
        return "SUCCESS"

    def statuses(self, service: Callable[..., object], *calls: tuple[object, ...]) -> str:
        """The statuses of several calls of a service."""
        return " ".join(self.status(service, *arguments) for arguments in calls)

    def check(self, *names: str) -> str:
        """The statuses of CheckEvent on these events, one after another."""
        return self.statuses(self.services.check_event, *((self[name],) for name in names))

    def wait(self, *events: int) -> str:
        """The status of WaitForEvent and the index, 99 where it was not written."""
        try:
            return f"SUCCESS idx={self.services.wait_for_event(events)}"
        except WaitError as error:
            return f"{error.status.name} idx={error.index}"
        except EfiError as error:
            return f"{error.status.name} idx=99"

    def tpl(self) -> int:
        """The current TPL, asked as a driver asks."""
        tpl = self.services.raise_tpl(31)
        self.services.restore_tpl(tpl)
        return tpl


Probe = Callable[[Machine], object]
PROBES: dict[str, Probe] = {}


def probe(line: str) -> Callable[[Probe], Probe]:
    """Make a function the probe of one line."""

    def register(function: Probe) -> Probe:
        assert line not in PROBES, line
        PROBES[line] = function
        return function

    return register


@pytest.mark.parametrize("line", ANSWERS)
def test_core_answers_as_real_firmware(line: str) -> None:
    """Each line of the answers comes out of the reference core word for word."""
    if line not in NOT_MODELLED:
        assert str(PROBES[line](Machine())) == ANSWERS[line]


def test_every_line_has_a_probe_or_a_reason() -> None:
    """No line is forgotten, none is answered twice, and few are left out."""
    assert len(ANSWERS) == 90
    assert sorted([*PROBES, *NOT_MODELLED]) == sorted(ANSWERS)
    assert len(NOT_MODELLED) <= 10
    assert all(NOT_MODELLED.values())


# ---- task priority levels -------------------------------------------------------------------------------------------


@probe("tpl.entry")
def _(m: Machine) -> object:
    return m.tpl()


@probe("tpl.raise_8_8_16_31_returns")
def _(m: Machine) -> object:
    return " ".join(str(m.services.raise_tpl(tpl)) for tpl in (8, 8, 16, 31))


@probe("tpl.after_restore_16_then_4")
def _(m: Machine) -> object:
    m.services.raise_tpl(31)
    m.services.restore_tpl(16)
    first = m.tpl()
    m.services.restore_tpl(4)
    return f"{first} {m.tpl()}"


# ---- groups ---------------------------------------------------------------------------------------------------------


def _group_signal(tpls: tuple[int, ...], name: str) -> Probe:
    def run(m: Machine) -> object:
        m.create_all("ABCD", tpls, GROUP)
        m.signal(name)
        return m.ran()

    return run


PROBES["ev.group.callback.signal_A"] = _group_signal((8, 8, 8, 8), "A")
PROBES["ev.group.callback.signal_C"] = _group_signal((8, 8, 8, 8), "C")
PROBES["ev.group.notify.signal_A"] = _group_signal((16, 16, 16, 16), "A")
PROBES["ev.group.A8_B16_C8_D16.signal_A"] = _group_signal((8, 16, 8, 16), "A")


@probe("ev.group.raised.signal_A_B_A")
def _(m: Machine) -> object:
    m.create_all("ABCD", group=GROUP)
    return m.signal_raised("ABA")


@probe("ev.group.B_closed_and_recreated")
def _(m: Machine) -> object:
    m.create_all("ABCD", group=GROUP)
    m.services.close_event(m["B"])
    m.create("B", group=GROUP)
    m.signal("A")
    return m.ran()


@probe("ev.group.other_group_untouched")
def _(m: Machine) -> object:
    m.create("A", group=GROUP)
    m.create("B", group=OTHER_GROUP)
    m.signal("A")
    return m.ran()


@probe("ev.group.plain_member.create")
def _(m: Machine) -> object:
    return m.status(m.create, "A", PLAIN, 0, GROUP)


@probe("ev.group.plain_member.check_after_group_signal")
def _(m: Machine) -> object:
    m.create("A", group=GROUP)
    m.create("P", PLAIN, 0, GROUP)
    m.signal("A")
    return m.check("P")


@probe("ev.group.signal_of_plain_member_notifies")
def _(m: Machine) -> object:
    m.create("A", group=GROUP)
    m.create("P", PLAIN, 0, GROUP)
    m.signal("P")
    return m.ran()


@probe("ev.group.wait_member.create")
def _(m: Machine) -> object:
    return m.status(m.create, "A", WAIT, 8, GROUP)


@probe("ev.group.wait_member.check_after_group_signal")
def _(m: Machine) -> object:
    m.create("A", group=GROUP)
    m.create("W", WAIT, 8, GROUP)
    m.signal("A")
    assert m.ran() == "A"
    return m.check("W")


@probe("ev.group.timer_member.create")
def _(m: Machine) -> object:
    return m.status(m.create, "A", TIMER | SIGNAL, 8, GROUP)


@probe("ev.group.timer_member.fires_group")
def _(m: Machine) -> object:
    m.create("A", group=GROUP)
    m.create("B", TIMER | SIGNAL, group=GROUP)
    m.services.set_timer(m["B"], RELATIVE, 50 * MS_100NS)
    m.services.stall(200_000)
    return m.ran()


# ---- single events --------------------------------------------------------------------------------------------------


def _signal_raised(tpls: tuple[int, ...], names: str) -> Probe:
    def run(m: Machine) -> object:
        m.create_all("ABCD", tpls)
        return m.signal_raised(names)

    return run


PROBES["ev.single.raised.signal_ABCD"] = _signal_raised((8, 8, 8, 8), "ABCD")
PROBES["ev.single.raised.signal_DBAC"] = _signal_raised((8, 8, 8, 8), "DBAC")
PROBES["ev.single.raised.signal_A_B_A"] = _signal_raised((8, 8, 8, 8), "ABA")
PROBES["ev.single.raised.A8_B16_C8_D16.signal_ABCD"] = _signal_raised((8, 16, 8, 16), "ABCD")


@probe("ev.single.application.signal_A_A")
def _(m: Machine) -> object:
    m.create("A")
    m.signal("AA")
    return m.ran()


def _restore_in_two_steps(m: Machine) -> tuple[str, str]:
    m.create_all("ABC", (8, 16, 8))
    m.services.raise_tpl(16)
    m.signal("AC")
    m.services.restore_tpl(8)
    first = m.ran()
    m.services.restore_tpl(4)
    return first, m.ran()


PROBES["ev.single.restore_16_to_8_runs"] = lambda m: _restore_in_two_steps(m)[0]
PROBES["ev.single.restore_8_to_4_runs"] = lambda m: _restore_in_two_steps(m)[1]


@probe("ev.tpl_in_notification")
def _(m: Machine) -> object:
    seen: list[str] = []
    m.create("A", tpl=8, body=lambda: seen.append(f"A@{m.tpl()}"))
    m.create("B", tpl=16, body=lambda: seen.append(f"B@{m.tpl()}"))
    m.signal("AB")
    return " ".join([*seen, f"after@{m.tpl()}"])


# ---- what a notification does ---------------------------------------------------------------------------------------


def _close(m: Machine, name: str) -> Callable[[], None]:
    return lambda: m.log.append(f"close={m.status(m.services.close_event, m[name])}")


def _once(action: Callable[[], object]) -> Callable[[], None]:
    left = [action]
    return lambda: left.pop()() if left else None  # type: ignore[func-returns-value]


@probe("ev.cb.A_closes_queued_B_of_ABC")
def _(m: Machine) -> object:
    m.create("A", body=_close(m, "B"))
    m.create_all("BC")
    return m.signal_raised("ABC")


@probe("ev.cb.D_closes_B_in_group_ABCD")
def _(m: Machine) -> object:
    m.create_all("ABC", group=GROUP)
    m.create("D", group=GROUP, body=_close(m, "B"))
    m.signal("A")
    return m.ran()


@probe("ev.cb.A_closes_itself_B_queued")
def _(m: Machine) -> object:
    m.create("A", body=_close(m, "A"))
    m.create("B")
    return m.signal_raised("AB")


def _a_signals_c(tpls: tuple[int, int, int]) -> Probe:
    def run(m: Machine) -> object:
        m.create("A", tpl=tpls[0], body=lambda: m.signal("C"))
        m.create("B", tpl=tpls[1])
        m.create("C", tpl=tpls[2])
        return m.signal_raised("AB")

    return run


PROBES["ev.cb.A_signals_C_same_tpl_B_queued"] = _a_signals_c((8, 8, 8))
PROBES["ev.cb.A_signals_C_higher_tpl_B_queued"] = _a_signals_c((8, 8, 16))
PROBES["ev.cb.A_signals_C_lower_tpl_B_queued"] = _a_signals_c((16, 16, 8))


@probe("ev.cb.A8_raises_to_16_signals_B8_C16_restores_8_D8_queued")
def _(m: Machine) -> object:
    def body() -> None:
        old = m.services.raise_tpl(16)
        m.signal("BC")
        m.log.append("signaled")
        m.services.restore_tpl(old)

    m.create("A", body=body)
    m.create_all("BCD", (8, 16, 8))
    return m.signal_raised("AD")


@probe("ev.cb.A_signals_itself_once_B_queued")
def _(m: Machine) -> object:
    m.create("A", body=_once(lambda: m.signal("A")))
    m.create("B")
    return m.signal_raised("AB")


@probe("ev.cb.signal_B_A_B_and_A_signals_B")
def _(m: Machine) -> object:
    m.create("A", body=lambda: m.signal("B"))
    m.create("B")
    return m.signal_raised("BAB")


@probe("ev.cb.D_signals_group_again")
def _(m: Machine) -> object:
    m.create_all("ABC", group=GROUP)
    m.create("D", group=GROUP, body=_once(lambda: m.signal("D")))
    m.signal("A")
    return m.ran()


# ---- signal, close, check -------------------------------------------------------------------------------------------

PROBES["ev.signal.NULL"] = lambda m: m.status(m.services.signal_event, 0)
PROBES["ev.signal.bogus"] = lambda m: m.status(m.services.signal_event, BOGUS)
PROBES["ev.close.NULL"] = lambda m: m.status(m.services.close_event, 0)
PROBES["ev.close.bogus"] = lambda m: m.status(m.services.close_event, BOGUS)
PROBES["ev.check.NULL"] = lambda m: m.status(m.services.check_event, 0)


@probe("ev.check.plain.unsignaled_signaled2x_again")
def _(m: Machine) -> object:
    m.create("A", PLAIN)
    first = m.check("A")
    m.signal("AA")
    return f"{first} {m.check('A', 'A')}"


@probe("ev.check.notify_signal.unsignaled_signaled")
def _(m: Machine) -> object:
    m.create("A")
    first = m.check("A")
    m.services.raise_tpl(16)
    m.signal("A")
    return f"{first} {m.check('A')}"


@probe("ev.check.notify_wait.fn_does_not_signal")
def _(m: Machine) -> object:
    m.create("A", WAIT)
    m.log.append(m.check("A"))
    return m.ran()


@probe("ev.check.notify_wait.fn_signals.twice")
def _(m: Machine) -> object:
    m.create("A", WAIT, body=lambda: m.signal("A"), bracket=False)
    m.log.append(m.check("A"))
    m.log.append(m.check("A"))
    return m.ran()


@probe("ev.check.notify_wait.already_signaled")
def _(m: Machine) -> object:
    m.create("A", WAIT)
    m.signal("A")
    m.log.append(m.check("A"))
    return m.ran()


@probe("ev.check.notify_wait8.at_tpl_8.twice_then_restore")
def _(m: Machine) -> object:
    m.create("A", WAIT)
    old = m.services.raise_tpl(8)
    m.log.append(m.check("A", "A"))
    m.services.restore_tpl(old)
    m.log.append("restored")
    return m.ran()


# ---- wait -----------------------------------------------------------------------------------------------------------


@probe("ev.wait.second_signaled")
def _(m: Machine) -> object:
    m.create("A", PLAIN)
    m.create("B", PLAIN)
    m.signal("B")
    return m.wait(m["A"], m["B"])


@probe("ev.wait.both_signaled")
def _(m: Machine) -> object:
    m.create("A", PLAIN)
    m.create("B", PLAIN)
    m.signal("AB")
    return f"{m.wait(m['A'], m['B'])} then check: {m.check('A', 'B')}"


@probe("ev.wait.notify_signal_event_at_2")
def _(m: Machine) -> object:
    return m.wait(m.create("A", PLAIN), m.create("B", PLAIN), m.create("C"))


@probe("ev.wait.signaled_1_before_notify_signal_at_2")
def _(m: Machine) -> object:
    events = m.create("A", PLAIN), m.create("B", PLAIN), m.create("C")
    m.signal("B")
    return m.wait(*events)


@probe("ev.wait.at_tpl_8")
def _(m: Machine) -> object:
    m.create("A", PLAIN)
    m.signal("A")
    old = m.services.raise_tpl(8)
    waited = m.wait(m["A"])
    m.services.restore_tpl(old)
    return f"{waited} then check: {m.check('A')}"


PROBES["ev.wait.count_0"] = lambda m: m.wait()
PROBES["ev.wait.NULL_array"] = lambda m: m.status(m.services.wait_for_event, ())
PROBES["ev.wait.NULL_event"] = lambda m: m.wait(0)


@probe("ev.wait.NULL_index")
def _(m: Machine) -> object:
    m.create("A", PLAIN)
    m.signal("A")
    return m.status(m.services.wait_for_event, (m["A"],), False)


@probe("ev.wait.notify_wait.fn_signals_at_3rd_call")
def _(m: Machine) -> object:
    m.create("A", WAIT, body=lambda: m.signal("A") if len(m.log) == 3 else None, bracket=False)
    m.log.append(m.wait(m["A"]))
    return m.ran()


# ---- create ---------------------------------------------------------------------------------------------------------


def _nothing(event: int, context: object) -> None:
    raise AssertionError("never signalled")


def _created(*calls: tuple[object, ...]) -> Probe:
    return lambda m: m.statuses(m.services.create_event, *calls)


def _created_ex(*calls: tuple[object, ...]) -> Probe:
    return lambda m: m.statuses(m.services.create_event_ex, *calls)


PROBES["ev.create.signal.tpl_0_4_5_7_8_9_15_16_17_30_31"] = _created(
    *((SIGNAL, tpl, _nothing) for tpl in (0, 4, 5, 7, 8, 9, 15, 16, 17, 30, 31))
)
PROBES["ev.createex.signal.tpl_4_5_16_31"] = _created_ex(
    *((SIGNAL, tpl, _nothing, None, GROUP) for tpl in (4, 5, 16, 31))
)
PROBES["ev.create.plain.tpl_0_4_99"] = _created(*((PLAIN, tpl, None) for tpl in (0, 4, 99)))
PROBES["ev.create.NULL_function.signal_wait_timersignal"] = _created(
    (SIGNAL, 8, None), (WAIT, 8, None), (TIMER | SIGNAL, 8, None)
)
PROBES["ev.create.NULL_event"] = _created((SIGNAL, 8, _nothing, None, False))


@probe("ev.create.types")
def _(m: Machine) -> object:
    types = (
        *(0x300, 0x1, 0x2, 0x101, 0x202, 0x40000000, 0x40000200, 0xC0000200, 0x60000202, 0x20000000),
        *(0x80000000, 0x80000100, 0x80000200, 0x80000300, 0x201),
    )
    return " ".join(f"{kind:#x}={m.status(m.services.create_event, kind, 8, _nothing)}" for kind in types)


PROBES["ev.createex.legacy_exit_type.group_own_exit_NULL"] = _created_ex(
    *((EXIT_TYPE, 8, _nothing, None, group) for group in (GROUP, guids.EVENT_GROUP_EXIT_BOOT_SERVICES, ""))
)
PROBES["ev.createex.signal.group_exit_before_NULL"] = _created_ex(
    *(
        (SIGNAL, 8, _nothing, None, group)
        for group in (guids.EVENT_GROUP_EXIT_BOOT_SERVICES, guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES, "")
    )
)
PROBES["ev.createex.plain_and_wait.group_exit"] = _created_ex(
    (PLAIN, 0, None, None, guids.EVENT_GROUP_EXIT_BOOT_SERVICES),
    (WAIT, 8, _nothing, None, guids.EVENT_GROUP_EXIT_BOOT_SERVICES),
)


@probe("ev.exit_event.check_by_group_by_type")
def _(m: Machine) -> object:
    m.create("A", SIGNAL, group=guids.EVENT_GROUP_EXIT_BOOT_SERVICES)
    m.create("B", EXIT_TYPE)
    return m.check("A", "B")


# ---- timers ---------------------------------------------------------------------------------------------------------


def _timer(m: Machine, delay: int, milliseconds: int, event_type: int = TIMER) -> str:
    m.create("A", event_type)
    return m.status(m.services.set_timer, m["A"], delay, milliseconds * MS_100NS)


@probe("ev.timer.on_non_timer")
def _(m: Machine) -> object:
    return _timer(m, RELATIVE, 1, PLAIN)


PROBES["ev.timer.NULL"] = lambda m: m.status(m.services.set_timer, 0, RELATIVE, 0)
PROBES["ev.timer.bad_delay_type"] = lambda m: _timer(m, 3, 0)
PROBES["ev.timer.cancel_unarmed"] = lambda m: _timer(m, CANCEL, 0)
PROBES["ev.timer.relative_0.check_at_once_twice"] = lambda m: f"{_timer(m, RELATIVE, 0)} {m.check('A', 'A')}"


@probe("ev.timer.relative_0.check_at_once_at_tpl_16")
def _(m: Machine) -> object:
    m.services.raise_tpl(16)
    _timer(m, RELATIVE, 0)
    return m.check("A")


@probe("ev.timer.relative_0.check_at_once_at_tpl_31_then_4")
def _(m: Machine) -> object:
    m.services.raise_tpl(31)
    _timer(m, RELATIVE, 0)
    first = m.check("A")
    m.services.restore_tpl(4)
    return f"{first} {m.check('A')}"


@probe("ev.timer.relative_0.cancel_then_check")
def _(m: Machine) -> object:
    _timer(m, RELATIVE, 0)
    m.services.set_timer(m["A"], CANCEL, 0)
    return m.check("A")


@probe("ev.timer.relative_60s.check_at_once")
def _(m: Machine) -> object:
    _timer(m, RELATIVE, 60_000)
    return m.check("A")


@probe("ev.timer.relative_50ms.stall_200ms.check_twice")
def _(m: Machine) -> object:
    _timer(m, RELATIVE, 50)
    m.services.stall(200_000)
    return m.check("A", "A")


@probe("ev.timer.relative_50ms.cancel.stall_200ms.check")
def _(m: Machine) -> object:
    _timer(m, RELATIVE, 50)
    m.services.set_timer(m["A"], CANCEL, 0)
    m.services.stall(200_000)
    return m.check("A")


@probe("ev.timer.periodic_20ms.wait_3")
def _(m: Machine) -> object:
    _timer(m, PERIODIC, 20)
    return sum(m.wait(m["A"]) == "SUCCESS idx=0" for _ in range(3))


PROBES["ev.timer.periodic_0"] = lambda m: _timer(m, PERIODIC, 0)


@probe("ev.timer.periodic_0.stall_200ms.check")
def _(m: Machine) -> object:
    _timer(m, PERIODIC, 0)
    m.services.stall(200_000)
    return m.check("A")


@probe("ev.timer.signal.relative_0.calls_at_return")
def _(m: Machine) -> object:
    _timer(m, RELATIVE, 0, TIMER | SIGNAL)
    return len(m.log)


@probe("ev.timer.signal.periodic_20ms.stall_500ms.many_calls")
def _(m: Machine) -> object:
    _timer(m, PERIODIC, 20, TIMER | SIGNAL)
    m.services.stall(500_000)
    return "yes" if len(m.log) == 25 else "no"


def _timer_while_raised(m: Machine) -> int:
    _timer(m, PERIODIC, 20, TIMER | SIGNAL)
    old = m.services.raise_tpl(8)
    m.services.stall(500_000)
    return old


@probe("ev.timer.signal8.at_tpl_8.stall_500ms.calls_before_after_restore")
def _(m: Machine) -> object:
    old = _timer_while_raised(m)
    before = len(m.log)
    m.services.restore_tpl(old)
    return f"{before} {len(m.log)}"


@probe("ev.timer.signal8.close_while_queued.calls")
def _(m: Machine) -> object:
    old = _timer_while_raised(m)
    m.services.close_event(m["A"])
    m.services.restore_tpl(old)
    return len(m.log)


@probe("ev.timer.order.A300ms_B200ms_C100ms")
def _(m: Machine) -> object:
    for name, milliseconds in (("A", 300), ("B", 200), ("C", 100)):
        m.create(name, TIMER | SIGNAL)
        m.services.set_timer(m[name], RELATIVE, milliseconds * MS_100NS)
    m.services.stall(400_000)
    return m.ran()


# ---- configuration tables -------------------------------------------------------------------------------------------


def _install_table(*earlier: int, then: int) -> Probe:
    def run(m: Machine) -> object:
        for table in earlier:
            m.services.install_configuration_table(GROUP, table)
        m.create_all("ABCD", (8, 8, 16, 8), GROUP)
        m.log.append(m.status(m.services.install_configuration_table, GROUP, then))
        return m.ran()

    return run


PROBES["ev.cfgtable.delete_missing"] = _install_table(then=0)
PROBES["ev.cfgtable.add"] = _install_table(then=0x1000)
PROBES["ev.cfgtable.replace"] = _install_table(0x1000, then=0x2000)
PROBES["ev.cfgtable.delete"] = _install_table(0x1000, then=0)
PROBES["ev.cfgtable.NULL_guid"] = lambda m: m.status(m.services.install_configuration_table, "", 0x1000)
