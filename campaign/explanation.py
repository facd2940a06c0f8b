"""README.md of a reproducer: what is wrong, for a reader who has never heard of this project."""

from __future__ import annotations

from campaign.diagram import steps_to_show
from campaign.markdown import code, escaped, fenced, table
from campaign.public_bugs import link_of, similar_to
from fuzz_targets import scenario_yaml
from fuzz_targets.harness import Verdict
from oracles.finding import Finding
from reference_impl import timeline
from reference_impl.faulty import FAULTS
from reference_impl.scenario import DESIGNS, ENVIRONMENTS, OPERATIONS, WORLDS, Scenario

STEPS_MAX = 40  # of the run, in the excerpt


def explanation(
    scenario: Scenario,
    finding: Finding,
    verdict: Verdict,
    orders: tuple[str | tuple[int, ...], ...],
    files: dict[str, str],
) -> str:
    """The text of README.md.

    orders  the notification orders under which the finding appears
    files   what else is in the folder: name → what it is; the diagram among them under "sequence.svg"
    """
    facts = {
        "Rule": f"{escaped(finding.expected)} ({escaped(finding.source)})",
        "Seen": escaped(finding.seen),
        "Broken by": f"{escaped(finding.agent)}, in step {finding.step} of the run",
        "Under test": _under_test(scenario),
        "Environment": f"{code(scenario.environment)}: {escaped(ENVIRONMENTS[scenario.environment])}"
        + "".join(f"; switch {code(switch)}" for switch in scenario.switches),
        "Notification order": ", ".join(_order(order) for order in orders),
        "Signature": code(finding.signature),
    }
    if scenario.fault:
        facts["Seeded fault"] = (
            f"{code(scenario.fault)}: {escaped(FAULTS[scenario.fault])}. The bug is put in on purpose."
        )
    done = "\n".join(
        f"{number}. {code(step.kind)}: {OPERATIONS[step.kind].description}"
        for number, step in enumerate(scenario.operations)
    )
    steps = set(steps_to_show(verdict.trace, finding, STEPS_MAX))
    excerpt = "\n".join(timeline.lines(verdict.trace, {finding.step: finding.seen}, only=steps))
    bugs = similar_to(finding.oracle, finding.rule)
    parts = [
        f"# {escaped(finding.agent)} breaks {escaped(f'{finding.oracle}/{finding.rule}')}"
        + (": a note, no error" if finding.note else ""),
        table(("", ""), [(f"**{name}**", fact) for name, fact in facts.items() if fact]),
        "![Sequence diagram: the run from top to bottom, with the broken step marked](sequence.svg)",
        "## What is done",
        fenced(scenario_yaml.dump(scenario), "yaml"),
        done,
        "## What happens",
        "Step, phase of ExitBootServices and task priority level (TPL), then who does what; what happens inside a call is "
        "indented below it. This is an excerpt, `timeline.txt` has all of it.",
        fenced(excerpt, "text"),
        "## Similar public bugs",
        "\n".join(f"* {bug.what}: {', '.join(map(_link, bug.places))}" for bug in bugs.values())
        or "None of this kind is known to this project.",
        "## Run it again",
        "With ebsfuzz installed, in this folder:",
        fenced(
            "ebsfuzz replay .      # FAILED and status 1 while the bug is there, FIXED and 0 once it is gone\n"
            "python -m pytest .    # the same as a test, to keep",
            "sh",
        ),
        "## Files",
        table(("file", "is"), [(code(name), escaped(what)) for name, what in files.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _under_test(scenario: Scenario) -> str:
    if scenario.design:
        return f"the teardown design {code(scenario.design)}: {escaped(DESIGNS[scenario.design].description)}"
    return f"{code(scenario.world)}: {escaped(WORLDS[scenario.world])}"


def _order(order: str | tuple[int, ...]) -> str:
    return code(order if isinstance(order, str) else f"permutation {list(order)}")


def _link(place: str) -> str:
    link = link_of(place)
    return f"[{escaped(place)}]({link})" if link else escaped(place)
