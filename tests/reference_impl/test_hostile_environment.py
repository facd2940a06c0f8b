"""The hostile environment: what each switch permits, that nothing of it happens without the switch, and that runs end."""

from __future__ import annotations

import random

import pytest

from fuzz_targets.generator import generate
from fuzz_targets.mutator import mutate
from fuzz_targets.registry import TARGETS
from oracles import judge
from reference_impl.scenario import OPERATIONS, SWITCHES, Operation, Scenario, operation, scenario, switches_needed
from reference_impl.third_party import AGENT
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi.events import TIMER_TICK_100NS
from reference_impl.uefi.status import EfiStatus
from reference_impl.world import PlatformWorld, run
from tests.scenarios import CONNECT, CORRECT_DESIGNS, EXIT, STALE_EXIT, STOP_BUS, hostile, records

DISK = ("block",)

PERMITTED: dict[str, tuple[Operation, ...]] = {
    "third-party-stops": (operation("third-party", act="disconnect"), operation("third-party", act="stop")),
    "third-party-starts": (operation("third-party", act="connect"), operation("third-party", act="start")),
    "third-party-events": (operation("third-party", act="signal"), operation("third-party", act="close")),
    "third-party-allocates": (operation("third-party", act="allocate"),),
    "third-party-waits": (operation("third-party", act="raise-tpl"), operation("third-party", act="wait")),
    "third-party-inside": (operation("third-party", act="wait", when="inside"),),
    "timer-ticks": (operation("third-party", act="wait", when="timer"),),
    "driver-without-handler": (operation("without-handler"),),
    "unload-connected": (operation("tear-out", driver="block"),),
    "surprise-removal": (operation("vanish"),),
    "silent-peers": (
        *(operation("peer", manner=manner) for manner in ("silent", "dead", "late")),
        operation("store", manner="silent"),
    ),
    "lying-peers": (
        *(operation("peer", manner=manner) for manner in ("twice", "wrong")),
        *(operation("store", manner=manner) for manner in ("twice", "wrong")),
    ),
}
"""Switch → operations that it permits. The other switches change what happens anyway."""

BY_ITSELF = {"early-notifications", "cleanup-fails", "failures-anywhere"}
OF_IMAGES = {"page-0-mapped"}
"""Switches that only the efi-image world has a use for."""


def outcomes(trace: Trace) -> list[object]:
    """What became of each operation."""
    return [record.status for record in records(trace, Kind.OPERATION)]


def on_a_disk(*operations: Operation, switches: tuple[str, ...] = (), design: str = "reference-count") -> Trace:
    """A run with one disk."""
    return run(hostile(design, *operations, devices=DISK, switches=switches))


# ---- switches -------------------------------------------------------------------------------------------------------


def test_every_switch_is_tested_here():
    """A new one has to be named above."""
    assert set(PERMITTED) | BY_ITSELF | OF_IMAGES == set(SWITCHES)
    assert all(switch in set().union(*map(switches_needed, steps)) for switch, steps in PERMITTED.items())


@pytest.mark.parametrize("switch", PERMITTED)
def test_an_operation_needs_its_switch(switch):
    """With all switches it is done; without this one it is skipped, and the reason names it."""
    for step in PERMITTED[switch]:
        done = on_a_disk(CONNECT, step, switches=tuple(SWITCHES))
        assert outcomes(done) == [None, None]
        skipped = on_a_disk(CONNECT, step, switches=tuple(name for name in SWITCHES if name != switch))
        assert outcomes(skipped)[1] == f"this needs the hostile environment's switch {switch}"


def test_the_conforming_environment_permits_none_of_it():
    """Each hostile operation is skipped there."""
    steps = [step for steps in PERMITTED.values() for step in steps]
    trace = run(Scenario(design="reference-count", devices=DISK, operations=(CONNECT, *steps, EXIT)))
    assert outcomes(trace)[0] is outcomes(trace)[-1] is None
    assert all("switch" in str(outcome) for outcome in outcomes(trace)[1:-1])
    assert AGENT not in {plain[1] for plain in trace.records}
    assert judge(trace) == []


def test_a_core_of_old_notifies_in_every_attempt():
    """Also in the one that fails; without the switch once, in the one that succeeds."""
    trace = on_a_disk(CONNECT, STALE_EXIT, EXIT, switches=("early-notifications",))
    agents = [record.agent for record in records(trace, Kind.ENTRY, "Notify", Phase.EXIT)]
    assert agents == 2 * ["XenPvBlkDxe", "XenBusDxe"]
    steps = [record.name for record in records(trace, Kind.EXIT)]
    assert steps.count("exit-group") == 2
    assert steps.index("exit-group") < steps.index("key-check")
    assert len(records(on_a_disk(CONNECT, STALE_EXIT, EXIT), Kind.EXIT, "exit-group")) == 1


def test_the_map_of_a_core_of_old_is_the_one_whose_key_it_checked():
    """A handler that moves the map there makes the exit fail, and leaves no stale map behind."""
    trace = on_a_disk(CONNECT, EXIT, EXIT, switches=("early-notifications",), design="disconnect")
    assert [int(record.status) != 0 for record in records(trace, Kind.SERVICE, "ExitBootServices")] == [True, False]
    (map_record,) = records(trace, Kind.TAKE_OVER, "memory-map")
    assert map_record.status == "OK"


@pytest.mark.parametrize("switches", [(), ("timer-ticks",)])
def test_the_timer_ticks_at_every_drop_of_the_tpl(switches):
    """Time moves on by a tick each time, and the third party's timer comes due within Start()."""
    world = PlatformWorld(hostile("reference-count", devices=DISK, switches=(*switches, "third-party-waits")))
    world.do(0, operation("third-party", act="raise-tpl", when="timer", nth=5))
    world.do(1, CONNECT)
    drops = len([record for record in records(world.trace, Kind.SERVICE, "RestoreTPL") if record.agent != AGENT])
    assert drops > 5
    ticks = world.core.events.now_100ns // TIMER_TICK_100NS
    assert ticks >= drops if switches else ticks < drops
    inside = [record.depth for record in records(world.trace, Kind.ENTRY, "Notify") if record.agent == AGENT]
    assert bool(inside) == bool(switches)
    assert all(depth > records(world.trace, Kind.ENTRY, "Start")[0].depth for depth in inside)


@pytest.mark.parametrize("switches", [(), ("cleanup-fails",)])
def test_cleanup_fails(switches):
    """Calls that give something back refuse, and so does xenstored to a device that is closing."""
    armed = [operation("fail", call=call) for call in ("FreePages -> EFI_NOT_FOUND", "XS_WRITE -> EACCES")]
    trace = on_a_disk(CONNECT, *armed, STOP_BUS, switches=switches)
    assert {record.name for record in records(trace, Kind.INJECTED)} == (
        {"FreePages", "XS_WRITE"} if switches else set()
    )


@pytest.mark.parametrize("switches", [(), ("failures-anywhere",)])
def test_failures_anywhere(switches):
    """A read fails in a notification of the exit group; without the switch nothing fails after the first attempt."""
    trace = on_a_disk(CONNECT, operation("fail", call="XS_READ -> EIO", nth=2), EXIT, switches=switches)
    assert [record.phase for record in records(trace, Kind.INJECTED)] == ([Phase.EXIT] if switches else [])


@pytest.mark.parametrize("call", ["XENMEM_remove_from_physmap -> -22", "EVTCHNOP_send -> -22"])
def test_a_hypercall_that_refuses_in_cleanup_ends_no_run(call):
    """The bus goes on with its way back."""
    steps = [operation("fail", call=call, nth=nth) for nth in (1, 2, 3, 4, 5)]
    trace = on_a_disk(CONNECT, *steps, STOP_BUS, EXIT, switches=("cleanup-fails", "failures-anywhere"))
    assert records(trace, Kind.INJECTED)
    assert records(trace, Kind.EXIT, "runtime")


# ---- drivers --------------------------------------------------------------------------------------------------------


def test_a_driver_without_handler_does_nothing_at_the_exit():
    """It holds no reference either; a driver that is loaded anew knows the design again."""
    trace = on_a_disk(operation("without-handler"), CONNECT, EXIT, switches=("driver-without-handler",))
    assert records(trace, Kind.REFERENCE) == []
    assert [record.agent for record in records(trace, Kind.ENTRY, "Notify")] == ["XenBusDxe"]
    again = (operation("unload", driver="block"), operation("load", driver="block"), CONNECT)
    trace = on_a_disk(operation("without-handler"), *again, EXIT, switches=("driver-without-handler",))
    assert [record.name for record in records(trace, Kind.REFERENCE)] == ["AddReference", "RemoveReference"]


def test_a_driver_that_is_torn_out_leaves_its_event():
    """No Stop() is entered, the image is gone, and its notification still runs at the exit."""
    trace = on_a_disk(CONNECT, operation("tear-out", driver="block"), CONNECT, EXIT, switches=("unload-connected",))
    assert records(trace, Kind.ENTRY, "Stop") == []
    assert [record.status for record in records(trace, Kind.SERVICE, "UnloadImage")] == [EfiStatus.SUCCESS]
    assert "XenPvBlkDxe" in [record.agent for record in records(trace, Kind.ENTRY, "Notify", Phase.EXIT)]


# ---- peers ----------------------------------------------------------------------------------------------------------


def test_a_device_vanishes_in_the_middle_of_a_transaction():
    """xenstored has begun the transaction and refuses what comes next; Start() gives up."""
    count = 0
    for record in records(on_a_disk(CONNECT), Kind.XENSTORE):
        count += 1
        if record.name == "TRANSACTION_START":
            break
    trace = on_a_disk(operation("vanish", requests=count), CONNECT, switches=("surprise-removal",))
    (start,) = [record for record in records(trace, Kind.ENTRY, "Start") if record.agent == "XenPvBlkDxe"]
    assert start.status not in (None, EfiStatus.SUCCESS)
    names = [record.name for record in records(trace, Kind.XENSTORE)]
    assert "TRANSACTION_START" in names[: count + 1]
    assert [record.arguments for record in records(trace, Kind.XENBUS_STATE) if record.agent == "backend"][-1][1] == 0


def test_a_device_vanishes_once():
    """At once without a number; a second time it is not there."""
    gone = operation("vanish")
    assert outcomes(on_a_disk(CONNECT, gone, gone, EXIT, switches=("surprise-removal",))) == [
        None,
        None,
        "there is no such device",
        None,
    ]


@pytest.mark.parametrize("design", CORRECT_DESIGNS)
@pytest.mark.parametrize("manner", ["silent", "dead", "late", "twice", "wrong"])
@pytest.mark.parametrize("before", [True, False])
def test_no_correct_design_depends_on_a_peer(design, manner, before):
    """A peer that is silent, dead, late or lying costs its device and nothing else: the hand-over is complete."""
    step = operation("peer", manner=manner)
    steps = (step, CONNECT) if before else (CONNECT, step)
    trace = run(hostile(design, *steps, EXIT, devices=("block", "network"), switches=("lying-peers", "silent-peers")))
    assert judge(trace) == []
    assert records(trace, Kind.EXIT, "runtime")


@pytest.mark.parametrize("design", CORRECT_DESIGNS)
@pytest.mark.parametrize("manner", ["silent", "twice", "wrong"])
@pytest.mark.parametrize("before", [True, False])
def test_no_correct_design_depends_on_xenstored(design, manner, before):
    """Where xenstored is silent or lies, the bus gives up in time; twice the answer is one answer."""
    step = operation("store", manner=manner)
    steps = (step, CONNECT) if before else (CONNECT, step)
    trace = run(hostile(design, *steps, EXIT, devices=DISK, switches=("lying-peers", "silent-peers")))
    assert judge(trace) == []
    assert records(trace, Kind.EXIT, "runtime")


def test_a_device_that_stopped_half_way_serves_no_request():
    """Its interface is gone, though its Stop() failed in the middle."""
    trace = on_a_disk(
        CONNECT,
        operation("fail", call="FreePool -> EFI_INVALID_PARAMETER"),
        operation("disconnect", controller="child-0"),
        operation("request"),
        switches=("cleanup-fails",),
    )
    (request,) = [one for one in records(trace, Kind.OPERATION) if one.name == "request"]
    assert request.status == "no driver has started this device"


def test_the_driver_that_ships_waits_for_a_silent_peer_for_ever():
    """`disconnect` never gives up, however long the run may be."""
    steps = (CONNECT, operation("store", manner="silent"), STOP_BUS)
    trace = on_a_disk(*steps, switches=("silent-peers",), design="disconnect")
    (stuck,) = records(trace, Kind.STUCK)
    assert (stuck.agent, stuck.name) == ("XenBusDxe", "step-budget")
    assert "waiting/unbounded-poll/XenBusDxe/Stop" in [finding.signature for finding in judge(trace)]


def test_a_watch_event_that_is_lost_for_want_of_memory_is_not_waited_for_without_end():
    """Each allocation of a start with one network device fails once, and the next start fails as well."""
    again = operation("fail", call="InstallProtocolInterface -> EFI_OUT_OF_RESOURCES")
    for nth in range(60, 90):
        steps = (operation("fail", nth=nth), again, CONNECT)
        trace = run(scenario(design="disconnect", devices=("network",), operations=steps))
        assert not records(trace, Kind.STUCK)


@pytest.mark.parametrize("leaving", [operation("unload"), STOP_BUS, operation("third-party")])
@pytest.mark.parametrize("design", ["exit-callback", "reference-count"])
def test_many_bounded_waits_for_a_silent_peer_are_no_endless_one(design, leaving):
    """Each of four disks gives up after some thousand steps; that all together are too long for a run is nobody's fault."""
    steps = (CONNECT, operation("store", manner="silent"), leaving, EXIT)
    switches = ("silent-peers", "third-party-stops")
    trace = run(hostile(design, *steps, devices=DISK * 4, switches=switches))
    assert [record.name for record in records(trace, Kind.STUCK)] == ["step-budget"]
    assert [finding for finding in judge(trace) if finding.oracle == "waiting"] == []


def test_a_device_that_is_stopped_meanwhile_is_not_called_back():
    """The bus of `exit-callback` walks over its children while a third party takes one of them away."""
    stop = operation("third-party", controller="child-1", when="inside", tpl="notify")
    trace = run(
        hostile(
            "exit-callback",
            CONNECT,
            stop,
            EXIT,
            devices=("block", "network"),
            switches=("third-party-inside", "third-party-stops"),
        )
    )
    assert [record.agent for record in records(trace, Kind.ENTRY, "ExitCallback")] == ["XenPvBlkDxe"]
    assert [record.agent for record in records(trace, Kind.ENTRY, "Stop")] == ["XenPvNetDxe"]


# ---- any hostile scenario -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["lifecycle", "exit_boot_services"])
def test_any_hostile_scenario_runs_to_an_end_and_the_same_way_twice(target):
    """Nothing escapes but a run's own end, and both runs agree in every record."""
    source = random.Random(11)
    kinds = set()
    for _ in range(100):
        made = generate(source, TARGETS[target], source.choice(TARGETS[target].designs), "", "hostile")
        for _ in range(source.randint(0, 2)):
            made = mutate(made, source, TARGETS[target])
        kinds |= {step.kind for step in made.operations}
        first = run(made)
        assert repr(first.records) == repr(run(made).records)
        for finding in judge(first):
            assert finding.agent != AGENT
    assert kinds >= {kind for kind, entry in OPERATIONS.items() if "platform" in entry.worlds}


def test_the_reference_count_breaks_in_five_ways_before_long():
    """A few hundred generated scenarios show each of them; the page on the proposal explains why."""
    left = {
        *(
            f"connection-reset/{rule}"
            for rule in ("double-reset", "missed-reset", "premature-reset", "use-after-reset")
        ),
        "reference-count/underflow",
    }
    source = random.Random(5)
    for _ in range(600):
        made = generate(source, TARGETS["lifecycle"], "reference-count", environment="hostile")
        left -= {f"{finding.oracle}/{finding.rule}" for finding in judge(run(made))}
        if not left:
            break
    assert not left
