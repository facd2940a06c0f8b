"""Stands in for `campaign.worker`: behaves as its first argument says. The configuration is the last argument, as always.

It uses the real store and real scenarios, and prints the lines that libFuzzer prints.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

import msgspec

from campaign import worker
from campaign.findings import FindingStore
from campaign.worker import WorkerConfig
from fuzz_targets import codec
from fuzz_targets.harness import run_and_judge
from reference_impl.scenario import operation, scenario

LEAVE = (operation("time"), operation("connect"), operation("exit"), operation("time"))
"""Connect the bus and leave, with something needless before and after."""

config = msgspec.json.decode(sys.argv[-1], type=WorkerConfig)
behaviour = sys.argv[1]


def say(*lines: str) -> None:
    """Print what libFuzzer prints."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def fuzz(runs: int) -> None:
    """Run one scenario again and again, and have its findings stored and counted."""
    made = scenario(design=config.design, devices=("block",), operations=LEAVE)
    data = codec.encode(made)
    findings = run_and_judge(made).findings
    store = FindingStore(Path(config.folder))
    for _ in range(runs):
        store.count_execution()
        for finding in findings:
            store.see(finding, made, lambda: data)
    live = Path(config.corpus)
    (live / hashlib.sha1(data).hexdigest()).write_bytes(data)
    (live / hashlib.sha1(b"cut off").hexdigest()).write_bytes(b"cut")  # killed, or out of room, while writing
    # What it was told, for tests to look at.
    with Path(config.folder).parents[1].joinpath("told.jsonl").open("a") as file:
        file.write(f"{sys.argv[-1]}\n")


def forever() -> None:
    """Until a signal comes; a minute at most."""
    signal.alarm(60)
    signal.pause()


say("INFO: Seed: 1", "#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 40Mb")
match behaviour:
    case "finds":
        fuzz(config.runs or 10)
        say("#9\tNEW    cov: 7 ft: 9 corp: 4/12b lim: 4 exec/s: 0 rss: 40Mb", "#10\tDONE   cov: 7 ft: 9 corp: 4/12b")
    case "silent":
        store = FindingStore(Path(config.folder))
        for _ in range(config.runs or 10):
            store.count_execution()
    case "idle":
        pass
    case crashing if crashing.startswith("crashes"):
        fuzz(3)
        name = crashing.rpartition("-on-")[2] if "-on-" in crashing else "0123"
        Path(config.folder, f"crash-{name}").write_bytes(b"input")
        say(" === Uncaught Python exception: ===", "RuntimeError: boo", "==17== ERROR: libFuzzer: fuzz target exited")
        sys.exit(worker.EXIT_CRASHED)
    case "no-engine":
        say(f"{worker.PROBLEM}no atheris here")
        sys.exit(worker.EXIT_NO_ENGINE)
    case "full":
        say(f"{worker.PROBLEM}{config.folder}: No space left on device")
        sys.exit(worker.EXIT_CANNOT_WRITE)
    case "endless":
        fuzz(5)
        forever()
    case "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        fuzz(5)
        forever()
    case "killed":
        fuzz(2)
        os.kill(os.getpid(), signal.SIGKILL)
    case unknown:
        sys.exit(f"unknown behaviour {unknown}")
