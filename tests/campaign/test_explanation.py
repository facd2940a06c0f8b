"""README.md of a reproducer."""

from __future__ import annotations

from dataclasses import replace

from campaign.explanation import explanation
from fuzz_targets.harness import run_and_judge
from reference_impl.scenario import operation, scenario

SCENARIO = scenario(design="disconnect", operations=(operation("connect"), operation("exit")))


def text_of(made, **changes) -> str:
    """README.md of the first finding of a run that is no note, one about memory services before all others."""
    verdict = run_and_judge(made)
    findings = sorted(verdict.findings, key=lambda finding: finding.oracle != "memory-services")
    finding = replace(next(one for one in findings if not one.note), **changes)
    return explanation(made, finding, verdict, ("edk2", (1, 0)), {"sequence.svg": "a diagram"})


def test_it_says_which_rule_is_broken_where_it_stands_and_which_bugs_are_like_it():
    """With the scenario, the broken step in an excerpt of the timeline, and the command that runs it again."""
    text = text_of(SCENARIO)
    assert text.startswith("# XenBusDxe breaks memory-services/")
    assert "(UEFI 2.10 §7.1.1)" in text
    assert "```yaml\nversion: 1\ndesign: disconnect\n" in text
    assert "1. `exit`: the loader calls ExitBootServices" in text
    assert "\n>>>" in text
    assert "https://github.com/tianocore/edk2/issues/" in text
    assert "`edk2`, `permutation [1, 0]`" in text
    assert "ebsfuzz replay ." in text
    assert "| `sequence.svg` | a diagram |" in text


def test_a_rule_without_public_bugs_says_so():
    """And a note says that it is one."""
    text = text_of(SCENARIO, oracle="canary", rule="planted", note=True)
    assert "None of this kind is known" in text
    assert text.startswith("# XenBusDxe breaks canary/planted: a note, no error\n")


def test_a_seeded_fault_is_said_to_be_put_in():
    """Nobody is to take it for a bug of the design."""
    text = text_of(replace(SCENARIO, design="reference-count", fault="bus-forgets-reset"))
    assert "`bus-forgets-reset`: the bus's notification never resets the connection. The bug is put in" in text


def test_a_world_without_designs_is_named_itself():
    """The firmware core alone, for one."""
    assert "`core`: the firmware core alone" in text_of_core()


def text_of_core() -> str:
    """README.md of a finding in the core world."""
    made = scenario(world="core", operations=(operation("exit"),))
    verdict = run_and_judge(made)
    finding = run_and_judge(SCENARIO).findings[0]
    return explanation(made, replace(finding, step=0), verdict, (), {})


def test_text_of_a_finding_is_no_markup():
    """It may come from a driver under test."""
    text = text_of(SCENARIO, agent="<b>|*x*", seen="| `y`")
    assert r"# \<b\>\|\*x\* breaks" in text
    assert r"| **Seen** | \| \`y\` |" in text
