"""The corpus of one design of a campaign, and how workers come to share it.

An entry is a file named by the SHA-1 of its bytes, as libFuzzer names them, so that a damaged one is recognised. libFuzzer
does not write whole files or nothing, and a worker can be killed at any moment. So each worker has a folder of its own,
its *live* folder, and only the parent writes into the corpus:

- `Live.feed` gives a worker entries. It begins with a few hundred of the shortest and gets the others while it runs: to
  run 10,000 takes half a minute, in which nothing new would be found.
- `Live.collect` takes over what a worker has written as soon as it is whole, and what it has found anew in a shorter form
  leaves the corpus again. The other workers of the design get the news.

libFuzzer looks into its folder once a second.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from campaign.findings import write_atomically
from fuzz_targets import codec

FIRST_ENTRIES = 200  # that a worker begins with: a second

_NAME = re.compile(r"[0-9a-f]{40}")


def name_of(data: bytes) -> str:
    """The name of an entry."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


class SharedCorpus:
    """The corpus in `folder`, which only this object writes.

    sizes  of all entries, by name
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, int] = {}

    def load(self, damaged: Path) -> int:
        """Read all entries; what is none is moved to `damaged`. The number of those. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        bad = 0
        for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
            data = _read_entry(entry)
            if data is None:
                bad += 1
                damaged.mkdir(exist_ok=True)
                _move(Path(entry.path), damaged)
            else:
                self.sizes[entry.name] = len(data)
        return bad

    def add(self, data: bytes) -> str:
        """Make `data` an entry; its name. Raises OSError."""
        name = name_of(data)
        if name not in self.sizes:
            # Nothing hangs on a single entry, and a damaged one is recognised by its name.
            write_atomically(self.folder / name, data, durable=False)
            self.sizes[name] = len(data)
        return name

    def adopt(self, folder: Path) -> int:
        """Add all entries that a folder has; how many were new. Raises OSError."""
        before = len(self.sizes)
        for entry in os.scandir(folder):
            data = _read_entry(entry)
            if data is not None:
                self.add(data)
        return len(self.sizes) - before

    def remove(self, names: Iterable[str]) -> int:
        """Take entries out; how many there were. Raises OSError."""
        count = 0
        for name in names:
            if self.sizes.pop(name, None) is not None:
                (self.folder / name).unlink(missing_ok=True)
                count += 1
        return count

    def shortest_first(self) -> list[str]:
        """The names of all entries: what is short runs soon."""
        return sorted(self.sizes, key=lambda name: (self.sizes[name], name))


class Live:
    """The live folder of one worker."""

    def __init__(self, corpus: SharedCorpus, folder: Path, workshop: Path) -> None:
        """Make the folder, with the first entries. `workshop` is a folder beside it for unfinished files."""
        self.corpus = corpus
        self.folder = folder
        self._workshop = workshop
        self._waiting = deque(corpus.shortest_first())
        self._known: set[str] = set()  # given to the worker, or taken from it
        self._own: set[str] = set()  # taken from it
        folder.mkdir()
        self.feed(FIRST_ENTRIES)

    def feed(self, count: int) -> None:
        """Give the worker up to `count` of the entries that it does not have yet. Raises OSError."""
        while self._waiting and count > 0:
            name = self._waiting.popleft()
            if name in self._known or name not in self.corpus.sizes:
                continue
            data = (self.corpus.folder / name).read_bytes()
            write_atomically(self.folder / name, data, by_way_of=self._workshop, durable=False)
            self._known.add(name)
            count -= 1

    def hear_of(self, names: Iterable[str]) -> None:
        """Give the worker these entries of the corpus soon."""
        self._waiting.extendleft(names)

    def collect(self) -> list[str]:
        """Take over what the worker has written; the names of what is new in the corpus. Raises OSError."""
        there: set[str] = set()
        new: list[str] = []
        complete = True
        for entry in os.scandir(self.folder):
            there.add(entry.name)
            if entry.name in self._known:
                continue
            data = _read_entry(entry)
            if data is None:
                complete = False  # it is being written just now, or was when the worker was killed
                continue
            if entry.name not in self.corpus.sizes:
                new.append(self.corpus.add(data))
            self._known.add(entry.name)
            self._own.add(entry.name)
        if complete:
            # libFuzzer deletes what it has written itself, and only where something shorter is as good.
            gone = self._own - there
            self._own -= gone
            self.corpus.remove(gone)
        return new


def _read_entry(entry: os.DirEntry[str]) -> bytes | None:
    """The bytes of an entry; None for anything that is none."""
    if not _NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
        return None
    try:
        with open(entry.path, "rb") as file:
            data = file.read(codec.SIZE_MAX + 1)
    except FileNotFoundError:
        return None
    return data if len(data) <= codec.SIZE_MAX and name_of(data) == entry.name else None


def _move(path: Path, folder: Path) -> None:
    """Move a file or folder into a folder, in place of what has its name there."""
    place = folder / path.name
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    path.replace(place) if not path.is_dir() else shutil.move(path, place)
