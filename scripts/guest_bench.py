"""What one run of the shipped drivers costs, and where that goes: `scripts/bench --guest`.

One scenario: a world as new, Start of XenBusDxe and XenPvBlkDxe with a disk, ExitBootServices, judged. It is measured in
one process whose machine is renewed for each run, then from snapshots: worlds that are loaded, whose bus has started,
whose device has started. Last, loading an image and running its entry point, beside Qiling, which lives in a virtual
environment of its own below `.cache`.

Both clocks are shown: processor time is what a quiet core would need, time on the wall what this machine took just now.
From a snapshot, processor time is that of the process of the run, forked and gone; the wall has all of it, also what
its parents do.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

QILING = "1.4.6"
QILING_FOLDER = ROOT / ".cache" / f"qiling-{QILING}"
QILING_ROUNDS = 5
TARGET_MS, TARGET_RATIO = 30, 30
ENTERED = "DevicePathDxe"  # needs nothing but boot services, so Qiling can enter it as well

_QILING_PROGRAM = """
import json, sys, time
from qiling import Qiling
from qiling.const import QL_VERBOSE
seconds = []
for _ in range(int(sys.argv[3])):
    begun = time.perf_counter(), time.process_time()
    Qiling([sys.argv[1]], sys.argv[2], verbose=QL_VERBOSE.DISABLED).run()
    seconds.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
print(json.dumps(seconds))
"""

Times = list[tuple[float, float]]
"""Seconds on the wall and of the processor, one pair a round."""


def timed(rounds: int, work: Callable[[], object], processor: Callable[[], float] = time.process_time) -> Times:
    """Both times of each round of `work`."""
    found: Times = []
    for _ in range(rounds):
        begun, before = time.perf_counter(), processor()
        work()
        found.append((time.perf_counter() - begun, processor() - before))
    return found


def shown(times: Times) -> str:
    """Medians in milliseconds."""
    wall, used = (statistics.median(each) * 1000 for each in zip(*times, strict=True))
    return f"{used:8.1f} ms of processor time {wall:8.1f} ms on the wall"


def main(rounds: int) -> None:
    """Print everything. Raises ImageError without the firmware, and ExtraMissing."""
    from guest.world import open_drivers

    drivers = open_drivers()
    direct = _one_process(rounds, drivers)
    best = _from_snapshots(rounds)
    verdicts = [
        f"in one process {'holds' if direct < TARGET_MS else 'does not hold'}",
        f"from the snapshot of loaded images {'holds' if best < TARGET_MS else 'does not hold'}",
    ]
    print(f"\n  target: {TARGET_MS} ms of a quiet core (processor time): {', '.join(verdicts)}")
    _load_and_enter(rounds, drivers)


def _one_process(rounds: int, drivers: Any) -> float:
    """Run the scenario again and again on one machine; the median of a run in ms of processor time."""
    from guest.machine import Machine
    from guest.world import GuestWorld
    from oracles import judge

    machine = Machine(watched=False)
    described = _scenario("connect", "exit")
    times: dict[str, Times] = {name: [] for name in ("restore", "run", "oracles", "all")}
    guest: list[float] = []
    calls: list[tuple[int, int, int]] = []

    def once() -> None:
        parts: list[Any] = []
        clock = [0.0]
        traps = [0]
        times["restore"] += timed(1, lambda: parts.append(_renewed(machine, described, drivers)))
        world: GuestWorld = parts[0]
        entered, left = machine.entered, machine.left

        def enter() -> None:
            entered()
            clock[0] -= time.process_time()

        def leave() -> None:
            clock[0] += time.process_time()
            traps[0] += 1
            left()

        machine.entered, machine.left = enter, leave
        times["run"] += timed(1, world.run)
        machine.entered, machine.left = entered, left
        times["oracles"] += timed(1, lambda: judge(world.trace))
        guest.append(clock[0])
        entries = sum(record[0] == 3 for record in world.trace.records)  # control also comes back when one ends
        calls.append((traps[0] - entries, world.thunks.task_priority.count, len(world.trace.records)))

    for _ in range(3):
        once()
    for found in times.values():
        found.clear()
    guest.clear()
    times["all"] = timed(rounds, once)
    profile = cProfile.Profile(builtins=False)
    world = _renewed(machine, described, drivers)
    profile.runcall(world.run)
    traps, in_guest, records = calls[-1]
    instructions = _instructions(described, drivers)
    machine.close()

    print(f"one run: {', '.join(step.kind for step in described.operations)} with one disk; medians of {rounds} runs\n")
    print(f"  {instructions:,} instructions of guest code")
    print(
        f"  {traps + in_guest:,} calls of services and hypercalls: {traps:,} traps, {in_guest:,} of TPL services in guest code"
    )
    print(f"  {records:,} records\n")
    print(f"  in one process       {shown(times['all'])}")
    all_ms = statistics.median(used for _, used in times["all"]) * 1000
    guest_ms = statistics.median(guest) * 1000
    run_ms = statistics.median(used for _, used in times["run"]) * 1000
    rows = {name: statistics.median(used for _, used in times[name]) * 1000 for name in ("restore", "oracles")}
    shares = _shares(profile)
    python_ms = run_ms - guest_ms
    rows = {"guest code": guest_ms, **rows} | {name: python_ms * share for name, share in shares.items()}
    rows["other"] = rows.get("other", 0.0) + max(0.0, all_ms - sum(rows.values()))
    for name, value in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"    {value:7.1f} ms  {name}")
    return all_ms


def _scenario(*kinds: str, apart: bool = False) -> Any:
    """A scenario with a disk; `apart`: the bus is started before the device."""
    from reference_impl.scenario import operation, scenario

    steps = [operation(kind) for kind in kinds]
    if apart:
        steps.insert(0, operation("connect", driver="xenbus", recursive=False))
    return scenario(world="efi-image", design="shipped", devices=("block",), operations=tuple(steps))


def _renewed(machine: Any, described: Any, drivers: Any) -> Any:
    """A world as new on a machine that knows its code."""
    from guest.world import GuestWorld

    machine.renew()
    world = GuestWorld(described, drivers, machine)
    machine.settle(world.images.convention.end)
    return world


def _instructions(described: Any, drivers: Any) -> int:
    """How many instructions of guest code a run has, with its images entered already."""
    import unicorn

    from guest.machine import Machine
    from guest.world import GuestWorld

    machine = Machine(watched=False)
    count = 0

    def step(*_: Any) -> None:
        nonlocal count
        count += 1

    machine._hooks.append(machine._uc.hook_add(unicorn.UC_HOOK_CODE, step))
    world = GuestWorld(described, drivers, machine)
    count = 0
    world.run()
    machine.close()
    return count


def _shares(profile: cProfile.Profile) -> dict[str, float]:
    """How Python's part of a run is spread; the emulator's own part is left out."""
    found: Counter[str] = Counter()
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if function != "emu_start":
            found[_part_of(file)] += own
    return {name: seconds / found.total() for name, seconds in found.items()}


def _part_of(file: str) -> str:
    if "unicorn" in file or f"{ROOT}/guest/" in file:
        return "platform" if file.endswith("guest/xen.py") else "traps"
    if f"{ROOT}/reference_impl/xen" in file:
        return "platform"
    return "core" if f"{ROOT}/reference_impl/uefi/" in file else "other"


def _from_snapshots(rounds: int) -> float:
    """The same scenario from each snapshot; the median from loaded images in ms of processor time."""
    print("\n  from snapshots that fork")
    stages = {
        "images loaded": _from_snapshot(rounds, _scenario("connect", "exit"), 0),
        "bus started": _from_snapshot(rounds, _scenario("connect", "exit", apart=True), 1),
        "device started": _from_snapshot(rounds, _scenario("connect", "time", "exit"), 1),
    }
    for name, times in stages.items():
        print(f"    {name:<18} {shown(times)}")
    return statistics.median(used for _, used in stages["images loaded"]) * 1000


def _from_snapshot(rounds: int, described: Any, depth: int) -> Times:
    """Times of a run from the snapshot that has done `depth` operations."""
    from guest.snapshots import SIGHTINGS, Snapshots
    from oracles import judge

    kept = Snapshots(depth=depth)
    for _ in range(SIGHTINGS):
        kept.run(described)
    used = 0.0

    def once() -> None:
        nonlocal used
        begun = time.process_time()
        judge(kept.run(described))
        used += kept.seconds + time.process_time() - begun

    times = timed(rounds, once, lambda: used)
    kept.close()
    return times


# ---- loading and entering one image ---------------------------------------------------------------------------------


def _load_and_enter(rounds: int, drivers: Any) -> None:
    from guest.machine import Machine
    from guest.world import GuestWorld
    from reference_impl.uefi.driver_binding import load

    image = {"": next(each for each in drivers.values() if each.name == ENTERED)}
    described = _scenario()

    def anew() -> None:
        machine = Machine(watched=False)
        GuestWorld(described, image, machine)
        machine.close()

    known = Machine(watched=False)
    for _ in range(3):
        _renewed(known, described, image)
    ours = {
        "a new machine": timed(rounds, anew),
        "a machine that knows it": timed(rounds, lambda: _renewed(known, described, image)),
    }
    world = _renewed(known, described, image)

    def once_more() -> None:
        world._loaded.pop("").remove()
        world._install_image("", lambda agent: load(world.core, agent))

    ours["services that are ready"] = timed(rounds, once_more)
    known.close()
    print(f"\nloading and entering {ENTERED}")
    for name, times in ours.items():
        print(f"  {name:<24} {shown(times)}")
    theirs = _qiling()
    if isinstance(theirs, str):
        print(f"  Qiling {QILING}: could not be measured here: {theirs}")
        return
    print(f"  {'Qiling ' + QILING:<24} {shown(theirs)}")
    for name, times in ours.items():
        wall, used = (
            statistics.median(one) / statistics.median(other)
            for one, other in zip(zip(*theirs, strict=True), zip(*times, strict=True), strict=True)
        )
        verdict = "holds" if used >= TARGET_RATIO else "does not hold"
        print(
            f"  {name}: {used:.0f} × as fast in processor time, {wall:.0f} × on the wall "
            f"(target {TARGET_RATIO} × {verdict})"
        )


def _qiling() -> Times | str:
    """Both times of Qiling for the same image, one pair a round; or why there are none."""
    from guest.files import locate
    from guest.firmware_volume import module
    from guest.world import FIRMWARE

    python = QILING_FOLDER / "bin" / "python"
    firmware = locate(FIRMWARE)
    assert firmware is not None, "the drivers were opened from there"
    try:
        if not (QILING_FOLDER / "installed").is_file():
            _run([sys.executable, "-m", "venv", "--clear", str(QILING_FOLDER)])
            _run([str(python), "-m", "pip", "install", "--quiet", "setuptools<81", f"qiling=={QILING}"])
            (QILING_FOLDER / "installed").write_text("")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{ENTERED}.efi")
            path.write_bytes(module(firmware.read_bytes(), ENTERED, str(firmware)).image)
            said = _run([str(python), "-c", _QILING_PROGRAM, str(path), folder, str(QILING_ROUNDS)])
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return str(lines[-1])
    return [(wall, used) for wall, used in json.loads(said.splitlines()[-1])]


def _run(command: list[str]) -> str:
    """Standard output of a program that ends well."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=600
    ).stdout
