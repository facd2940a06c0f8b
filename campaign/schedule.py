"""Which design the next free worker gets, for how long, and how often it may run.

Designs share the time evenly: the one that had least comes next. Nobody fuzzes for longer than `SLICE_S` at a stretch:
a new process begins with the whole corpus, and with fresh memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

SLICE_S = 20 * 60


class Assignment(NamedTuple):
    """The share of one worker process: a design, how long and how often."""

    design: str
    seconds: int
    runs: int | None


@dataclass
class _Share:
    """What one design has had so far."""

    place: int
    seconds: float = 0.0
    left: int | None = None  # runs that are still to be given out
    running: int = 0
    given_up: bool = False


@dataclass
class Schedule:
    """The shares of all designs over the time that a session has.

    seconds  None: no limit
    runs     of each design; None: no limit
    """

    designs: tuple[str, ...]
    jobs: int
    seconds: float | None
    runs: int | None
    _shares: dict[str, _Share] = field(init=False)

    def __post_init__(self) -> None:
        self._shares = {design: _Share(place, left=self.runs) for place, design in enumerate(self.designs)}
        self._slice = SLICE_S
        if self.seconds is not None:
            # So long that all workers come to the end at once, and each design has had the same by then.
            turn = self.seconds * math.gcd(len(self.designs), self.jobs) / len(self.designs)
            self._slice = max(1, int(turn / math.ceil(turn / SLICE_S)))

    def credit(self, design: str, seconds: float, runs: int) -> None:
        """Note what a worker of a session before this one had of the same limits."""
        share = self._shares[design]
        share.seconds += seconds
        if share.left is not None:
            share.left = max(0, share.left - runs)

    def next(self, elapsed_s: float) -> Assignment | None:
        """What a worker is to do that starts now; None where nothing is left to do."""
        seconds = self._slice
        if self.seconds is not None:
            rest = math.ceil(self.seconds - elapsed_s)
            if rest < 1:
                return None
            seconds = min(seconds, rest)
        waiting = [name for name in self._shares if self.goes_on(name)]
        if not waiting:
            return None
        design = min(waiting, key=self._turn)
        share = self._shares[design]
        runs = None
        if share.left is not None:
            workers = max(1, self.jobs // len(self.designs) + (share.place < self.jobs % len(self.designs)))
            runs = math.ceil(share.left / max(1, workers - share.running))
            share.left -= runs
        share.running += 1
        return Assignment(design, seconds, runs)

    def end(self, assignment: Assignment, seconds: float, runs: int) -> None:
        """Note the end of a worker: what it did not run is given to another."""
        share = self._shares[assignment.design]
        share.running -= 1
        share.seconds += seconds
        if share.left is not None and assignment.runs is not None:
            share.left += max(0, assignment.runs - runs)

    def give_up(self, design: str) -> None:
        """Give out nothing more of a design."""
        self._shares[design].given_up = True

    def goes_on(self, design: str) -> bool:
        """Whether a design still has runs to be given out."""
        share = self._shares[design]
        return share.left != 0 and not share.given_up

    def _turn(self, design: str) -> tuple[int, float, int]:
        share = self._shares[design]
        return share.running, share.seconds, share.place
