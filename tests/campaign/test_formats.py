"""What CI systems read: SARIF, JUnit XML and Markdown, made of the JSON answer."""

from __future__ import annotations

import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from campaign import formats
from campaign.formats import DOCUMENTS, ROOT, junit, markdown, sarif
from oracles import RULES

HOSTILE = "<script>|`*\n\0&\"'"


def finding(**changes: Any) -> dict[str, Any]:
    """One finding of the answer."""
    values = {
        "design": "disconnect",
        "oracle": "memory-services",
        "rule": "direct-call",
        "agent": "XenBusDxe",
        "subject": "FreePool",
        "signature": "memory-services/direct-call/XenBusDxe/FreePool",
        "count": 1200,
        "reproducer": str(Path.cwd() / "out" / "findings" / "one"),
        "note": False,
        "known": False,
        "minimized": True,
        "source": "UEFI 2.10 §7.1.1",
        "expected": "No call.",
        "seen": "A call.",
        "orders": ["edk2", [1, 0]],
    }
    return values | changes


KNOWN = finding(subject="FreePages", signature="memory-services/direct-call/XenBusDxe/FreePages", known=True)
NOTE = finding(rule="frees-inside", signature="memory-services/frees-inside/XenBusDxe/CloseEvent", note=True)


def answer(*findings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The answer of a run of two designs."""
    designs = [
        {"design": name, "executions": 5000, "edges": 7, "features": 8, "corpus_size": 9, "findings": 1}
        for name in ("disconnect", "reference-count")
    ]
    values = {"target": "lifecycle", "executions": 10_000, "executions_per_second": 100.0, "seconds": 100.0}
    return values | {"interrupted": False, "problems": [], "designs": designs, "findings": list(findings)} | changes


# ---- SARIF ----------------------------------------------------------------------------------------------------------

# Object → the properties that SARIF 2.1.0 requires of it (OASIS, sarif-schema-2.1.0.json).
REQUIRED = {
    "log": {"version", "runs"},
    "run": {"tool"},
    "driver": {"name"},
    "rule": {"id"},
    "result": {"message"},
    "invocation": {"executionSuccessful"},
    "notification": {"message"},
    "suppression": {"kind"},
}


def test_a_sarif_log_has_what_its_schema_requires():
    """Each object in it, also where something went wrong."""
    log = json.loads(sarif(answer(finding(), KNOWN, NOTE, problems=["a worker failed"])))
    (run,) = log["runs"]
    objects = {
        "log": [log],
        "run": [run],
        "driver": [run["tool"]["driver"]],
        "rule": run["tool"]["driver"]["rules"],
        "result": run["results"],
        "invocation": run["invocations"],
        "notification": run["invocations"][0]["toolExecutionNotifications"],
        "suppression": run["results"][1]["suppressions"],
    }
    for kind, ones in objects.items():
        assert ones
        for one in ones:
            assert REQUIRED[kind] <= set(one), kind
    assert (log["version"], log["$schema"]) == ("2.1.0", formats.SARIF_SCHEMA)
    assert all(result["message"]["text"] for result in run["results"])
    assert [result["level"] for result in run["results"]] == ["error", "error", "note"]
    assert {result["level"] for result in run["results"]} <= {"none", "note", "warning", "error"}
    assert not run["invocations"][0]["executionSuccessful"]


def test_a_result_names_its_rule_and_a_rule_its_source():
    """By id and by place in the list; each rule is listed once."""
    (run,) = json.loads(sarif(answer(finding(), KNOWN, NOTE)))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["memory-services/direct-call", "memory-services/frees-inside"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert "Source: UEFI 2.10 §7.1.1." in rules[0]["help"]["text"]
    assert "tianocore/edk2#9802" in rules[0]["help"]["text"]


def test_a_fingerprint_depends_on_design_and_signature_alone():
    """An alert stays the same alert when figures and sentences change, and is another one in another design."""

    def fingerprint(one: dict[str, Any]) -> str:
        return json.loads(sarif(answer(one)))["runs"][0]["results"][0]["partialFingerprints"]["ebsfuzz/v1"]

    assert fingerprint(finding()) == fingerprint(finding(count=5, seen="Another.", reproducer="/elsewhere"))
    assert fingerprint(finding()) != fingerprint(finding(design="reference-count"))
    assert fingerprint(finding()) != fingerprint(KNOWN)


def test_a_result_points_into_the_repository_or_to_its_reproducer(monkeypatch, tmp_path):
    """To the file of the design where there is one; the reproducer is named besides."""

    def places(one: dict[str, Any]) -> tuple[str, list[str]]:
        result = json.loads(sarif(answer(one)))["runs"][0]["results"][0]
        uris = [
            [place["physicalLocation"]["artifactLocation"]["uri"] for place in result[name]]
            for name in ("locations", "relatedLocations")
        ]
        return uris[0][0], uris[1]

    first, related = places(finding())
    assert (ROOT / first).is_file()
    assert first == "reference_impl/xenbus/designs/disconnect.py"
    assert related == ["out/findings/one/README.md", "out/findings/one/scenario.yaml"]
    first, _ = places(finding(design="", reproducer=str(Path.cwd() / "with space" / "x")))
    assert first == "with%20space/x/scenario.yaml"
    first, _ = places(finding(design="", reproducer=str(tmp_path / "x")))
    assert first == (tmp_path / "x" / "scenario.yaml").as_uri()


# ---- JUnit ----------------------------------------------------------------------------------------------------------


def test_every_rule_is_a_test_case_and_every_finding_too():
    """A new one fails, a known one is skipped, a note passes."""
    root = ElementTree.fromstring(junit(answer(finding(), KNOWN, NOTE)))
    disconnect, other = root
    rules = sum(map(len, RULES.values()))
    assert (other.get("tests"), other.get("failures")) == (str(rules), "0")
    assert (disconnect.get("tests"), disconnect.get("failures"), disconnect.get("skipped")) == (
        str(rules + 1),
        "1",
        "1",
    )
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == (str(2 * rules + 1), "1", "0")
    (failure,) = root.iter("failure")
    assert failure.get("message") == "A call."
    assert "replay: " in (failure.text or "")
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert ("ebsfuzz.lifecycle.disconnect.memory-services", "direct-call: XenBusDxe, FreePool") in names
    assert len(set(names)) == len(names)


def test_a_failure_of_ebsfuzz_itself_is_an_error_and_no_failure():
    """Nothing passes for a verdict."""
    root = ElementTree.fromstring(junit(answer(problems=["a worker failed\nin line 3"])))
    assert {error.get("message") for error in root.iter("error")} == {"a worker failed"}
    assert (root.get("failures"), root.get("errors")) == ("0", "2")


# ---- Markdown -------------------------------------------------------------------------------------------------------


def test_the_page_has_the_verdict_the_table_and_each_new_finding():
    """With the command that replays it; known ones and notes are listed by signature."""
    text = markdown(answer(finding(), KNOWN, NOTE))
    assert text.startswith("## ebsfuzz lifecycle: 1 new finding\n")
    assert "| memory-services/direct-call | 2 (2,400) | – |" in text
    assert "### memory-services/direct-call by XenBusDxe in disconnect" in text
    assert "| **how often** | 1,200 executions |" in text
    assert "replay out/findings/one\n```" in text
    assert "### Known\n\n* `memory-services/direct-call/XenBusDxe/FreePages` in disconnect" in text
    assert "1 known, 1 note." in text
    assert "no new findings" in markdown(answer())
    assert "ebsfuzz itself failed" in markdown(answer(problems=["a worker failed"]))


# ---- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_text_of_a_finding_is_text_in_every_document(name):
    """Whatever a driver under test is called; and a target's own oracle is in no table of rules."""
    hostile = finding(agent=HOSTILE, seen=HOSTILE, expected=HOSTILE, subject=HOSTILE, oracle="canary", rule="planted")
    text = DOCUMENTS[name](answer(hostile, NOTE | {"signature": f"a/b/c/{HOSTILE}", "seen": HOSTILE}))
    if name == "junit":
        assert not list(ElementTree.fromstring(text).iter("script"))
    elif name == "markdown":
        assert "<script" not in text.replace("\\<script", "").replace("`a/b/c/<script", "")
    else:
        assert json.loads(text)


def test_one_answer_serves_several_readers(monkeypatch, capsys):
    """A program of its own turns the JSON answer into the others."""
    monkeypatch.setattr(sys, "argv", ["formats", "junit"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(answer(finding()))))
    assert formats.main() == 0
    assert capsys.readouterr().out == junit(answer(finding())) + "\n"
