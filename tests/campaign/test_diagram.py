"""The sequence diagram of a finding: what it shows, and that it is SVG whatever is in the run."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from campaign.diagram import GAP_MIN, ROWS_MAX, lifeline_of, sequence_diagram, steps_to_show
from fuzz_targets.harness import Verdict, run_and_judge
from oracles.finding import Finding
from reference_impl.scenario import Scenario, operation, scenario
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi.status import EfiStatus

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script>&\0\x1b]]>\''
RESETS_TWICE = scenario(
    design="reference-count",
    fault="bus-resets-twice",
    devices=("block", "network"),
    operations=(operation("connect"), operation("exit", map_key="stale"), operation("exit")),
)


@pytest.fixture(scope="module")
def double_reset() -> tuple[Verdict, Finding]:
    """A run in which the bus resets the ring a second time, after a failed exit."""
    verdict = run_and_judge(RESETS_TWICE)
    (finding,) = [one for one in verdict.findings if one.rule == "double-reset"]
    return verdict, finding


def texts(svg: str) -> list[str]:
    """What stands in the picture, without what shows under the pointer."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lone_finding(**changes: object) -> Finding:
    """A finding of nobody's, at the first step."""
    values = {"oracle": "o", "rule": "r", "source": "s", "agent": "A", "subject": "x", "step": 0}
    return Finding(**(values | {"expected": "That.", "seen": "This."} | changes))


def test_the_parties_of_the_machine_are_lifelines_from_loader_to_operating_system(double_reset):
    """Each with a word that says what it is; a driver that does nothing has none."""
    verdict, finding = double_reset
    found = texts(sequence_diagram(verdict.trace, finding, "heading"))
    heads = ["OS loader", "Firmware core", "XenBusDxe", "XenPvBlkDxe", "XenPvNetDxe", "Xen", "Back ends"]
    places = [found.index(head) for head in [*heads, "Operating system"]]
    assert places == sorted(places)
    assert "bus driver" in found
    assert "XenPvConsoleDxe" not in found


def test_the_phases_of_exit_boot_services_are_named(double_reset):
    """Those of the run, in its order: this one fails its first exit."""
    verdict, finding = double_reset
    found = texts(sequence_diagram(verdict.trace, finding, "heading"))
    bands = [
        "Boot services",
        "BEFORE_EXIT_BOOT_SERVICES notifications: memory services are still allowed",
        "Notifications of a failed exit",
        "The exit has failed: memory services, and another attempt",
        "EXIT_BOOT_SERVICES notifications: no memory services, no timers",
        "The operating system runs",
    ]
    places = [found.index(band) for band in bands]
    assert places == sorted(places)


def test_the_broken_step_is_marked_with_what_was_expected_and_seen(double_reset):
    """Once, with its number; and the first reset, of which the sentence speaks, is there as well."""
    verdict, finding = double_reset
    svg = sequence_diagram(verdict.trace, finding, "heading")
    assert len(re.findall(r'class="call broken"', svg)) == 1
    found = texts(svg)
    assert f"✗ connection-reset/double-reset, broken by XenBusDxe ({finding.source})" in found
    assert any(text.startswith("Expected: Each resource") for text in found)
    first = re.search(r"in step (\d+)", finding.seen)
    assert {str(finding.step), first[1]} <= set(found)
    assert "RemoveReference(device/vbd/0, TRUE): count is now 0" in found


def test_long_runs_are_shortened_and_say_what_was_left_out(double_reset):
    """At most so many steps; the rest is counted by sorts."""
    verdict, finding = double_reset
    shown = steps_to_show(verdict.trace, finding, ROWS_MAX)
    assert len(shown) <= ROWS_MAX < len(verdict.trace.records)
    assert shown == sorted(shown)
    gaps = [text for text in texts(sequence_diagram(verdict.trace, finding, "h")) if text.startswith("⋯")]
    assert any(re.fullmatch(r"⋯ \d+ × .*xenstore request.*", text) for text in gaps)
    assert steps_to_show(verdict.trace, finding, 3)[-1] - steps_to_show(verdict.trace, finding, 3)[0] < 30


def test_what_the_broken_step_is_nested_in_is_always_there():
    """Without it nobody sees in whose notification it happened."""
    trace = Trace()
    trace.phase = int(Phase.EXIT)
    trace.add(Kind.ENTRY, "OtherDxe", "Notify", (1, "g"), EfiStatus.SUCCESS)
    trace.add(Kind.ENTRY, "SomeDxe", "Notify", (1, "g"))
    trace.depth = 1
    for _ in range(3 * GAP_MIN):
        trace.add(Kind.SERVICE, "SomeDxe", "RaiseTPL", (16,), EfiStatus.SUCCESS)
    trace.add(Kind.SERVICE, "SomeDxe", "FreePool", (16,), EfiStatus.INVALID_PARAMETER)
    broken = len(trace.records) - 1
    assert steps_to_show(trace, lone_finding(step=broken), 2) == [1, broken]
    svg = sequence_diagram(trace, lone_finding(step=broken), "h")
    assert "notification never returns" in texts(svg)
    assert "FreePool() = EFI_INVALID_PARAMETER" in texts(svg)
    assert f"⋯ {3 * GAP_MIN} × other boot service" in texts(svg)


@pytest.mark.parametrize(
    "made",
    [
        scenario(world="core", operations=(operation("call", service="RaiseTPL", a=9), operation("exit"))),
        scenario(world="ring", operations=(operation("answer", what="wrong-id"), operation("ask"))),
        scenario(
            design="exit-callback",
            devices=("block",),
            operations=(operation("fail", nth=3), operation("connect"), operation("connect"), operation("exit")),
        ),
    ],
)
def test_every_world_can_be_drawn(made: Scenario):
    """Whatever its parties are; and twice the same run gives the same picture."""
    first, again = run_and_judge(made).trace, run_and_judge(made).trace
    finding = lone_finding(step=len(first.records) - 1)
    svg = sequence_diagram(first, finding, "heading")
    assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
    assert svg == sequence_diagram(again, finding, "heading")


def test_every_kind_of_record_can_be_drawn():
    """Also those that no reference design makes, and what a guest may leave out."""
    trace = Trace()
    trace.add(Kind.FAULT, "XenBusDxe", "write", (0x18, "XenBusDxe+0x1234"))
    trace.add(Kind.MEMORY, "XenBusDxe", "double-free", (0x100, "XenBusDxe"))
    trace.add(Kind.STUCK, "XenBusDxe", "step-budget", ("Stall",))
    trace.add(Kind.DRIVER_STATE, "XenBusDxe", "worn", (), None, 3)
    trace.add(Kind.HYPERCALL, "XenBusDxe", "EVTCHNOP_send", (1,), 0)
    trace.add(Kind.GRANT, "backend", "map", (8, 1), "OK")
    trace.add(Kind.CORE_MEMORY, "XenBusDxe", "CreateEvent", ("allocate", 80), None, 16)
    trace.add(Kind.ENTRY, "XenPvBlkDxe", "ExitCallback", ("device/vbd/0",), EfiStatus.SUCCESS)
    trace.add(Kind.TAKE_OVER, "os", "grant-table", (8, "device/vbd/0"), "still mapped", "XenPvBlkDxe")
    found = texts(sequence_diagram(trace, lone_finding(step=0), "h"))
    assert any("write of 0x18" in text for text in found)
    assert "takes over grant-table: still mapped" in found


def test_text_is_text_whatever_is_in_it():
    """No element, no entity and no control character comes out of a run."""
    trace = Trace()
    trace.add(Kind.ENTRY, HOSTILE, "Start", (1, None), EfiStatus.SUCCESS)
    trace.add(Kind.XENSTORE, HOSTILE, "READ", (HOSTILE, HOSTILE), "OK", HOSTILE)
    svg = sequence_diagram(trace, lone_finding(agent=HOSTILE, seen=HOSTILE, step=1), HOSTILE)
    assert not list(ElementTree.fromstring(svg).iter(f"{SVG}script"))
    assert "<script" not in svg
    assert any("<script>" in text for text in texts(svg))


def test_a_picture_needs_nothing_else(double_reset):
    """No other file, no address but the name of SVG itself; and it has a dark side."""
    verdict, finding = double_reset
    svg = sequence_diagram(verdict.trace, finding, "heading")
    assert set(re.findall(r"https?://[^\"]*", svg)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|href|<image|<use", svg)
    assert "prefers-color-scheme:dark" in svg
    root = ElementTree.fromstring(svg)
    assert (root.attrib["role"], root.find(f"{SVG}title").text) == ("img", "heading")


def test_the_parts_of_the_platform_share_lifelines():
    """A driver has its own."""
    assert lifeline_of("firmware") == lifeline_of("") == "core"
    assert lifeline_of("xenstored") == "xen"
    assert lifeline_of("XenPvBlkDxe") == "XenPvBlkDxe"
