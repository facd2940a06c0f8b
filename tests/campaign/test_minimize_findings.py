"""The minimizer on findings of the real world: exact answers, and 1-minimality by brute force."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from campaign.minimize import is_minimal, minimize, signatures
from fuzz_targets.generator import generate
from fuzz_targets.registry import TARGETS
from reference_impl.faulty import FAULTS
from reference_impl.scenario import Scenario, operation, scenario

FINDINGS = 200


def findings(count: int) -> Iterator[tuple[Scenario, str]]:
    """Generated scenarios with one of their signatures: of every design and fault in turn, no two of them equal."""
    rng = Random(9)
    seen: set[tuple[str, str, str]] = set()
    cases = [("disconnect", "")] + [
        (design, fault) for fault in FAULTS for design in ("reference-count", "exit-callback")
    ]
    for _ in range(40):
        for design, fault in cases:
            made = generate(rng, TARGETS[rng.choice(("lifecycle", "exit_boot_services"))], design, fault)
            for signature in signatures(made):
                repeated = (design, fault, signature) in seen
                seen.add((design, fault, signature))
                if not repeated or rng.random() < 0.2:
                    yield made, signature
                    count -= 1
                    if count == 0:
                        return


def test_memory_findings_of_disconnect_become_connect_and_exit():
    """Connect the bus recursively, exit boot services; a device only where the finding is one of its driver's."""
    rng = Random(1)
    wanted = "memory-services/direct-call/XenBusDxe/FreePages"
    while wanted not in signatures(start := generate(rng, TARGETS["lifecycle"], "disconnect")):
        pass
    found = [signature for signature in signatures(start) if signature.startswith("memory-services/direct-call/XenBus")]
    assert len(start.operations) > 2
    for signature in found:
        least = minimize(start, signature)
        assert least.operations == (operation("connect"), operation("exit"))
        assert (least.order, least.reconnection) == ("edk2", True)
    free = minimize(start, wanted)
    assert free == scenario(design="disconnect", operations=(operation("connect"), operation("exit")))


def test_minimized_findings_are_one_minimal():
    """No removal, no simpler argument and no swap towards edk2's order keeps the signature, over 200 findings."""
    count = 0
    for start, signature in findings(FINDINGS):
        least = minimize(start, signature, remark=pytest.fail)
        assert signature in signatures(least)
        assert is_minimal(least, signature) == [], (least, signature)
        count += 1
    assert count == FINDINGS


def test_the_minimizer_leaves_no_more_than_hypothesis_does():
    """On the same findings; shrinkray is compared where a later Python is there to install it for, so not here."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(root / "scripts/bench.py"), "--minimize", "--rounds", "1"],
        env={**os.environ, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ebsfuzz leaves fewer operations than Hypothesis on" in done.stdout
    assert "more on 0" in done.stdout
    assert "could not be measured here: it needs Python 3.12 or later" in done.stdout
