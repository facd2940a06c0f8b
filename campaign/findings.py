"""Findings of a campaign on their way to the summary: stored at once, counted, and collected.

A worker owns one folder. In it lie
- `counters`: executions, and for each signature how often it was seen; a mapped file, so that the figures are right
  however the worker ends (libFuzzer leaves the process without telling Python);
- for each signature that this worker saw first: `0001.bin`, the raw bytes, and then `0001.json`, the record.

The bytes are there before the record, and each file appears whole or not at all: a campaign that is killed at any
moment loses no finding.

The parent reads the folders of all workers with a `Collector`. A signature counts once for each design.

What deliberately lives elsewhere: making a reproducer of the raw bytes (`campaign.triage`).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from campaign.exit_status import UsageProblem
from oracles.finding import Finding

COUNTERS_FILE = "counters"
MAX_SIGNATURES = 4095  # of one worker; a campaign of the reference designs sees a few dozen
_WORD_BYTES = 8


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` a file with `data`: whole, or not at all, also when the disk is full or the process is killed.

    Raises OSError. What was at `path` before stays until the new file is complete.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class FindingRecord(msgspec.Struct, frozen=True):
    """A finding at the moment at which a worker first saw it; `slot` says which counter counts it."""

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


class FindingStore:
    """A worker's side: counts executions and signatures, and writes what is new."""

    def __init__(self, folder: Path) -> None:
        """Open the counters in `folder`, which exists. Raises OSError when there is no room for them."""
        self._folder = folder
        path = folder / COUNTERS_FILE
        # Real zeros, not a hole in the file: a full disk must say so here, not as a bus error in the middle of a run.
        path.write_bytes(bytes(_WORD_BYTES * (MAX_SIGNATURES + 1)))
        with path.open("r+b") as file:
            self.counters = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self._slots: dict[str, int] = {}

    def count_execution(self) -> int:
        """Count one execution; how many there are now."""
        executions = self.counters[0] + 1
        self.counters[0] = executions
        return executions

    def see(self, finding: Finding, design: str, raw: Callable[[], bytes]) -> None:
        """Count `finding`; the first time, store it with the `raw` bytes of its scenario. Raises OSError."""
        slot = self._slots.get(finding.signature)
        if slot is None:
            slot = len(self._slots) + 1
            assert slot <= MAX_SIGNATURES, (
                f"more than {MAX_SIGNATURES} signatures: {finding.signature} changes from run to run"
            )
            self._store(finding, design, slot, raw())
            self._slots[finding.signature] = slot
        self.counters[slot] += 1

    def _store(self, finding: Finding, design: str, slot: int, raw: bytes) -> None:
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
        )
        write_atomically(self._folder / f"{slot:04}.bin", raw)
        write_atomically(self._folder / f"{slot:04}.json", msgspec.json.encode(record))


class Found:
    """One signature of one design, over all workers."""

    __slots__ = ("count", "raw", "record")

    def __init__(self, record: FindingRecord, raw: bytes) -> None:
        self.record = record
        self.raw = raw
        self.count = 0


Key = tuple[str, str]
"""Design and signature."""


class Collector:
    """The parent's side: what the workers in `folders` have counted and stored so far."""

    def __init__(self) -> None:
        self.found: dict[Key, Found] = {}
        self._workers: dict[Path, list[tuple[int, Key]]] = {}

    def add_worker(self, folder: Path) -> None:
        """Also read the folder of one more worker."""
        self._workers[folder] = []

    def poll(self) -> list[Found]:
        """Read all workers' folders again: the findings that are new, in the order of workers and of time."""
        new: list[Found] = []
        for folder, slots in self._workers.items():
            while (path := folder / f"{len(slots) + 1:04}.json").exists():
                record = msgspec.json.decode(path.read_bytes(), type=FindingRecord)
                key = (record.design, record.signature)
                slots.append((record.slot, key))
                if key not in self.found:
                    self.found[key] = Found(record, path.with_suffix(".bin").read_bytes())
                    new.append(self.found[key])
        for found in self.found.values():
            found.count = 0
        for folder, slots in self._workers.items():
            counters = self._counters(folder)
            for slot, key in slots:
                # The record is written before it is counted: whoever died between the two has seen it once.
                self.found[key].count += max(1, counters[slot])
        return new

    def executions(self, folder: Path) -> int:
        """How many scenarios the worker of this folder has run."""
        return self._counters(folder)[0]

    @staticmethod
    def _counters(folder: Path) -> memoryview:
        """The worker's counters; zeros while it has not made them yet."""
        whole = _WORD_BYTES * (MAX_SIGNATURES + 1)
        try:
            data = (folder / COUNTERS_FILE).read_bytes()
        except FileNotFoundError:
            data = b""
        return memoryview(data.ljust(whole, b"\0")).cast("Q")


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
