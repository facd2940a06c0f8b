"""The answer of `ebsfuzz run` in the forms that CI systems read: SARIF, JUnit XML and Markdown.

Each is made of the JSON answer (`Result.as_object`) and of nothing else, so that all four tell the same.

* SARIF 2.1.0 (OASIS) for code scanning. A result points to the file of the teardown design, where the repository has it,
  and else to the reproducer. Its fingerprint is made of design and signature, so that an alert stays the same alert.
* JUnit XML for test views: each rule is a test case of its design; a finding is a failure, a known one is skipped.
* Markdown for a job's page.

`python -m campaign.formats FORMAT` makes any of them of a JSON answer on standard input, so that one run can serve several
readers.
"""

from __future__ import annotations

import hashlib
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign.diagram import xml_text
from campaign.display import replay_command, shown
from campaign.durations import format_duration
from campaign.markdown import code, escaped, fenced, table
from campaign.public_bugs import link_of, similar_to
from campaign.statistics import version_of
from oracles import RULES
from reference_impl.scenario import DESIGNS

Answer = dict[str, Any]
"""What `Result.as_object` gives."""

ROOT = Path(__file__).resolve().parent.parent
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def counts(finding: Answer) -> bool:
    """Whether a finding makes the exit status 1."""
    return not finding["known"] and not finding["note"]


# ---- SARIF ----------------------------------------------------------------------------------------------------------


def sarif(answer: Answer) -> str:
    """A SARIF log of one run. Known findings are suppressed results; what went wrong are notifications."""
    rules = list(dict.fromkeys((one["oracle"], one["rule"]) for one in answer["findings"]))
    run = {
        "tool": {
            "driver": {
                "name": "ebsfuzz",
                "version": version_of("ebsfuzz") or "0",
                "rules": [_sarif_rule(*rule, answer) for rule in rules],
            }
        },
        "automationDetails": {"id": f"ebsfuzz/{answer['target']}/"},
        "columnKind": "utf16CodeUnits",
        "invocations": [
            {
                "executionSuccessful": not answer["problems"],
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": problem}} for problem in answer["problems"]
                ],
            }
        ],
        "results": [
            _sarif_result(one, rules.index((one["oracle"], one["rule"])), answer) for one in answer["findings"]
        ],
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, ensure_ascii=False, indent=1)


def _sarif_rule(oracle: str, rule: str, answer: Answer) -> Answer:
    found = next(one for one in answer["findings"] if (one["oracle"], one["rule"]) == (oracle, rule))
    known = RULES.get(oracle, {}).get(rule)  # a fuzz target may have an oracle of its own
    sentence, source = (known.sentence, known.source) if known else (found["expected"], found["source"])
    bugs = similar_to(oracle, rule)
    like = "".join(f"\n* {bug.what}: {', '.join(map(_link, bug.places))}" for bug in bugs.values())
    words = "; ".join(f"{bug.what} ({', '.join(bug.places)})" for bug in bugs.values())
    return {
        "id": f"{oracle}/{rule}",
        "name": "".join(word.capitalize() for word in f"{oracle}-{rule}".split("-")),
        "shortDescription": {"text": sentence},
        "fullDescription": {"text": f"{sentence} Source: {source}."},
        "defaultConfiguration": {"level": "note" if found["note"] else "error"},
        "help": {
            "text": f"{sentence} Source: {source}." + (f" Public bugs of this kind: {words}." if words else ""),
            "markdown": f"{escaped(sentence)}\n\nSource: {escaped(source)}."
            + (f"\n\nPublic bugs of this kind:\n{like}" if like else ""),
        },
        "properties": {"tags": ["uefi", "ExitBootServices", oracle], "precision": "very-high"},
    }


def _link(place: str) -> str:
    link = link_of(place)
    return f"[{escaped(place)}]({link})" if link else escaped(place)


def _sarif_result(finding: Answer, rule_index: int, answer: Answer) -> Answer:
    reproducer = shown(Path(finding["reproducer"]))
    tested = finding["design"] or answer["target"]
    fingerprint = hashlib.sha256(f"{tested}\0{finding['signature']}".encode()).hexdigest()[:32]
    result = {
        "ruleId": f"{finding['oracle']}/{finding['rule']}",
        "ruleIndex": rule_index,
        "level": "note" if finding["note"] else "error",
        "message": {
            "text": f"{finding['agent']} in {tested}: {finding['seen']} Expected: {finding['expected']} "
            f"Replay it with: {replay_command(Path(finding['reproducer']))}"
        },
        "locations": [_location(_file_of(finding) or f"{reproducer}/scenario.yaml")],
        "relatedLocations": [
            _location(f"{reproducer}/README.md", "what is wrong, with a sequence diagram"),
            _location(f"{reproducer}/scenario.yaml", "the scenario that shows it"),
        ],
        # Code scanning goes by primaryLocationLineHash; other readers go by all of them.
        "partialFingerprints": {"ebsfuzz/v1": fingerprint, "primaryLocationLineHash": f"{fingerprint}:1"},
        "properties": {
            **{name: finding[name] for name in ("design", "signature", "count", "orders", "minimized")},
            "reproducer": reproducer,
        },
    }
    if finding["known"]:
        result["suppressions"] = [{"kind": "external", "justification": "a baseline lists the signature"}]
    return result


def _file_of(finding: Answer) -> str:
    """The file of the design that broke the rule, relative to the checkout; "" where it has none of its own."""
    if finding["design"] not in DESIGNS:
        return ""
    path = Path("reference_impl", "xenbus", "designs", f"{finding['design'].replace('-', '_')}.py")
    return path.as_posix() if (ROOT / path).is_file() else ""


def _location(uri: str, message: str = "") -> Answer:
    artifact: Answer = {"uri": Path(uri).as_uri()} if Path(uri).is_absolute() else {"uri": _quoted(uri)}
    if not Path(uri).is_absolute():
        artifact["uriBaseId"] = "%SRCROOT%"
    location: Answer = {"physicalLocation": {"artifactLocation": artifact, "region": {"startLine": 1}}}
    return location | ({"message": {"text": message}} if message else {})


def _quoted(path: str) -> str:
    """A relative path as a URI reference."""
    return Path("/", path).as_uri().removeprefix("file:///")


# ---- JUnit ----------------------------------------------------------------------------------------------------------


def junit(answer: Answer) -> str:
    """Test suites, one for each design: a case for each rule that holds, and one for each finding."""
    root = ElementTree.Element("testsuites", name=f"ebsfuzz {answer['target']}")
    for figures in answer["designs"]:
        here = [one for one in answer["findings"] if one["design"] == figures["design"]]
        name = ".".join(filter(None, ("ebsfuzz", answer["target"], figures["design"])))
        suite = ElementTree.SubElement(root, "testsuite", name=name, time=f"{answer['seconds']:.1f}")
        broken = {(one["oracle"], one["rule"]) for one in here}
        for oracle, rules in RULES.items():
            for rule in rules:
                if (oracle, rule) not in broken:
                    ElementTree.SubElement(suite, "testcase", classname=f"{name}.{oracle}", name=rule)
        for finding in here:
            _add_case(suite, name, finding)
        for index, problem in enumerate(answer["problems"]):
            case = ElementTree.SubElement(suite, "testcase", classname=f"{name}.ebsfuzz", name=f"runs-{index}")
            ElementTree.SubElement(case, "error", message=xml_text(problem.splitlines()[0])).text = xml_text(problem)
        for attribute, tag in (
            ("tests", "testcase"),
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            suite.set(attribute, str(sum(1 for _ in suite.iter(tag))))
    for attribute in ("tests", "failures", "errors", "skipped"):
        root.set(attribute, str(sum(int(suite.get(attribute, "0")) for suite in root)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _add_case(suite: ElementTree.Element, name: str, finding: Answer) -> None:
    title = f"{finding['rule']}: {finding['agent']}, {finding['subject']}"
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"{name}.{finding['oracle']}",
        name=xml_text(title),
        file=shown(Path(finding["reproducer"])),
    )
    story = "\n".join(f"{heading}: {text}" for heading, text in _facts(finding).items())
    if counts(finding):
        element = ElementTree.SubElement(
            case, "failure", message=xml_text(finding["seen"]), type=xml_text(finding["signature"])
        )
    elif finding["known"]:
        element = ElementTree.SubElement(case, "skipped", message="known: a baseline lists the signature")
    else:
        element = ElementTree.SubElement(case, "system-out")
    element.text = xml_text(story)


def _facts(finding: Answer) -> dict[str, str]:
    path = Path(finding["reproducer"])
    return {
        "signature": finding["signature"],
        "expected": f"{finding['expected']} ({finding['source']})",
        "seen": finding["seen"],
        "how often": _number(finding["count"], "execution"),
        "notification orders": ", ".join(map(str, finding["orders"])),
        "reproducer": shown(path) + ("" if finding["minimized"] else " (not minimized)"),
        "replay": replay_command(path),
    }


# ---- Markdown -------------------------------------------------------------------------------------------------------


def markdown(answer: Answer) -> str:
    """A page: the verdict, the table designs × rules, and each finding that counts with its commands."""
    new = [one for one in answer["findings"] if counts(one)]
    known = [one for one in answer["findings"] if one["known"]]
    notes = [one for one in answer["findings"] if one["note"] and not one["known"]]
    verdict = "ebsfuzz itself failed" if answer["problems"] else _number(len(new), "new finding")
    parts = [
        f"## ebsfuzz {escaped(answer['target'])}: {verdict}",
        f"{answer['executions']:,} executions in {format_duration(answer['seconds'])} "
        f"({answer['executions_per_second']:,.0f}/s){', interrupted' if answer['interrupted'] else ''}; "
        f"{len(known)} known, {_number(len(notes), 'note')}.",
        *(fenced(problem, "text") for problem in answer["problems"]),
        _rules_table(answer),
    ]
    for finding in new:
        heading = f"{finding['oracle']}/{finding['rule']} by {finding['agent']}"
        rows = [
            (f"**{name}**", code(text) if name in ("signature", "reproducer") else escaped(text))
            for name, text in _facts(finding).items()
            if name != "replay"
        ]
        parts += [
            f"### {escaped(heading)} in {escaped(finding['design'] or answer['target'])}",
            table(("", ""), rows),
            fenced(replay_command(Path(finding["reproducer"])), "sh"),
        ]
    for title, ones in (("Known", known), ("Notes, which do not change the exit status", notes)):
        if ones:
            parts += [
                f"### {title}",
                "\n".join(
                    f"* {code(one['signature'])} in {escaped(one['design'] or answer['target'])}" for one in ones
                ),
            ]
    return "\n\n".join(parts)


def _rules_table(answer: Answer) -> str:
    designs = [figures["design"] for figures in answer["designs"]]
    rows = [
        (name.replace("_", " "), *(f"{figures[name]:,.0f}" for figures in answer["designs"]))
        for name in ("executions", "edges", "features", "corpus_size")
    ]
    for oracle, rule in sorted({(one["oracle"], one["rule"]) for one in answer["findings"]}):
        cells = []
        for design in designs:
            here = [
                one
                for one in answer["findings"]
                if (one["design"], one["oracle"], one["rule"]) == (design, oracle, rule)
            ]
            cells.append(f"{len(here)} ({sum(one['count'] for one in here):,})" if here else "–")
        rows.append((escaped(f"{oracle}/{rule}"), *cells))
    headings = ("findings (executions)", *(escaped(design or answer["target"]) for design in designs))
    return table(headings, rows, frozenset(range(1, len(headings))))


def _number(count: int, what: str) -> str:
    return f"{f'{count:,}' if count else 'no'} {what}{'' if count == 1 else 's'}"


DOCUMENTS: dict[str, Callable[[Answer], str]] = {
    "json": lambda answer: json.dumps(answer, ensure_ascii=False),
    "sarif": sarif,
    "junit": junit,
    "markdown": markdown,
}
"""Format → the document that ends standard output."""


def main() -> int:
    """Turn the JSON answer on standard input into the format that the first argument names."""
    print(DOCUMENTS[sys.argv[1]](json.load(sys.stdin)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
