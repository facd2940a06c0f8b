"""Findings of real runs: minimized to the last step, and the same in every process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from campaign import reproducer
from campaign.minimize import is_minimal, minimize, signatures
from fuzz_targets import codec
from fuzz_targets.generator import generate
from fuzz_targets.harness import run_and_judge
from fuzz_targets.registry import TARGETS
from reference_impl.faulty import FAULTS
from reference_impl.scenario import operation
from tests.scenarios import CONNECT, EXIT

CONNECT_RECURSIVELY = operation("connect", controller="bus", driver="any", recursive=True)
SHALLOW = [fault for fault in FAULTS if fault != "six-stage-chain"]
FINDINGS = int(os.environ.get("EBSFUZZ_TEST_FINDINGS", "24"))
"""How many findings are minimized and checked by brute force; a release is checked with 200."""


def findings(count):
    """`count` different (scenario, signature) of generated scenarios, over the broken design and the seeded faults."""
    source = random.Random(11)
    seen = set()
    kinds = [("disconnect", ""), *(("reference-count", fault) for fault in SHALLOW)]
    while len(seen) < count:
        design, fault = kinds[len(seen) % len(kinds)]
        target = TARGETS[source.choice(("lifecycle", "exit_boot_services"))]
        scenario = generate(source, target, design, fault)
        for signature in sorted(signatures(scenario)):
            if (scenario, signature) not in seen and len(seen) < count:
                seen.add((scenario, signature))
                yield scenario, signature
                break


@pytest.mark.parametrize("part", range(4))
def test_minimized_findings_have_nothing_left_to_take_away(part):
    """By brute force: no operation, device, simpler argument or swap towards edk2's order can still be taken."""
    for scenario, signature in list(findings(FINDINGS))[part::4]:
        small = minimize(scenario, signature)
        assert signature in signatures(small)
        assert is_minimal(small, signature) == [], codec.encode(scenario).hex()


def test_the_memory_findings_of_disconnect_become_connect_and_exit():
    """Each one, from whatever scenario: connect the bus recursively, exit boot services, and the device that it is about."""
    source = random.Random(3)
    done = set()
    for _ in range(150):
        scenario = generate(source, TARGETS["lifecycle"], "disconnect")
        for signature in signatures(scenario):
            if signature.startswith("memory-services/") and signature not in done:
                done.add(signature)
                small = minimize(scenario, signature)
                assert small.operations == (CONNECT_RECURSIVELY, EXIT)
                assert small.order == "edk2"
                assert len(small.devices) <= 1
    assert len(done) >= 12


REPLAY = """
import sys
from fuzz_targets.harness import run_and_judge
from fuzz_targets.input_files import read_scenario
traces, signatures = set(), set()
for _ in range(int(sys.argv[2])):
    for name in ("scenario.yaml", "scenario.bin"):
        trace, findings = run_and_judge(read_scenario(f"{sys.argv[1]}/{name}"))
        traces.add(repr(trace.records))
        signatures.add(tuple(finding.signature for finding in findings))
assert len(traces) == len(signatures) == 1
print(hash(()) and "", *signatures.pop(), sep="\\n")
print(__import__("hashlib").sha256(traces.pop().encode()).hexdigest())
"""


@pytest.mark.parametrize("number", range(3))
def test_a_reproducer_gives_the_same_trace_in_every_process(number, tmp_path):
    """From its YAML and from its bytes, 100 times, with another hash seed and working directory."""
    scenario, signature = list(findings(6))[number * 2]
    folder = reproducer.write(tmp_path / "finding", minimize(scenario, signature), signature, codec.encode(scenario))
    said = set()
    for seed in ("1", "2"):
        elsewhere = tmp_path / seed
        elsewhere.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", REPLAY, str(folder), "50"],
            cwd=elsewhere,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1
    assert signature in said.pop().splitlines()


def test_a_scenario_survives_both_forms_and_runs_alike():
    """Bytes and back, YAML and back: the same scenario, and so the same trace."""
    from fuzz_targets import scenario_yaml

    source = random.Random(23)
    for name, target in TARGETS.items():
        for _ in range(20):
            scenario = generate(source, target, target.designs[0])
            assert codec.decode(codec.encode(scenario)) == scenario, name
            assert scenario_yaml.load(scenario_yaml.dump(scenario), "x.yaml") == scenario, name
            assert repr(run_and_judge(scenario).trace.records) == repr(run_and_judge(scenario).trace.records)


def test_connect_and_exit_are_enough_for_the_simplest_finding():
    """The scenario that the README explains."""
    assert (CONNECT_RECURSIVELY, EXIT) == (CONNECT, EXIT)
