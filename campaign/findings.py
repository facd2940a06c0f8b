"""Findings of a campaign on their way to triage: stored at once, counted, and collected.

A worker owns one folder. In it lie
- `counters`: executions, and for each signature how often it was seen, when last, and in which circumstances; a mapped
  file, so that the figures are right however the worker ends (libFuzzer leaves the process without telling Python);
- for each scenario that is worth a look: `0001.bin`, its raw bytes, and then `0001.json`, the record. Those are the first
  of each signature, each that has fewer operations than all before, and after ten, a hundred, a thousand … sightings one
  more: from another beginning the minimizer sometimes gets further.

The bytes are there before the record, and each file appears whole or not at all: a campaign that is killed at any
moment loses no finding.

The parent reads a worker's folder with a `WorkerFolder`. The folder of a worker that was killed reads like any other.

What deliberately lives elsewhere: the sum over all workers (`campaign.statistics`), and making a reproducer of the raw
bytes (`campaign.triage`).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from campaign.exit_status import UsageProblem
from oracles.finding import Finding
from reference_impl.scenario import ENVIRONMENTS, ORDER_EDK2, ORDER_FIFO, SWITCHES, Scenario

COUNTERS_FILE = "counters"
MAX_SIGNATURES = 4095  # of one worker; a campaign of the reference designs sees a few dozen

# 64-bit words: executions first; then for each signature these three.
_COUNT, _LAST_MS, _SEEN = range(3)
_WORDS = 3
_FILE_BYTES = 8 * (1 + _WORDS * MAX_SIGNATURES)

# What a bit of the word `_SEEN` stands for.
PERMUTATION = "permutation"
_ORDERS = (ORDER_EDK2, ORDER_FIFO, PERMUTATION)
_CIRCUMSTANCES = (*_ORDERS, *ENVIRONMENTS, *sorted(SWITCHES))
_BITS = {name: 1 << bit for bit, name in enumerate(_CIRCUMSTANCES)}
assert len(_BITS) == len(_CIRCUMSTANCES) <= 64


def write_atomically(path: Path, data: bytes, *, by_way_of: Path | None = None, durable: bool = True) -> None:
    """Make `path` a file with `data`: whole, or not at all, also when the disk is full or the process is killed.

    by_way_of  folder on the same file system for the unfinished file, where others look at all files beside `path`
    durable    whether it must not get lost in a power failure either, which costs milliseconds

    Raises OSError. What was at `path` before stays until the new file is complete.
    """
    temporary = (by_way_of or path.parent) / f".{path.name}.{os.getpid()}.part"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class FindingRecord(msgspec.Struct, frozen=True):
    """A finding at a moment at which its scenario was worth a look.

    slot        which counters count its signature
    time        when it was, in seconds since 1970
    operations  of its scenario
    """

    design: str
    oracle: str
    rule: str
    source: str
    agent: str
    subject: str
    signature: str
    step: int
    expected: str
    seen: str
    note: bool
    slot: int
    time: float
    operations: int


class FindingStore:
    """A worker's side: counts executions and signatures, and writes what is worth a look."""

    def __init__(self, folder: Path) -> None:
        """Open the counters in `folder`, which exists. Raises OSError when there is no room for them."""
        self._folder = folder
        path = folder / COUNTERS_FILE
        # Real zeros, not a hole in the file: a full disk must say so here, not as a bus error in the middle of a run.
        path.write_bytes(bytes(_FILE_BYTES))
        # Stays open: the lock says that this process is alive.
        self._file = path.open("r+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.counters = memoryview(mmap.mmap(self._file.fileno(), 0)).cast("Q")
        self._slots: dict[str, tuple[int, int]] = {}  # signature → its slot, and the fewest operations so far
        self._records = 0

    def count_execution(self) -> int:
        """Count one execution; how many there are now."""
        executions = self.counters[0] + 1
        self.counters[0] = executions
        return executions

    def see(self, finding: Finding, scenario: Scenario, raw: Callable[[], bytes]) -> None:
        """Count `finding`, which a run of `scenario` has; store it where that is worth a look. Raises OSError."""
        operations = len(scenario.operations)
        known = self._slots.get(finding.signature)
        if known is None:
            slot = len(self._slots) + 1
            assert slot <= MAX_SIGNATURES, (
                f"more than {MAX_SIGNATURES} signatures: {finding.signature} changes from run to run"
            )
            count, fewest = 0, operations + 1
        else:
            slot, fewest = known
            count = self.counters[1 + _WORDS * (slot - 1)]
        if operations < fewest or _is_power_of_ten(count):
            self._store(finding, scenario.design, slot, operations, raw())
            self._slots[finding.signature] = (slot, min(operations, fewest))
        first = 1 + _WORDS * (slot - 1)
        order = scenario.order if isinstance(scenario.order, str) else PERMUTATION
        seen = _BITS[order] | _BITS[scenario.environment]
        for name in scenario.switches:
            seen |= _BITS[name]
        self.counters[first + _SEEN] |= seen
        self.counters[first + _LAST_MS] = int(time.time() * 1000)
        self.counters[first + _COUNT] = count + 1

    def close(self) -> None:
        """Nothing more will be written."""
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()

    def _store(self, finding: Finding, design: str, slot: int, operations: int, raw: bytes) -> None:
        record = FindingRecord(
            design=design,
            oracle=finding.oracle,
            rule=finding.rule,
            source=finding.source,
            agent=finding.agent,
            subject=finding.subject,
            signature=finding.signature,
            step=finding.step,
            expected=finding.expected,
            seen=finding.seen,
            note=finding.note,
            slot=slot,
            time=time.time(),
            operations=operations,
        )
        name = f"{self._records + 1:06}"
        write_atomically(self._folder / f"{name}.bin", raw)
        write_atomically(self._folder / f"{name}.json", msgspec.json.encode(record))
        self._records += 1


def _is_power_of_ten(count: int) -> bool:
    return count >= 10 and count == 10 ** (len(str(count)) - 1)


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one worker has counted of one signature. Times are seconds since 1970."""

    record: FindingRecord
    count: int
    last_seen: float
    orders: tuple[str, ...]
    environments: tuple[str, ...]
    switches: tuple[str, ...]


class WorkerFolder:
    """The parent's side: what the worker of one folder has counted and stored so far.

    executions  scenarios that it had run at the last `look`
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.executions = 0
        self._counters: memoryview | None = None
        self._records = 0
        self._first: dict[int, FindingRecord] = {}
        self._counts: dict[int, int] = {}

    def look(self) -> list[tuple[FindingRecord, bytes]]:
        """Read the folder again: the scenarios that are new, with their bytes, in the order of time."""
        if self._counters is None:
            self._counters = self._mapped()
        if self._counters is not None:
            self.executions = self._counters[0]
        new: list[tuple[FindingRecord, bytes]] = []
        while (path := self.path / f"{self._records + 1:06}.json").exists():
            record = msgspec.json.decode(path.read_bytes(), type=FindingRecord)
            new.append((record, path.with_suffix(".bin").read_bytes()))
            self._first.setdefault(record.slot, record)
            self._records += 1
        return new

    def sightings(self) -> Iterator[Sighting]:
        """What has been counted since the last call, each signature with its figures as a whole."""
        assert self._counters is not None or not self._first
        for slot, record in self._first.items():
            assert self._counters is not None
            first = 1 + _WORDS * (slot - 1)
            # The record is written before it is counted: whoever died between the two has seen it once.
            count = max(1, self._counters[first + _COUNT])
            if count == self._counts.get(slot):
                continue
            self._counts[slot] = count
            seen = self._counters[first + _SEEN]
            yield Sighting(
                record,
                count,
                max(record.time, self._counters[first + _LAST_MS] / 1000),
                *(tuple(name for name in names if seen & _BITS[name]) for names in (_ORDERS, ENVIRONMENTS, SWITCHES)),
            )

    def wait_for_the_end(self, seconds: float) -> bool:
        """Wait until no process writes into the folder any more, but no longer than this; whether that is so."""
        deadline = time.monotonic() + seconds
        try:
            with (self.path / COUNTERS_FILE).open("rb") as file:
                while True:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        return True
                    except BlockingIOError:
                        if time.monotonic() >= deadline:
                            return False
                        time.sleep(0.01)
        except FileNotFoundError:
            return True

    def _mapped(self) -> memoryview | None:
        """The worker's counters; None while it has not made them yet."""
        try:
            with (self.path / COUNTERS_FILE).open("rb") as file:
                if os.fstat(file.fileno()).st_size < _FILE_BYTES:
                    return None
                return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("Q")
        except FileNotFoundError:
            return None


def read_baseline(path: Path) -> frozenset[str]:
    """The signatures that a baseline file lists.

    The file is text, one signature a line (empty lines and lines that begin with `#` are skipped), or JSON: an array of
    signatures, or what `ebsfuzz run --format json` printed. Raises UsageProblem for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageProblem(f"{path}: not UTF-8 text, so no baseline") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageProblem(f"{path}: cannot be read: {reason}") from None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            listed = msgspec.json.decode(text, type=list[str] | _EarlierRun)
        except msgspec.MsgspecError as error:
            raise UsageProblem(f"{path}: no baseline: {error}") from None
        lines = listed if isinstance(listed, list) else [finding.signature for finding in listed.findings]
        numbered = list(enumerate(lines))
        place = "entry"
    else:
        numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
        numbered = [(number, line) for number, line in numbered if line and not line.startswith("#")]
        place = "line"
    for number, signature in numbered:
        if signature.count("/") < 3 or not signature.isprintable():
            raise UsageProblem(
                f"{path}: {place} {number}: {signature[:80]!r} is no signature (oracle/rule/agent/subject)"
            )
    return frozenset(signature for _, signature in numbered)


class _EarlierSignature(msgspec.Struct):
    signature: str


class _EarlierRun(msgspec.Struct):
    findings: list[_EarlierSignature]
