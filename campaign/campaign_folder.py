"""The folder of a campaign: whose it is, who works on it, its log and its progress file.

`docs/campaigns.md` says what lies in it. A folder that is neither empty nor a campaign's is refused before anything is
written, and so is a second run while one works on it: `lock` is held from `open` to `close`, however that process ends.

What deliberately lives elsewhere: the statistics (`campaign.statistics`) and the corpus (`campaign.shared_corpus`).
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from campaign import statistics
from campaign.exit_status import UsageProblem

LOCK = "lock"
LOG = "log.txt"
PROGRESS = "progress.jsonl"
_ATTEMPTS = 20  # to take the lock: `ebsfuzz status` holds it for a moment
_ATTEMPT_S = 0.05


class CampaignFolder:
    """A campaign's folder, while this process works on it."""

    def __init__(self, path: Path, lock: io.BufferedRandom) -> None:
        self.path = path
        self.workers = path / "workers"
        self.findings = path / "findings"
        self.crashes = path / "crashes"
        self.damaged = path / "damaged"
        self._lock = lock

    def corpus(self, target: str, design: str) -> Path:
        """The folder of the corpus of one design."""
        return self.path / "corpus" / target / design

    def log(self, text: str, now: float) -> None:
        """Add a line to the log; `now` is in seconds since 1970. Raises OSError."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {text}\n")

    def add_progress(self, line: Mapping[str, Any]) -> None:
        """Add an object to the progress file. Half a line of a run that was killed goes first. Raises OSError."""
        data = json.dumps(line).encode() + b"\n"
        with (self.path / PROGRESS).open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - (1 << 16))
            file.seek(start)
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(start + tail.rfind(b"\n") + 1)
            file.write(data)


@contextmanager
def opened(path: Path) -> Iterator[CampaignFolder]:
    """The folder at `path`, made where it is missing, for this process alone until the block ends.

    Raises UsageProblem for a folder that is in use, foreign, or cannot be made.
    """
    try:
        if path.is_dir() and not _is_campaign(path) and any(entry.name != LOCK for entry in path.iterdir()):
            raise UsageProblem(f"{path}: neither empty nor a campaign: name another --out")
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("a+b")
    except OSError as error:
        raise UsageProblem(f"{error.filename or path}: cannot be written: {error.strerror}") from None
    with lock:
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 == _ATTEMPTS:
                    raise UsageProblem(
                        f"{path}: another run works on this campaign (ebsfuzz status {path} shows it): "
                        "wait for its end or name another --out"
                    ) from None
                time.sleep(_ATTEMPT_S)
        yield CampaignFolder(path, lock)


def is_running(path: Path) -> bool:
    """Whether a run works on the campaign at `path` now."""
    try:
        with (path / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def campaign_around(path: Path) -> Path | None:
    """The campaign that a folder is, or lies in; None where it is in none."""
    path = path.resolve()
    return next((place for place in (path, *path.parents) if _is_campaign(place)), None)


def _is_campaign(path: Path) -> bool:
    return (path / statistics.FILE).is_file()
