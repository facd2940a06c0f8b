"""What a corpus reached, as a file, and the difference to what another one reached.

`ebsfuzz coverage --json FILE` writes a `Measurement`; `--against` takes such a file, a corpus, or a campaign's folder. Lines
can be compared only where the file is the same on both sides: of a file that has changed since, only percentages are.
Behaviour (`campaign.behaviour`) has names that outlive a change of the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import msgspec

from campaign.behaviour import NEAR_MISSES, Cells, seen, size
from fuzz_targets.input_files import InputError

VERSION = 1


class FileCoverage(msgspec.Struct, frozen=True, kw_only=True):
    """What ran of one file.

    digest    of its text, to know the same file again
    lines     that ran; `line_count` is how many there are
    branches  that were taken, as pairs of lines; `branch_count` is how many there are
    """

    digest: str
    lines: tuple[int, ...]
    branches: tuple[tuple[int, int], ...]
    line_count: int
    branch_count: int

    @property
    def percent(self) -> float:
        """Lines and branches together."""
        return percent(len(self.lines) + len(self.branches), self.line_count + self.branch_count)


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What a corpus reached: files by their path in the checkout, and the maps of `campaign.behaviour`."""

    version: int = VERSION
    scenarios: int
    files: dict[str, FileCoverage]
    behaviour: dict[str, Cells]

    @property
    def line_percent(self) -> float:
        """Of all lines, those that ran."""
        return percent(
            sum(len(one.lines) for one in self.files.values()), sum(one.line_count for one in self.files.values())
        )

    @property
    def branch_percent(self) -> float:
        """Of all ways that a branch can take, those that were taken."""
        return percent(
            sum(len(one.branches) for one in self.files.values()), sum(one.branch_count for one in self.files.values())
        )


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """What one side reached and the other did not.

    lines, branches  by file; only of files that are the same on both sides
    behaviour        map → cells as "row = column"
    """

    lines: dict[str, tuple[int, ...]]
    branches: dict[str, tuple[tuple[int, int], ...]]
    behaviour: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        counts = {
            "line": sum(map(len, self.lines.values())),
            "branch": sum(map(len, self.branches.values())),
            "behaviour": sum(map(len, self.behaviour.values())),
        }
        plural = {"line": "lines", "branch": "branches", "behaviour": "behaviours"}
        return ", ".join(f"{count} {name if count == 1 else plural[name]}" for name, count in counts.items())


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Two measurements, side by side.

    against     what the other one is, for people
    here, there  what only one of the two reached
    changed     file that differs, or is on one side only → its percentages here and there
    """

    against: str
    here: Reached
    there: Reached
    changed: dict[str, tuple[float, float]]


def percent(covered: int, total: int) -> float:
    """No line is no gap."""
    return 100.0 * covered / total if total else 100.0


def difference(here: Measurement, there: Measurement, against: str) -> Difference:
    """What each of the two reached that the other did not."""
    same = [name for name, one in here.files.items() if name in there.files and one.digest == there.files[name].digest]
    changed = sorted((here.files.keys() | there.files.keys()) - set(same))
    return Difference(
        against=against,
        here=_only(here, there, same),
        there=_only(there, here, same),
        changed={name: (_percent_of(here, name), _percent_of(there, name)) for name in changed},
    )


def _percent_of(measurement: Measurement, name: str) -> float:
    return measurement.files[name].percent if name in measurement.files else 0.0


def _only(one: Measurement, other: Measurement, files: Iterable[str]) -> Reached:
    lines, branches = {}, {}
    for name in files:
        mine, theirs = one.files[name], other.files[name]
        if more := tuple(sorted(set(mine.lines) - set(theirs.lines))):
            lines[name] = more
        if ways := tuple(sorted(set(mine.branches) - set(theirs.branches))):
            branches[name] = ways
    behaviour = {}
    for name, cells in one.behaviour.items():
        if new := sorted(seen(cells) - seen(other.behaviour.get(name, {}))):
            behaviour[name] = tuple(f"{row} = {column}" for row, column in new)
    return Reached(lines=lines, branches=branches, behaviour=behaviour)


def read_measurement(path: Path) -> Measurement:
    """A measurement that `--json` wrote. Raises InputError, with the file's name, for anything else."""
    try:
        measurement = msgspec.json.decode(path.read_bytes(), type=Measurement)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: no measurement of coverage: {' '.join(str(error).split())}") from None
    if measurement.version != VERSION:
        raise InputError(f"{path}: version {measurement.version} is not one that this program reads ({VERSION})")
    return measurement


# ---- for people -----------------------------------------------------------------------------------------------------


def behaviour_lines(maps: dict[str, Cells]) -> Iterator[str]:
    """Every map in a few lines: how much of it was seen, and what never; near misses with their counts."""
    yield "behaviour: " + ", ".join(f"{name} {len(seen(cells))} of {size(cells)}" for name, cells in maps.items())
    for name, cells in maps.items():
        if name == NEAR_MISSES:
            continue
        yield f"  {name}, never seen:"
        for row, columns in cells.items():
            if never := [column for column, count in columns.items() if not count]:
                yield f"    {row}: {'; '.join(never)}"
    yield f"  {NEAR_MISSES}, in how many scenarios:"
    for oracle, columns in maps.get(NEAR_MISSES, {}).items():
        for sentence, count in columns.items():
            yield f"    {count or 'never':>6}  {oracle}: {sentence}"


def difference_lines(compared: Difference) -> Iterator[str]:
    """Both directions, line by line."""
    yield f"against {compared.against}:"
    for side, reached in (("only here", compared.here), ("only there", compared.there)):
        yield f"  {side}: {reached}"
        for name in sorted(reached.lines.keys() | reached.branches.keys()):
            places = [_ranges(reached.lines[name])] if name in reached.lines else []
            if name in reached.branches:
                ways = ", ".join(f"{start}→{'exit' if end < 0 else end}" for start, end in reached.branches[name])
                places.append(f"branches {ways}")
            yield f"    {name}: {'; '.join(places)}"
        for name, cells in reached.behaviour.items():
            for cell in cells:
                yield f"    {name}: {cell}"
    for name, (mine, theirs) in compared.changed.items():
        yield f"  {name} differs: {mine:.1f} % here, {theirs:.1f} % there"


def _ranges(numbers: Iterable[int]) -> str:
    """Line numbers, those in a row as one: "lines 3, 7-9"."""
    ordered = sorted(numbers)
    starts = [ordered[0], *(second for first, second in pairwise(ordered) if second != first + 1)]
    ends = [*(first for first, second in pairwise(ordered) if second != first + 1), ordered[-1]]
    shown = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return f"{'line' if len(ordered) == 1 else 'lines'} {', '.join(shown)}"
