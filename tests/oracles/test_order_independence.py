"""What several runs of one scenario are compared by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fuzz_targets.harness import run_in_orders
from oracles import judge
from oracles.order_independence import RULES, Run, compare, final_state
from reference_impl.scenario import operation
from reference_impl.uefi.status import EfiStatus
from reference_impl.world import run
from tests.oracles.stories import BLOCK, BUS, DISK, Story
from tests.scenarios import CONNECT, EXIT, platform


def told(order, tell) -> Run:
    """One run whose records a story tells."""
    story = Story()
    tell(story)
    return Run(order, story.trace, judge(story.trace))


def clean(story: Story) -> None:
    """The connection is reset once, the device has gone, and everything can be taken over."""
    story.connection("ring", 1)
    story.frontend(1, 4)
    with story.exit(), story.notification():
        story.frontend(4, 1)
        story.reset("ring", 1)
    story.take_over("store")


def never_reset(story: Story) -> None:
    """The connection is in use when the operating system runs."""
    story.connection("ring", 1)
    with story.exit():
        pass


def test_a_rule_that_is_broken_under_one_order_only_is_a_finding() -> None:
    """It belongs to who breaks it, and names the orders on both sides; the step is the first exit step of the first run."""
    runs = [told("edk2", never_reset), told("fifo", clean), told((1, 2, 0), never_reset)]
    (finding,) = compare(runs)
    assert finding.signature == "order-independence/verdict-differs/XenBusDxe/missed-reset"
    assert finding.seen == (
        "XenBusDxe breaks connection-reset/missed-reset under edk2, permutation [1, 2, 0], and not under fifo."
    )
    assert runs[0].trace.records[finding.step][5] == "exit-group"
    assert (finding.source, finding.expected) == RULES["verdict-differs"]


def test_a_rule_that_is_broken_under_every_order_is_none() -> None:
    """The rule itself is reported by its own oracle."""
    assert compare([told("edk2", never_reset), told("fifo", never_reset)]) == []


def test_runs_that_agree_are_accepted() -> None:
    """The near miss: other generations, steps and orders of records."""

    def later(story: Story) -> None:
        story.connection("ring", 7)
        with story.exit(), story.notification():
            story.reset("ring", 7)
            story.frontend(4, 1)
        story.take_over("store", "OK", "", 5)

    assert compare([told("edk2", clean), told("fifo", later)]) == []


def test_a_note_is_no_verdict() -> None:
    """What does not change the exit status does not make orders differ, in whichever run it is."""

    def closes(story: Story) -> None:
        with story.exit(), story.notification(), story.service("CloseEvent"):
            story.core("free", "CloseEvent")

    def nothing(story: Story) -> None:
        with story.exit(), story.notification():
            pass

    assert compare([told("edk2", closes), told("fifo", nothing)]) == []
    assert compare([told("edk2", nothing), told("fifo", closes)]) == []


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        (lambda story: story.frontend(4, 5), "front-end"),
        (lambda story: story.reset("grant-table", 0), "resets"),
        (lambda story: story.reference("Remove", 0), "reference"),
    ],
)
def test_states_that_differ_are_a_finding(change, subject: str) -> None:
    """All verdicts agree, and yet the machine is not the same; the sentence says how."""

    def other(story: Story) -> None:
        clean(story)
        change(story)

    findings = compare([told("edk2", clean), Run("fifo", told("fifo", other).trace, [])])
    assert {finding.signature for finding in findings} == {f"order-independence/state-differs/firmware/{subject}"}
    assert all(" under edk2, and " in finding.seen for finding in findings)


def test_a_state_is_told_with_both_values() -> None:
    """The first run's value first."""

    def other(story: Story) -> None:
        clean(story)
        story.reset("ring", 0)

    (finding,) = compare([told("edk2", clean), told((1, 0), other)])
    assert finding.seen == "resets of the ring is 1 under edk2, and 2 under permutation [1, 0]."


def test_a_verdict_that_differs_explains_the_state() -> None:
    """One cause, one finding."""
    assert [finding.rule for finding in compare([told("edk2", clean), told("fifo", never_reset)])] == [
        "verdict-differs"
    ]


def test_the_final_state_is_what_the_last_records_say() -> None:
    """A step of the operating system is fine only where all that it found is; the peer's states do not count."""
    story = Story()
    story.frontend(1, 4)
    story.frontend(4, 6)
    story.add(11, "backend", DISK, (2, 4))
    story.reset("ring", 1)
    story.reset("ring", 2)
    story.reference("Add", 1)
    story.reference("Add", 2)
    story.take_over("grant-table", "in use", BLOCK, 8, DISK)
    story.take_over("grant-table", "OK")
    story.take_over("store", "OK")
    story.take_over("device/vbd/0", "OK")
    story.take_over("device/vbd/0", "backend is Closing", BUS)
    story.service("AllocatePool", BUS, EfiStatus.NOT_FOUND)
    assert final_state(story.trace) == {
        "front-end device/vbd/0": 6,
        "resets of the ring": 2,
        "reference count": 2,
        "take-over of grant-table": "in the way",
        "take-over of store": "OK",
        "take-over of device/vbd/0": "in the way",
    }


def test_runs_without_an_exit_are_compared_from_their_first_step() -> None:
    """There is no step of the exit to point at."""

    def resets(story: Story) -> None:
        story.reset("ring", 0)

    def nothing(story: Story) -> None:
        story.operation()

    (finding,) = compare([told("edk2", nothing), told("fifo", resets)])
    assert (finding.rule, finding.step) == ("state-differs", 0)


def test_a_state_that_differs_is_told_at_the_exit() -> None:
    """As a verdict is."""

    def other(story: Story) -> None:
        clean(story)
        story.reset("ring", 0)

    runs = [told("edk2", clean), told("fifo", other)]
    (finding,) = compare(runs)
    assert runs[0].trace.records[finding.step][5] == "exit-group"


def test_when_a_removed_device_is_gone_is_up_to_its_backend() -> None:
    """A slow backend takes the node away before the hand-over in one order, and after it in another."""
    steps = (CONNECT, operation("remove-device"), operation("backend", delay=5), EXIT)
    made = platform("reference-count", *steps, devices=("block", "block"))
    states = {
        order: final_state(run(replace(made, order=order)))["front-end device/vbd/0"] for order in ("edk2", "fifo")
    }
    assert states == {"edk2": 1, "fifo": 0}
    assert run_in_orders(made).findings == []
