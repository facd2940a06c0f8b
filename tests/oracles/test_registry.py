"""What holds for all oracles alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given

import oracles
from oracles import DESCRIPTIONS, ORACLES, RULES, judge
from oracles.finding import Finding
from reference_impl.trace import Kind, Trace
from reference_impl.uefi.definitions import EventType, OpenAttribute, Tpl
from tests.oracles.pairs import PAIRS
from tests.oracles.stories import BLOCK, BUS, Story, traces

WORDS = frozenset((*EventType.__members__.values(), *OpenAttribute, *Tpl))  # an iteration leaves out types of two bits
"""Numbers that mean something by themselves. Where a handle has the same number, it keeps it."""


@pytest.mark.parametrize("signature", PAIRS)
def test_planted_bug_is_reported_once_and_alone(signature: str) -> None:
    """A story that breaks one rule has one finding: with its signature, and source and sentence of the rule."""
    story = Story()
    PAIRS[signature][0](story)
    assert story.signatures() == [signature]
    finding = judge(story.trace)[0]
    assert (finding.source, finding.expected) == RULES[finding.oracle][finding.rule]
    assert 0 <= finding.step < len(story.trace.records)


@pytest.mark.parametrize("signature", PAIRS)
def test_near_miss_is_accepted(signature: str) -> None:
    """A story that comes close to breaking the rule has no finding at all."""
    story = Story()
    PAIRS[signature][1](story)
    assert story.signatures() == []


def test_every_rule_has_its_pair() -> None:
    """No rule can be reported that is not shown by a planted bug and a near miss, and none is only listed.

    The comparison of several runs has its pairs in its own test.
    """
    listed = {f"{oracle}/{rule}" for oracle, rules in RULES.items() if oracle in ORACLES for rule in rules}
    assert {"/".join(signature.split("/")[:2]) for signature in PAIRS} == listed


def test_every_oracle_describes_itself_in_a_sentence() -> None:
    """`ebsfuzz list oracles` has something to say about each of them."""
    assert [*ORACLES, "order-independence"] == list(DESCRIPTIONS) == list(RULES)
    assert all(description.endswith(".") for description in DESCRIPTIONS.values())
    assert all(rule.sentence.endswith(".") and rule.source for rules in RULES.values() for rule in rules.values())


def test_judge_gives_each_signature_once_in_order_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a rule is broken several times, the first place stands for it, whatever order an oracle reports in."""
    story = Story()
    with story.exit():
        for agent in (BLOCK, BUS, BLOCK):
            with story.notification(agent):
                story.service("FreePool", agent)
    check = ORACLES["memory-services"]
    monkeypatch.setattr(oracles, "ORACLES", {"there": check, "back": lambda reading: reversed([*check(reading)])})
    findings = judge(story.trace)
    assert [(finding.agent, finding.step) for finding in findings] == [(BLOCK, 3), (BUS, 5)]


@pytest.mark.parametrize("order", [list, reversed], ids=["in order", "backwards"])
def test_judge_prefers_the_earlier_of_two_equal_findings(
    monkeypatch: pytest.MonkeyPatch, order: Callable[[list[Finding]], Iterable[Finding]]
) -> None:
    """An oracle may report the later one first, or last."""
    story = Story()
    for _ in range(3):
        story.reset("ring", 0)
    check = ORACLES["connection-reset"]
    assert [finding.step for finding in check(story.reading)] == [1, 2]
    monkeypatch.setattr(oracles, "ORACLES", {"some": lambda reading: order([*check(reading)])})
    assert [finding.step for finding in judge(story.trace)] == [1]


@given(traces())
def test_findings_name_a_rule_a_driver_and_a_record(trace: Trace) -> None:
    """Whatever a trace holds, a finding has a listed rule, an agent, sentences, and the index of a record."""
    for finding in judge(trace):
        assert finding.rule in RULES[finding.oracle]
        assert finding.agent
        assert finding.seen.endswith(".")
        assert 0 <= finding.step < len(trace.records)


@given(traces())
def test_signatures_do_not_depend_on_numbers_of_the_run(trace: Trace) -> None:
    """Other addresses, sizes, generations and device numbers give the same signatures at the same steps."""

    def renumbered(value: Any) -> Any:
        return value * 3 + 7 if isinstance(value, int) and value and value not in WORDS else value  # 0 stands for none

    other = Trace()
    for kind, agent, tpl, depth, phase, name, arguments, status, value in trace.records:
        path = name.replace("/vbd/", "/vbd/51") if kind == Kind.TAKE_OVER else name
        renamed = tuple(renumbered(argument) for argument in arguments)
        other.records.append((kind, agent, tpl, depth, phase, path, renamed, status, renumbered(value)))
    expected = [(finding.signature, finding.step) for finding in judge(trace)]
    assert [(finding.signature, finding.step) for finding in judge(other)] == expected


@given(traces())
def test_judging_leaves_the_trace_alone(trace: Trace) -> None:
    """Two judgements of one trace are equal, and the trace is as it was."""
    records = list(trace.records)
    assert judge(trace) == judge(trace)
    assert trace.records == records
