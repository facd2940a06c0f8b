"""From the raw bytes that a worker stored to a reproducer: how reliable, how small, under which notification orders.

`work` is one job from beginning to end. `Triage` has jobs done in a process of its own, one after the other, while the
workers go on: whatever a scenario does to that process costs neither the campaign nor a finding. A thread here hands the
jobs over; the answers wait until somebody asks for them.

What deliberately lives elsewhere: which input is worth a job (`campaign.run`), getting smaller (`campaign.minimize`), and
what is in a reproducer (`campaign.reproducer`).
"""

from __future__ import annotations

import math
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from campaign import minimize, reproducer
from campaign.worker import die_with_parent
from campaign.worker_process import environment
from fuzz_targets import codec
from fuzz_targets.registry import TARGETS
from oracles import ORACLES
from reference_impl.scenario import Scenario

TRIAGE_COMMAND = (sys.executable, "-m", "campaign.triage")

RELIABILITY_RUNS = 5
CONFIDENCE = 0.99  # with which an unreliable finding that is still there is seen again while minimizing
MINIMIZE_S = 300  # that getting smaller may take; on one quiet core it takes less than 30
ANSWER_S = 120  # beyond that, after which the process counts as hung
JOBS_PER_PROCESS = 100  # then a new one begins with fresh memory

MINIMIZED, KEPT, UNRELIABLE, GONE, LARGER, FAILED = "minimized", "kept", "unreliable", "gone", "larger", "failed"


class Job(msgspec.Struct, kw_only=True):
    """What is to be done with one input.

    finding   number of the finding in the statistics
    priority  jobs with less of it come first; those of 2 are dropped when time is short
    raw       the input
    smallest  the scenario of the present reproducer, as bytes; empty where there is none
    folder    of reproducers
    runs      in how many the finding has been seen
    check     only look whether the finding is still there
    keep      do not minimize
    """

    finding: int
    priority: int
    target: str
    signature: str
    raw: bytes
    folder: str
    smallest: bytes = b""
    runs: int = 1
    check: bool = False
    keep: bool = False


class Answer(msgspec.Struct, kw_only=True):
    """What came of a job.

    outcome      "minimized", "kept" (not minimized, or only looked at), "unreliable", "gone", "larger" than the present
                 reproducer, or "failed"
    reliability  share of the runs that showed the finding
    scenario     of the reproducer, as bytes; with `operations`, `environment`, `switches` it is that scenario's
    reproducer   name of its folder
    remark       what else there is to say, in a sentence
    """

    outcome: str
    reliability: float = 0.0
    scenario: bytes = b""
    operations: int = 0
    environment: str = ""
    switches: tuple[str, ...] = ()
    orders: tuple[str | tuple[int, ...], ...] = ()
    expected: str = ""
    seen: str = ""
    reproducer: str = ""
    remark: str = ""


# ---- in the process of its own --------------------------------------------------------------------------------------


def work(job: Job, stop: Callable[[], bool]) -> Answer:
    """Do one job. `stop` says whether there is no time left for getting smaller. Raises OSError."""
    target = TARGETS[job.target]
    scenario = codec.decode(job.raw)

    def judge(one: Scenario) -> list[str]:
        return [finding.signature for finding in target.run(one).findings]

    seen = sum(job.signature in judge(scenario) for _ in range(RELIABILITY_RUNS))
    reliability = seen / RELIABILITY_RUNS
    if not seen:
        return Answer(outcome=GONE)
    if job.check:
        return Answer(outcome=KEPT, reliability=reliability)
    attempts = 1 if seen == RELIABILITY_RUNS else math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - reliability))

    def patient(one: Scenario) -> list[str]:
        for _ in range(attempts - 1):
            found = judge(one)
            if job.signature in found:
                return found
        return judge(one)

    remarks: list[str] = []
    if job.keep:
        remarks.append("it was not minimized")
    else:
        scenario = minimize.minimize(scenario, job.signature, patient, stop=stop, remark=remarks.append)
    if job.smallest and minimize.sort_key(scenario) >= minimize.sort_key(codec.decode(job.smallest)):
        return Answer(outcome=LARGER, reliability=reliability)
    for _ in range(100 * attempts):
        verdict = target.run(scenario)
        finding = next((one for one in verdict.findings if one.signature == job.signature), None)
        if finding is not None:
            break
    else:
        return Answer(outcome=GONE, reliability=reliability)
    path = reproducer.write(
        Path(job.folder),
        scenario,
        job.signature,
        job.raw,
        verdict,
        orders=(orders := reproducer.orders_of(scenario, job.signature, patient)),
        runs=max(1, job.runs),
        target="" if finding.oracle in ORACLES else target.name,
    )
    return Answer(
        outcome=UNRELIABLE if attempts > 1 else KEPT if remarks else MINIMIZED,
        reliability=reliability,
        scenario=codec.encode(scenario),
        operations=len(scenario.operations),
        environment=scenario.environment,
        switches=scenario.switches,
        orders=orders,
        expected=finding.expected,
        seen=finding.seen,
        reproducer=path.name,
        remark="; ".join(remarks),
    )


def main() -> None:
    """Answer jobs, one a line on standard input, until it ends. SIGUSR1: no time is left for getting smaller."""
    die_with_parent()
    hurry = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: hurry.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the campaign decides
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=Job)
        deadline = time.monotonic() + MINIMIZE_S

        def stop(deadline: float = deadline) -> bool:
            return hurry.is_set() or time.monotonic() >= deadline

        answer = work(job, stop)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


# ---- in the campaign ------------------------------------------------------------------------------------------------


class Triage:
    """Has jobs done, the most urgent first, by a process that is started when there is one."""

    def __init__(self, command: Sequence[str] = TRIAGE_COMMAND) -> None:
        self._command = command
        self._queue: queue.PriorityQueue[tuple[int, int, Job | None]] = queue.PriorityQueue()
        self._done: queue.SimpleQueue[tuple[Job, Answer]] = queue.SimpleQueue()
        self._smallest: dict[int, bytes] = {}
        self._added = 0
        self._hurry = threading.Event()
        self._ended = threading.Event()
        self._killed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._status = 0  # of the last one that ended
        self._jobs = 0
        self.waiting = 0
        self._thread = threading.Thread(target=self._work, name="triage", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Have a job done."""
        self.waiting += 1
        self._added += 1
        self._queue.put((job.priority, self._added, job))

    def answers(self) -> list[tuple[Job, Answer]]:
        """What has been done since the last call."""
        found: list[tuple[Job, Answer]] = []
        while not self._done.empty():
            found.append(self._done.get())
            self.waiting -= 1
        return found

    def hurry(self) -> None:
        """From now on, do not get smaller, and leave out what is not urgent."""
        if not self._hurry.is_set():
            self._hurry.set()
            process = self._process
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGUSR1)

    def finish(self) -> None:
        """Nothing more will come: when all is done, end."""
        self._ended.set()
        self._added += 1
        self._queue.put((3, self._added, None))

    def join(self, seconds: float) -> bool:
        """Wait for the end, but no longer than this; whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def kill(self) -> None:
        """End now, whatever is being done."""
        self._killed.set()
        self.finish()
        process = self._process
        if process is not None:
            process.kill()
        self._thread.join()

    def _work(self) -> None:
        try:
            while (job := self._queue.get()[2]) is not None and not self._killed.is_set():
                if job.priority == 2 and (self._hurry.is_set() or self._ended.is_set()):
                    self._done.put((job, Answer(outcome=LARGER)))
                    continue
                job.smallest = self._smallest.get(job.finding, job.smallest)
                answer = self._answer(job)
                if answer.scenario:
                    self._smallest[job.finding] = answer.scenario
                elif answer.outcome == GONE:
                    self._smallest.pop(job.finding, None)
                self._done.put((job, answer))
        finally:
            self._end_process()

    def _answer(self, job: Job) -> Answer:
        """The process's answer. Where it breaks down over a job, it gets one more chance, without minimizing."""
        answer = self._ask(job)
        if answer is None:
            job.keep = True
            answer = self._ask(job)
        if answer is None:
            return Answer(outcome=FAILED, remark=f"the process that replays it ended with status {self._status}")
        return answer

    def _ask(self, job: Job) -> Answer | None:
        """The answer of the process; None where it ended or hung instead."""
        if self._killed.is_set():
            return None
        if self._jobs >= JOBS_PER_PROCESS:
            self._end_process()
        if self._process is None:
            self._jobs = 0
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        self._jobs += 1
        if self._hurry.is_set():
            job.keep = True
        try:
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], MINIMIZE_S + ANSWER_S)
            line = process.stdout.readline() if ready else b""
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            process.kill()
            self._end_process()
            return None
        return msgspec.json.decode(line, type=Answer)

    def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = None
        try:
            process.stdin.close()
        except OSError:
            process.kill()  # it is gone already
        self._status = process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main()
