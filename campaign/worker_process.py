"""One worker process, seen by its parent: started, watched and ended, and what its output says about coverage.

What deliberately lives elsewhere: what the process does (`campaign.worker`), what it has found (`campaign.findings`), and
what follows from its end (`campaign.run`).
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from campaign import worker
from campaign.findings import WorkerFolder
from campaign.schedule import Assignment
from campaign.shared_corpus import Live

ROOT = Path(__file__).resolve().parent.parent

LOG = "log.txt"
STOP_GRACE_S = 5  # for a worker that was told to stop
OVERTIME_S = 20  # that a worker may take longer than its time and one execution, where it does not execute any more
PATIENCE_S = 20  # the same for one that does: it is still at the corpus that it began with
SILENCE_S = 60  # without an execution beyond the longest that one may take: a worker hangs outside of executions
RUNS_BEFORE_FEEDBACK = 2000  # a fuzzer that has run so often without coverage is blind

RATE_S = 15  # over which the present speed is measured

_LINES_KEPT = 200
_STATUS_LINE = re.compile(r"#\d+\s+([A-Z]\w+)")
_FIGURE = re.compile(r"\b(cov|ft|corp): (\d+)")
_NO_NEWS = ("pulse", "RELOAD", "REDUCE")
_MIB = 1 << 20


def environment() -> dict[str, str]:
    """The environment of processes of a campaign: the package of this one, and no output that comes in blocks."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", worker.PARENT: str(os.getpid())}


def memory_mb(pid: int) -> int:
    """The resident memory of a process in MiB; 0 where it cannot be had."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // _MIB


class WorkerProcess:
    """A worker that runs, and what is known of it.

    number   in the statistics
    stopped  whether this process has ended it
    """

    def __init__(
        self, number: int, assignment: Assignment, found: WorkerFolder, live: Live, command: Sequence[str]
    ) -> None:
        self.number = number
        self.assignment = assignment
        self.found = found
        self.live = live
        self.edges = 0
        self.features = 0
        self.corpus_size = 0
        self.rss_mb = 0
        self.rss_max_mb = 0
        self.news = ""
        self.news_at = time.monotonic()
        self.problem = ""
        self.stopped = False
        self.status = 0
        self.initialised = False
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._began = time.monotonic()
        self._ended: float | None = None
        self._looks: deque[tuple[float, int]] = deque([(self._began, 0)], maxlen=RATE_S)
        self._executed_at = self._began
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # atheris writes tracebacks there
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment(),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def design(self) -> str:
        """What it fuzzes."""
        return self.assignment.design

    @property
    def name(self) -> str:
        """What it fuzzes, for a sentence."""
        return self.design or "the target"

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def executions(self) -> int:
        """Scenarios that it had run at the last look into its folder."""
        return self.found.executions

    @property
    def rate(self) -> float:
        """Executions for each second, lately."""
        (then, before), (now, after) = self._looks[0], self._looks[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def watch(self) -> None:
        """Note the memory that it uses, and what it has run since the last time. To be called once a second."""
        self.rss_mb = memory_mb(self._process.pid) or self.rss_mb
        self.rss_max_mb = max(self.rss_mb, self.rss_max_mb)
        now = time.monotonic()
        if self.executions != self._looks[-1][1]:
            self._executed_at = now
        self._looks.append((now, self.executions))

    def poll(self) -> bool:
        """Whether the process has ended; its status and figures are final then."""
        if self._process.poll() is None:
            return False
        self._finish()
        return True

    def signal(self, number: int) -> None:
        """Tell the process to end."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, number: int) -> None:
        """End the process, by force where it does not listen."""
        self.signal(number)
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._finish()

    def is_blind(self) -> bool:
        """Whether it runs and runs, and nothing of it is coverage."""
        return self.initialised and not self.edges and self.executions >= RUNS_BEFORE_FEEDBACK

    def is_late(self, timeout_s: int) -> bool:
        """Whether it goes on although its time has long been over. libFuzzer looks at the time after the first corpus."""
        return self.seconds > self.assignment.seconds + timeout_s + PATIENCE_S

    def trouble(self, timeout_s: int, rss_limit_mb: int) -> str:
        """Why it has to be ended, in a few words; "" where it does not."""
        silence = time.monotonic() - self._executed_at
        if self.seconds > self.assignment.seconds + timeout_s + OVERTIME_S and silence > timeout_s:
            return "it did not end in time and was killed"
        if silence > timeout_s + SILENCE_S:
            return "it hung and was killed"
        # libFuzzer has the same limit and says more about it, but a worker may run without libFuzzer.
        if self.rss_mb > rss_limit_mb * 5 // 4:
            return f"it used {self.rss_mb} MiB of memory and was killed"
        return ""

    def traceback(self) -> list[str]:
        """The lines of the Python exception that ended it, or the last lines of its log."""
        lines = list(self._lines)
        starts = [index for index, line in enumerate(lines) if "Traceback" in line or "Uncaught Python" in line]
        ends = [index for index, line in enumerate(lines) if line.startswith("==") and "ERROR: libFuzzer" in line]
        return [line for line in lines[starts[0] if starts else -5 : ends[0] if ends else None] if line.strip()]

    def log(self) -> str:
        """The last lines of its output."""
        return "".join(f"{line}\n" for line in self._lines)

    def _finish(self) -> None:
        if self._ended is None:
            self._ended = time.monotonic()
            self._reader.join(STOP_GRACE_S)  # a process that it left behind may hold its output open
            self.status = self._process.returncode

    def _read(self) -> None:
        """Read libFuzzer's lines until the process ends: `#1234 NEW cov: 56 ft: 78 corp: 9/123b …`."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                line = line.rstrip("\n")
                self._lines.append(line)
                if line.startswith(worker.PROBLEM):
                    self.problem = line.removeprefix(worker.PROBLEM)
                elif match := _STATUS_LINE.match(line):
                    self.initialised = True
                    figures = dict(_FIGURE.findall(line))
                    self.edges = int(figures.get("cov", self.edges))
                    self.features = int(figures.get("ft", self.features))
                    self.corpus_size = int(figures.get("corp", self.corpus_size))
                    if match[1] not in _NO_NEWS:
                        self.news = " ".join(line.split())
                        self.news_at = time.monotonic()
