"""The third party: what each act does, at each occasion, and that it happens once."""

from __future__ import annotations

import pytest

from reference_impl.scenario import OPERATIONS, SWITCHES, Operation, operation
from reference_impl.third_party import ACTS, AGENT
from reference_impl.trace import Kind, Phase, Record, Trace
from reference_impl.uefi.definitions import TPL_CALLBACK, TPL_NOTIFY
from reference_impl.world import run
from tests.scenarios import CONNECT, EXIT, STALE_EXIT, hostile, records

DISKS = ("block", "block")


def hook(act: str, controller: str = "bus", **values: object) -> Operation:
    """One hook of the third party."""
    return operation("third-party", act=act, controller=controller, **values)


def run_all(*operations: Operation, **values: object) -> Trace:
    """A run with two disks and every switch that makes nothing happen by itself."""
    others = {"timer-ticks", "early-notifications"}
    return run(hostile("reference-count", *operations, devices=DISKS, switches=set(SWITCHES) - others, **values))


def acted(trace: Trace) -> list[Record]:
    """The notifications of the third party."""
    return [record for record in records(trace, Kind.ENTRY, "Notify") if record.agent == AGENT]


def notified(trace: Trace) -> list[str]:
    """Whose notifications ran in the exit group, in order."""
    return [record.agent for record in records(trace, Kind.ENTRY, "Notify", Phase.EXIT)]


def test_the_language_has_every_act():
    """What a scenario can name is what the third party can do."""
    (act, *_) = OPERATIONS["third-party"].fields
    assert list(ACTS) == list(act.values)


@pytest.mark.parametrize("act", ["disconnect", "stop"])
def test_it_stops_a_device_in_the_exit_group(act):
    """Its notification comes first where it was made last, and the other device is left alone."""
    trace = run_all(CONNECT, hook(act, "child-1"), EXIT)
    (stop,) = records(trace, Kind.ENTRY, "Stop")
    assert (stop.phase, stop.agent, stop.status) == (Phase.EXIT, "XenPvBlkDxe", 0)
    assert notified(trace) == [AGENT, "XenPvBlkDxe", "XenBusDxe"]


def test_stop_passes_the_core_by():
    """The bus's Stop() is entered although it has children, and refuses."""
    trace = run_all(CONNECT, hook("stop"), EXIT)
    assert [(record.arguments[1], int(record.status) != 0) for record in records(trace, Kind.ENTRY, "Stop")] == [
        ((), True)
    ]


@pytest.mark.parametrize(("act", "started"), [("connect", 3), ("start", 1)])
def test_it_starts_drivers_in_the_exit_group(act, started):
    """`connect` goes on to the children, `start` does not."""
    trace = run_all(hook(act), EXIT)
    starts = records(trace, Kind.ENTRY, "Start", Phase.EXIT)
    assert [record.agent for record in starts] == ["XenBusDxe", "XenPvBlkDxe", "XenPvBlkDxe"][:started]


def test_signalling_an_event_signals_the_group_again():
    """Who has been notified is notified once more; who still waits is notified once, later."""
    trace = run_all(CONNECT, hook("signal"), EXIT, order=(1, 0))
    assert notified(trace) == ["XenPvBlkDxe", AGENT, "XenPvBlkDxe", AGENT, "XenPvBlkDxe", "XenBusDxe"]


def test_nothing_is_signalled_before_the_loader_leaves():
    """A timer that ticks at boot does not notify the exit group."""
    trace = run(
        hostile(
            "reference-count",
            CONNECT,
            hook("signal", when="timer"),
            operation("time"),
            operation("time", milliseconds=100),
            devices=DISKS,
            switches={"timer-ticks", "third-party-events"},
        )
    )
    assert len(acted(trace)) == 1
    assert records(trace, Kind.SERVICE, "SignalEvent") == []


def test_closing_an_event_takes_one_notification_away():
    """The newest one of the driver that manages the controller."""
    assert notified(run_all(CONNECT, hook("close", "child-0"), EXIT)) == [AGENT, "XenPvBlkDxe", "XenBusDxe"]
    assert notified(run_all(CONNECT, hook("close"), EXIT)) == [AGENT, "XenPvBlkDxe", "XenPvBlkDxe"]


def test_allocating_in_the_before_group_makes_the_key_stale():
    """Legal there, and the loader has to try again."""
    trace = run_all(CONNECT, hook("allocate", when="before"), EXIT, EXIT)
    assert [bool(record.status) for record in records(trace, Kind.SERVICE, "ExitBootServices")] == [True, False]
    assert [record.phase for record in acted(trace)] == [Phase.BEFORE]


def test_a_raised_tpl_stays():
    """The notifications behind it run at TPL_NOTIFY."""
    trace = run_all(CONNECT, hook("raise-tpl"), EXIT)
    assert [record.tpl for record in records(trace, Kind.ENTRY, "Notify")] == [TPL_CALLBACK] + 3 * [TPL_NOTIFY]


def test_waiting_lets_time_pass():
    """A tenth of a second, in the middle of the group."""
    (wait,) = records(run_all(CONNECT, hook("wait"), EXIT), Kind.SERVICE, "Stall", Phase.EXIT)
    assert (wait.agent, wait.arguments) == (AGENT, (100_000,))


@pytest.mark.parametrize("nth", [1, 2, 7])
def test_it_interrupts_another_handler(nth):
    """At the nth drop of the TPL in the exit group it runs inside the notification whose drop that is."""
    trace = run_all(CONNECT, hook("disconnect", "child-0", when="inside", tpl="notify", nth=nth), EXIT)
    outer, inner = records(trace, Kind.ENTRY, "Notify")[:2]
    assert (outer.agent, inner.agent) == ("XenPvBlkDxe", AGENT)
    assert inner.depth > outer.depth
    (place,) = [index for index, plain in enumerate(trace.records) if plain[5] == "SignalEvent"]
    drops = [plain for plain in trace.records[:place] if plain[5] == "RestoreTPL" and plain[4] == Phase.EXIT]
    assert len(drops) == nth


def test_at_the_tpl_of_others_it_does_not_interrupt():
    """What is signalled at TPL_CALLBACK waits until the handler at TPL_CALLBACK has ended."""
    trace = run_all(CONNECT, hook("wait", when="inside"), EXIT)
    assert {record.depth for record in records(trace, Kind.ENTRY, "Notify")} == {acted(trace)[0].depth}


def test_each_hook_acts_once():
    """Notified again, it does nothing."""
    trace = run(
        hostile(
            "reference-count",
            CONNECT,
            hook("wait"),
            STALE_EXIT,
            EXIT,
            switches={"third-party-waits", "early-notifications"},
        )
    )
    assert len(acted(trace)) == 2
    assert len(records(trace, Kind.SERVICE, "Stall")) == 1


def test_a_controller_that_is_not_there_is_left_alone():
    """A child that the bus does not have; nothing is raised out of the notification."""
    trace = run_all(hook("disconnect", "child-5"), hook("connect", "child-5"), hook("start", "child-5"), EXIT)
    assert len(acted(trace)) == 3
    assert records(trace, Kind.EXIT, "runtime")
