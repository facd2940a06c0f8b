"""Keeps a corpus small: which entries together show guidance all that the whole corpus shows.

What guidance needs is what an entry can reach: the features of its trace, and how often (in libFuzzer's eight classes) each
branch of the instrumented code runs. `needed` picks entries that together have all of it, always the one that adds most,
of equals the shortest, and runs those again before it says so: where they show less than the whole corpus did, or where
nothing would be left, it raises `WeakerCorpus`, and nothing is taken away.

Entries are only ever deleted, one after the other, and never written: whoever is killed in between leaves a corpus that
still shows everything.

A process of its own when a campaign does it (`python -m campaign.minimize_corpus FOLDER`): branches of code that has once
been instrumented cost time for ever.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from campaign.corpus import cover
from campaign.exit_status import UsageProblem
from campaign.replay import scenarios_at
from campaign.worker import die_with_parent
from campaign.worker_process import environment
from fuzz_targets import engine
from fuzz_targets.guidance import Features
from fuzz_targets.harness import run_and_judge
from fuzz_targets.input_files import InputError, read_scenario
from reference_impl.scenario import Scenario

COMMAND = (sys.executable, "-m", "campaign.minimize_corpus")


class WeakerCorpus(Exception):  # noqa: N818 - the command line shows it
    """What would be kept shows less than what is there. The message is one line."""


class Reach:
    """What a scenario reaches, as numbers: the same scenario has the same ones as long as this object lives."""

    def __init__(self, worlds: Iterable[str]) -> None:
        """Instrument the code whose branches guide a fuzzer in these worlds, where atheris is installed."""
        self._features = Features()
        self._branches: Counter[int] = Counter()
        try:
            atheris: Any = engine.import_atheris()
        except engine.EngineMissing:
            return  # then nobody is guided by branches here
        packages = [package for world in worlds for package in engine.INSTRUMENTED[world]]
        engine.instrument_code(atheris, (*dict.fromkeys(packages), *engine.INSTRUMENTED_FAULTS))
        atheris._trace_branch = self._count

    def of(self, scenario: Scenario) -> set[int]:
        """What a run of the scenario reaches."""
        self._branches.clear()
        trace = run_and_judge(scenario).trace
        # Features are numbers from 0 on, so branches take the negative ones.
        branches = {-1 - 8 * branch - _class_of(count) for branch, count in self._branches.items()}
        return self._features.of(trace) | branches

    def _count(self, branch: int) -> None:
        self._branches[branch] += 1


def _class_of(count: int) -> int:
    """libFuzzer's classes of counts: 1, 2, 3, 4 to 7, 8 to 15, 16 to 31, 32 to 127, and more."""
    return bisect((2, 3, 4, 8, 16, 32, 128), count)


def needed(scenarios: Sequence[Scenario], reach: Callable[[Scenario], set[int]]) -> list[int]:
    """The places of the scenarios that are needed. Those that stand in front are preferred. Raises WeakerCorpus."""
    shown = [reach(scenario) for scenario in scenarios]
    everything = set().union(*shown)
    kept = sorted(cover(shown, set(), len(shown)))
    again = set().union(*(reach(scenarios[index]) for index in kept))
    if not kept:
        raise WeakerCorpus("nothing would be left")
    if lost := len(everything - again):
        raise WeakerCorpus(f"{lost} of the {len(everything)} features that it shows would be lost")
    return kept


def minimize(folder: Path) -> tuple[list[Path], list[Path]]:
    """The entries of a corpus that are needed, and those that are not. Nothing is deleted.

    Raises UsageProblem for a folder that cannot be read or has no scenario in it, and WeakerCorpus.
    """
    if not folder.is_dir():
        raise UsageProblem(
            f"{folder}: {'a corpus is a folder, and this is none' if folder.exists() else 'no such folder'}"
        )
    try:
        paths = scenarios_at(folder)
        scenarios = {path: read_scenario(path) for path in paths}
    except InputError as error:
        raise UsageProblem(str(error)) from None
    paths.sort(key=lambda path: (len(scenarios[path].operations), path.stat().st_size, path.name))
    reach = Reach(sorted({scenario.world for scenario in scenarios.values()}))
    try:
        kept = {paths[index] for index in needed([scenarios[path] for path in paths], reach.of)}
    except WeakerCorpus as problem:
        raise WeakerCorpus(f"{folder}: the corpus stays as it is: {problem}") from None
    return [path for path in paths if path in kept], [path for path in paths if path not in kept]


class CorpusMinimizer:
    """A process that finds out what a corpus does not need."""

    def __init__(self, design: str, folder: Path) -> None:
        self.design = design
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `answer` or `kill`
        self._process = subprocess.Popen(
            [*COMMAND, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )

    def answer(self) -> list[str] | None:
        """The names of the entries that are not needed, none where that cannot be told; None while it is at it."""
        status = self._process.poll()
        if status is None:
            return None
        with self._output as output:
            output.seek(0)
            return msgspec.json.decode(output.read(), type=list[str]) if status == 0 else []

    def kill(self) -> None:
        """Give up."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def main() -> None:
    """Print, as JSON, the names of the entries that are not needed."""
    die_with_parent()
    _, superfluous = minimize(Path(sys.argv[1]))
    sys.stdout.buffer.write(msgspec.json.encode([path.name for path in superfluous]))


if __name__ == "__main__":
    main()
