"""From a finding that a worker stored to a reproducer, minimized, while the workers go on.

A thread of the parent: the parent only waits otherwise. What is not minimized when time is up becomes a reproducer as
it was found, and the summary says so.

What deliberately lives elsewhere: getting smaller (`campaign.minimize`), the folder's contents (`campaign.reproducer`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from campaign import minimize, reproducer
from campaign.exit_status import CampaignFailure
from campaign.findings import Found
from fuzz_targets import codec
from fuzz_targets.registry import Target
from oracles import ORACLES
from reference_impl.scenario import Scenario


class Reproduced(NamedTuple):
    """What became of one finding: its folder, the notification orders that show it, and whether it is minimized."""

    path: Path
    orders: tuple[str | tuple[int, ...], ...]
    minimized: bool
    expected: str
    seen: str


class _Hurry(BaseException):
    """No time is left for getting smaller."""


class Triage:
    """Makes reproducers in `folder`, one after the other, in a thread of its own."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target = target
        self._folder = folder
        self._queue: queue.SimpleQueue[Found | None] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._work, name="triage", daemon=True)
        self.done: dict[tuple[str, str], Reproduced] = {}
        self.waiting = 0
        self.problem: BaseException | None = None
        self._thread.start()

    def add(self, found: Found) -> None:
        """Have a reproducer made of `found`."""
        self.waiting += 1
        self._queue.put(found)

    def hurry(self) -> None:
        """From now on, store findings as they are."""
        self._hurry.set()

    def finish(self, wait: Callable[[], None]) -> None:
        """Call `wait` again and again until all is done. Raises what went wrong in the thread."""
        self._queue.put(None)
        while self._thread.is_alive():
            wait()
        self._thread.join()
        if self.problem is not None:
            raise self.problem

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, but no longer than this."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            while (found := self._queue.get()) is not None:
                self.done[found.record.design, found.record.signature] = self._reproduce(found)
                self.waiting -= 1
        except BaseException as error:
            self.problem = error

    def _reproduce(self, found: Found) -> Reproduced:
        signature = found.record.signature
        scenario = codec.decode(found.raw)
        if signature not in self._judge(scenario):
            raise CampaignFailure(
                f"{signature} does not show again when its scenario is replayed: the world is not deterministic"
            )
        remarks: list[str] = []  # the minimizer makes one where it gave up getting smaller
        try:
            scenario = minimize.minimize(scenario, signature, self._patient_judge, remark=remarks.append)
        except _Hurry:
            remarks.append("no time was left to minimize it")
        verdict = self._target.run(scenario)
        orders = reproducer.orders_of(scenario, signature, self._judge)
        finding = next(finding for finding in verdict.findings if finding.signature == signature)
        path = reproducer.write(
            self._folder,
            scenario,
            signature,
            found.raw,
            verdict,
            orders=orders,
            runs=max(1, found.count),
            target="" if finding.oracle in ORACLES else self._target.name,
        )
        return Reproduced(path, orders, not remarks, finding.expected, finding.seen)

    def _judge(self, scenario: Scenario) -> list[str]:
        return [finding.signature for finding in self._target.run(scenario).findings]

    def _patient_judge(self, scenario: Scenario) -> list[str]:
        if self._hurry.is_set():
            raise _Hurry
        return self._judge(scenario)
