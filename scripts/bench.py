"""Measures what a campaign lives on: executions per second, and how much feedback shortens the way to a deep fault.

`scripts/bench` prints, from one run with alternating order and medians over the rounds:

    atheris      executions/s of the lifecycle target under atheris, with guidance, mutation and judging
    plain        the very same scenarios, decoded, run and judged without atheris
    hypothesis   the same world under Hypothesis's RuleBasedStateMachine (fuzz_targets/state_machine.py)
    empty        an empty atheris target

with the mean operations and records of a scenario, the time of an operation and of a record, and where the time goes.
Machines are shared and noisy: ratios are taken inside a round, and medians over the rounds.

`scripts/bench --guest` measures real drivers (`guest_bench.py`), with ten runs for each round.

`scripts/bench --minimize` compares what the minimizer leaves with the shrinkers of others (`minimize_bench.py`), on ten
findings for each round; it ends with 1 where ours leaves more operations.

`scripts/bench --restart` starts a campaign again that has 10,000 entries in its corpus, beside one that has few.

`scripts/bench --feedback` fuzzes a fault that is six stages deep with and without feedback, over ten seeds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WARM_UP = 200  # executions before the clock starts, in every engine
CHAIN = "six-stage-chain"
CHAIN_LIMIT = 20_000  # executions after which a seed counts as not found
ENTRIES = 10_000  # of the corpus of a campaign that is begun again


# ---- children: one process each, because atheris never gives a process back -----------------------------------------


def atheris_child(inputs: Path, executions: int, seed: int) -> None:
    """Fuzz `executions` inputs, write them down, and print the seconds that they took."""
    from fuzz_targets import engine

    seen: list[bytes] = []
    begun = 0.0

    def on_verdict(data: bytes, scenario: Any, verdict: Any) -> None:
        nonlocal begun
        seen.append(data)
        if len(seen) == WARM_UP:
            begun = time.perf_counter()
        if len(seen) == WARM_UP + executions:
            seconds = time.perf_counter() - begun
            inputs.write_text(json.dumps([item.hex() for item in seen]))
            leave({"seconds": seconds})

    engine.fuzz("lifecycle", design="reference-count", arguments=[f"-seed={seed}"], on_verdict=on_verdict)


def empty_child(executions: int) -> None:
    """Run an empty target."""
    import atheris

    count, begun = 0, 0.0

    def one_input(data: bytes) -> None:
        nonlocal count, begun
        count += 1
        if count == WARM_UP:
            begun = time.perf_counter()
        if count == WARM_UP + executions:
            leave({"seconds": time.perf_counter() - begun})

    atheris.Setup([sys.argv[0]], one_input)
    atheris.Fuzz()


def plain_child(inputs: Path) -> None:
    """Run the inputs of an atheris child without atheris: time, sizes, and where the time goes."""
    from fuzz_targets import codec, harness
    from fuzz_targets.engine import RUNS_PER_COLLECTION, collect_by_hand
    from reference_impl.world import PlatformWorld

    scenarios = [bytes.fromhex(item) for item in json.loads(inputs.read_text())]
    collect_by_hand()

    def once(items: list[bytes]) -> tuple[int, int]:
        operations = records = 0
        for index, data in enumerate(items):
            scenario = codec.decode(data)
            trace, _ = harness.run_and_judge(scenario)
            operations += len(scenario.operations)
            records += len(trace.records)
            if index % RUNS_PER_COLLECTION == 0:
                gc.collect()
        return operations, records

    once(scenarios[:WARM_UP])
    begun = time.perf_counter()
    operations, records = once(scenarios[WARM_UP:])
    seconds = time.perf_counter() - begun
    empty = [codec.decode(data).with_operations(()) for data in scenarios[WARM_UP:][:300]]
    begun = time.perf_counter()
    for scenario in empty:
        PlatformWorld(scenario)
    building = (time.perf_counter() - begun) / len(empty)
    shares = sample(lambda: once(scenarios[WARM_UP:]))
    leave({"seconds": seconds, "operations": operations, "records": records, "building": building, "shares": shares})


def sample(work: Any) -> dict[str, int]:
    """Where the processor is while `work` runs: samples by part of the project, the innermost frame of ours counts."""
    found: Counter[str] = Counter()

    def look(_signal: int, frame: FrameType | None) -> None:
        while frame is not None and not frame.f_code.co_filename.startswith(str(ROOT)):
            frame = frame.f_back
        if frame is not None:
            found[part_of(Path(frame.f_code.co_filename).relative_to(ROOT))] += 1

    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    work()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return dict(found)


def part_of(path: Path) -> str:
    """The part of the project that a file belongs to, in the words of the bench."""
    names = {
        "uefi": "core",
        "xen": "platform",
        "xenbus": "drivers",
        "faulty": "drivers",
    }
    if path.parts[0] == "reference_impl":
        if path.name == "operating_system.py":
            return "operating system"
        return names.get(path.parts[1], "world")
    return {"oracles": "oracles", "fuzz_targets": "decoding"}.get(path.parts[0], "other")


def hypothesis_child(examples: int, steps: int) -> None:
    """Run the state machine."""
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    from fuzz_targets.harness import run_and_judge
    from fuzz_targets.state_machine import state_machine

    executions = operations = records = 0

    def run(scenario: Any) -> None:
        nonlocal executions, operations, records
        executions += 1
        operations += len(scenario.operations)
        records += len(run_and_judge(scenario).trace.records)

    machine = state_machine(("exit-callback", "reference-count"), run)
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(machine, settings=settings(chosen, max_examples=5))
    executions = operations = records = 0
    begun = time.perf_counter()
    run_state_machine_as_test(machine, settings=chosen)
    seconds = time.perf_counter() - begun
    leave({"seconds": seconds, "executions": executions, "operations": operations, "records": records})


def chain_child(seed: int) -> None:
    """Fuzz the chain until it is found; print how many executions that took, and the stage that was reached."""
    from fuzz_targets import engine
    from reference_impl.trace import Kind

    executions = stage = 0

    def on_verdict(data: bytes, scenario: Any, verdict: Any) -> None:
        nonlocal executions, stage
        executions += 1
        for record in verdict.trace.records:
            if record[0] == Kind.DRIVER_STATE:
                stage = max(stage, record[8])
        if any(finding.rule == "missed-reset" for finding in verdict.findings) or executions == CHAIN_LIMIT:
            leave({"executions": executions, "found": bool(verdict.findings), "stage": stage})

    arguments = [f"-seed={seed}"]
    engine.fuzz("lifecycle", design="reference-count", fault=CHAIN, arguments=arguments, on_verdict=on_verdict)


def leave(result: dict[str, Any]) -> None:
    """Give the result to the parent and end the process at once: libFuzzer would go on for ever."""
    print(json.dumps(result), flush=True)
    os._exit(0)


CHILDREN = {
    "atheris": lambda words: atheris_child(Path(words[0]), int(words[1]), int(words[2])),
    "empty": lambda words: empty_child(int(words[0])),
    "plain": lambda words: plain_child(Path(words[0])),
    "hypothesis": lambda words: hypothesis_child(int(words[0]), int(words[1])),
    "chain": lambda words: chain_child(int(words[0])),
}


def child(name: str, *words: object, **environment: str) -> dict[str, Any]:
    """Run a child to its end; its result. Raises RuntimeError with what it said where it has none."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


# ---- speed ------------------------------------------------------------------------------------------------------------


def speed(rounds: int, executions: int) -> None:
    """Print executions per second of every engine, and what a record costs."""
    rates: dict[str, list[float]] = {"atheris": [], "plain": [], "hypothesis": [], "empty": []}
    plains: list[dict[str, Any]] = []
    steps = 20
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            inputs = Path(folder) / f"{turn}.json"
            first = child("atheris", inputs, executions, turn + 1)
            # Plain runs on both sides of atheris' next turn would drift apart; each is paired with the one before it.
            plain = child("plain", inputs)
            plains.append(plain)
            rates["atheris"].append(executions / first["seconds"])
            rates["plain"].append(executions / plain["seconds"])
            rates["empty"].append(200_000 / child("empty", 200_000)["seconds"])
            hypothesis = child("hypothesis", max(20, executions // 50), steps)
            rates["hypothesis"].append(hypothesis["executions"] / hypothesis["seconds"])
            mean = plain["operations"] / executions
            drawn = hypothesis["operations"] / hypothesis["executions"]
            steps = max(1, round(steps * mean / drawn))  # the next round draws scenarios as long as ours
    print(f"{rounds} rounds of {executions} scenarios of the lifecycle target, design reference-count; medians\n")
    for name, found in rates.items():
        print(
            f"  {name:<11} {statistics.median(found):>10,.0f} executions/s   ({min(found):,.0f} to {max(found):,.0f})"
        )
    print()
    for name in ("plain", "hypothesis"):
        ratio = statistics.median(a / b for a, b in zip(rates["atheris"], rates[name], strict=True))
        print(f"  atheris / {name}: {ratio:.2f}")
    records = statistics.median(plain["records"] / executions for plain in plains)
    operations = statistics.median(plain["operations"] / executions for plain in plains)
    per_record = statistics.median(plain["seconds"] / plain["records"] * 1e6 for plain in plains)
    per_operation = statistics.median(plain["seconds"] / plain["operations"] * 1e6 for plain in plains)
    print(f"\n  a scenario has {operations:.1f} operations and {records:.0f} records in the mean")
    print(f"  (Hypothesis: {drawn:.1f} operations, {hypothesis['records'] / hypothesis['executions']:.0f} records)")
    print(f"  {per_operation:.1f} µs an operation, {per_record:.2f} µs a record without atheris, oracles included")
    print("\n  where the time goes without atheris:")
    building = statistics.median(plain["building"] / plain["seconds"] * executions for plain in plains)
    print(f"    {building:6.1%}  world building (part of the rest)")
    shares: Counter[str] = Counter()
    for plain in plains:
        shares.update(plain["shares"])
    for name, count in shares.most_common():
        print(f"    {count / shares.total():6.1%}  {name}")


def feedback(seeds: int) -> None:
    """Print how many executions the six-stage chain takes with and without feedback."""
    found: dict[str, list[int]] = {"with feedback": [], "without feedback": []}
    for seed in range(1, seeds + 1):
        for name, setting in (("with feedback", {}), ("without feedback", {"EBSFUZZ_INSTRUMENT": "none"})):
            result = child("chain", seed, **setting)
            found[name].append(result["executions"])
            end = "found" if result["found"] else f"not found, stage {result['stage']}"
            print(f"  seed {seed:2}  {name:<17} {result['executions']:>8,} executions, {end}", flush=True)
    for name, counts in found.items():
        print(f"{name:<17} median {statistics.median(counts):,.0f} executions over {seeds} seeds")


def restart(rounds: int) -> None:
    """Print how long a campaign takes to begin again, to make a few executions and to end, by the size of its corpus."""
    from campaign.shared_corpus import name_of
    from fuzz_targets import codec
    from fuzz_targets.generator import generate
    from fuzz_targets.registry import TARGETS

    target, random = TARGETS["lifecycle"], Random(1)
    entries: dict[str, bytes] = {}
    while len(entries) < ENTRIES:
        data = codec.encode(generate(random, target, "reference-count"))
        entries[name_of(data)] = data
    command = [sys.executable, "-m", "campaign.cli", "run", "--target", target.name, "--design", "reference-count"]
    seconds: dict[str, list[float]] = {"few": [], "many": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in seconds:
            subprocess.run([*command, "--runs", "100", "--out", f"{folder}/{name}"], check=True, capture_output=True)
        for name, data in entries.items():
            Path(folder, "many", "corpus", target.name, "reference-count", name).write_bytes(data)
        for _ in range(rounds):
            for name, found in seconds.items():
                begun = time.perf_counter()
                subprocess.run(
                    [*command, "--runs", "100", "--out", f"{folder}/{name}"], check=True, capture_output=True
                )
                found.append(time.perf_counter() - begun)
    few, many = (statistics.median(found) for found in seconds.values())
    print(f"a campaign begun again for 100 executions, median of {rounds}: {few:.1f} s")
    print(f"with {ENTRIES:,} entries more in its corpus: {many:.1f} s")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of measurement (default 5)")
    parser.add_argument("--executions", type=int, default=3000, help="scenarios in each round (default 3000)")
    parser.add_argument("--feedback", action="store_true", help="the way to a deep fault with and without feedback")
    parser.add_argument("--seeds", type=int, default=10, help="seeds for --feedback (default 10)")
    parser.add_argument("--guest", action="store_true", help="what one run of the shipped drivers costs")
    parser.add_argument("--minimize", action="store_true", help="the minimizer beside the shrinkers of others")
    parser.add_argument("--restart", action="store_true", help="a campaign begun again on a large corpus")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        CHILDREN[options.child[0]](options.child[1:])
    elif options.restart:
        restart(options.rounds)
    elif options.minimize:
        import minimize_bench

        sys.exit(not minimize_bench.main(options.rounds * 10))
    elif options.guest:
        import guest_bench

        from guest import ExtraMissing
        from guest.image import ImageError

        try:
            guest_bench.main(options.rounds * 10)
        except (ExtraMissing, ImageError) as error:
            sys.exit(f"scripts/bench: {error}")
    elif options.feedback:
        feedback(options.seeds)
    else:
        speed(options.rounds, options.executions)


if __name__ == "__main__":
    main()
