"""The same scenario gives the same trace: in every form, process, working directory and with every hash seed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from campaign import reproducer
from campaign.minimize import minimize, signatures
from fuzz_targets import codec, scenario_yaml
from fuzz_targets.generator import generate
from fuzz_targets.harness import run_and_judge
from fuzz_targets.registry import TARGETS

REPLAY = """
import hashlib, sys
from fuzz_targets.harness import run_and_judge
from fuzz_targets.input_files import read_scenario
said = set()
for _ in range(50):
    for name in ("scenario.yaml", "scenario.bin"):
        trace, findings = run_and_judge(read_scenario(f"{sys.argv[1]}/{name}"))
        digest = hashlib.sha256(repr(trace.records).encode()).hexdigest()
        said.add((digest, *(finding.signature for finding in findings)))
assert len(said) == 1
print(*said.pop(), sep="\\n")
"""


@pytest.mark.parametrize(("design", "fault"), [("disconnect", ""), ("reference-count", "handler-never-disconnects")])
def test_a_reproducer_gives_the_same_trace_in_every_process(design, fault, tmp_path):
    """From its YAML and from its bytes, 100 times each, with another hash seed and working directory."""
    source = random.Random(11)
    while not (found := signatures(scenario := generate(source, TARGETS["lifecycle"], design, fault))):
        pass
    small = minimize(scenario, found[0])
    folder = reproducer.write(tmp_path, small, found[0], codec.encode(scenario), run_and_judge(small))
    said = set()
    for seed in ("1", "2"):
        elsewhere = tmp_path / seed
        elsewhere.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", REPLAY, str(folder)],
            cwd=elsewhere,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1
    assert found[0] in said.pop().splitlines()


@pytest.mark.parametrize("name", TARGETS)
def test_a_scenario_survives_both_forms_and_runs_alike(name):
    """Bytes and back, YAML and back: the same scenario; and two runs of it agree in every record."""
    source = random.Random(23)
    target = TARGETS[name]
    for _ in range(20):
        scenario = generate(source, target, target.designs[0])
        assert codec.decode(codec.encode(scenario)) == scenario
        assert scenario_yaml.load(scenario_yaml.dump(scenario), "x.yaml") == scenario
        assert repr(run_and_judge(scenario).trace.records) == repr(run_and_judge(scenario).trace.records)
