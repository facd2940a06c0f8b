"""Runs of the efi-image world in processes that fork: soon ready, and nothing that a run does hurts anybody else.

A *snapshot* is a process with a world that has done the first operations of a scenario. For each scenario that begins
with them it makes a child with `fork`, which does the rest, tells its records, and is gone. Memory, the emulator's
translated code and all state of Python come with the fork, so nothing is saved, restored or built again.

How it works
* Snapshots form a tree. At its root is a process without anything, started anew so that it is small; its children have
  read images and a machine that has run them once, so that their code is translated (`Kitchen`); theirs have built a
  world (`Beginning`: tables laid out, images entered); below, each has done one operation more than its parent.
  `Snapshots`, in the process that wants runs, talks to the root alone, and each process hands on what is for one below it.
* A beginning that comes again and again becomes a snapshot; the one that has not been used for longest goes.
* A run says its records after each operation. Where it dies, because the emulator crashed, took all memory or does not
  come back, what it has said is kept, and the record of its death follows (`Kind.FAULT`, of the agent "emulator"). A
  death is a result only if it comes again in a world built from nothing.
* A machine that does not count is stopped by a timer of its processor time; the run is then repeated on one that counts
  (see `guest.machine`).

The same scenario gives the same trace as `guest.world.run`, byte for byte.
"""

from __future__ import annotations

import atexit
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from guest.image import Image
from guest.machine import Machine, NotCountedError
from guest.world import GuestWorld, needs_counting, open_drivers
from reference_impl.scenario import ORDER_EDK2, Scenario, operation
from reference_impl.trace import Kind, RecordTuple, Trace

SNAPSHOTS_MAX = 16
DEPTH_MAX = 8  # operations that a snapshot has done
SIGHTINGS = 3  # of a beginning before it becomes a snapshot
SEEN_MAX = 4096  # beginnings that are counted
PLAIN_LIMIT_S = 3.0  # of processor time for a run on a machine that does not count
COUNTING_LIMIT_S = 30.0
MEMORY_LIMIT = 1 << 30  # bytes that a run may take in addition to what is there

EMULATOR = "emulator"
_ROOT = Path(__file__).resolve().parent.parent

Path_ = tuple[Any, ...]
"""Where a snapshot is in the tree: its `Kitchen`, its `Beginning`, then the operations that it has done."""


class Kitchen(NamedTuple):
    """What worlds need before they are built: which images, and whether the machine counts."""

    design: str
    images: tuple[str, ...]
    counting: bool


class Beginning(NamedTuple):
    """What a world is built from: a scenario without operations."""

    scenario: Scenario


class SnapshotError(Exception):
    """Something in another process went wrong that is our own bug; the message is its traceback."""


class _Chunk(NamedTuple):
    """What a run tells of itself at a time: records, and the blocks that only it has translated."""

    records: list[RecordTuple]
    blocks: dict[str, list[int]]


class _Ended(NamedTuple):
    """How a run ended: its chunks, and "" or how it died; `counting_wanted` where it has to be repeated.

    seconds  of processor time that its own process took
    """

    chunks: list[bytes]
    death: str = ""
    counting_wanted: bool = False
    seconds: float = 0.0


# ---- the process that wants runs ----------------------------------------------------------------------------------


class Snapshots:
    """Runs scenarios of the efi-image world. One run at a time; `close` ends all processes.

    size     snapshots at most
    depth    operations that one of them has done at most
    seconds  of processor time that the process of the last run took
    """

    def __init__(self, size: int = SNAPSHOTS_MAX, depth: int = DEPTH_MAX) -> None:
        self.seconds = 0.0
        self._depth = depth
        self._size = size
        self._lock = threading.Lock()
        self._root: _Root | None = None
        self._alive: OrderedDict[Path_, None] = OrderedDict()
        self._barren: set[Path_] = set()  # beginnings that end the run, so that nothing can come after them
        self._seen: Counter[Path_] = Counter()

    def run(self, scenario: Scenario) -> Trace:
        """As `guest.world.run`, with the images that the scenario names. Raises what that raises, and SnapshotError."""
        with self._lock:
            ended = self._run(scenario, needs_counting(scenario))
            if ended.counting_wanted:
                ended = self._run(scenario, True)
            if ended.death:
                self.close()
                ended = self._run(scenario, True)
            self.seconds = ended.seconds
        return _trace_of(ended)

    def close(self) -> None:
        """End all processes. The next run begins again from nothing."""
        if self._root is not None:
            self._root.close()
            self._root = None
        self._alive.clear()
        self._barren.clear()

    def _run(self, scenario: Scenario, counting: bool) -> _Ended:
        # The order matters before the exit only to groups that neither the shipped drivers nor a working machine have.
        free = scenario.images == () and scenario.environment == "conforming"
        order = ORDER_EDK2 if free else scenario.order
        whole: Path_ = (
            Kitchen(scenario.design, scenario.images, counting),
            Beginning(replace(scenario, operations=(), order=order)),
            *takewhile(lambda step: step.kind != "exit", scenario.operations[:-1][: self._depth]),
        )
        paths = [whole[: length + 1] for length in range(len(whole))]
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen.update(paths)
        depth = 0
        for path in paths:
            if path in self._alive:
                self._alive.move_to_end(path)
            elif not (self._is_worth_it(path) and self._grow(path)):
                break
            depth += 1
        try:
            answer = self._ask(whole[:depth], "run", (scenario, counting))
        except EOFError:
            self.close()
            return _Ended([], "its process went away")
        return answer  # type: ignore[no-any-return]

    def _is_worth_it(self, path: Path_) -> bool:
        """Whether this beginning has come often enough. Nothing runs without a kitchen."""
        return path not in self._barren and (len(path) == 1 or self._seen[path] >= SIGHTINGS)

    def _grow(self, path: Path_) -> bool:
        """Make a snapshot of `path`, whose parent is there. False where the run ends in it."""
        while len(self._alive) >= self._size:
            oldest = next((one for one in self._alive if one != path[:-1] and not self._has_children(one)), None)
            if oldest is None:
                return False
            self._ask(oldest[:-1], "drop", oldest[-1])
            del self._alive[oldest]
        try:
            grown = self._ask(path[:-1], "grow", path[-1])
        except EOFError:
            self.close()
            return False
        if grown:
            self._alive[path] = None
        else:
            self._barren.add(path)
        return bool(grown)

    def _has_children(self, path: Path_) -> bool:
        return any(len(other) == len(path) + 1 and other[:-1] == path for other in self._alive)

    def _ask(self, path: Path_, what: str, argument: Any) -> Any:
        """The answer of the process at `path`. What it raised is raised here; EOFError where the root has gone."""
        if self._root is None:
            self._root = _Root()
        answer = self._root.ask((path, what, argument))
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Root:
    """The process at the root, and the way to it."""

    def __init__(self) -> None:
        self._connection, there = Pipe()
        search = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "guest.snapshots", str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": search},
            )

    def ask(self, message: Any) -> Any:
        """Send a message and wait for its answer. Raises EOFError where nobody is there."""
        try:
            self._connection.send(message)
            return self._connection.recv()
        except OSError:
            raise EOFError from None

    def close(self) -> None:
        """End it; the processes below it end by themselves when nobody is above them."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _trace_of(ended: _Ended) -> Trace:
    """The trace of a run that has told itself in chunks."""
    trace = Trace()
    for data in ended.chunks:
        chunk: _Chunk = pickle.loads(data)
        trace.records += chunk.records
        trace.blocks = chunk.blocks
    if ended.death:
        last = next((record for record in reversed(trace.records) if record[0] == Kind.OPERATION), None)
        where = "nothing" if last is None else last[5]
        trace.add(Kind.FAULT, EMULATOR, "crash", (0, where), None, ended.death)
    return trace


_shared: Snapshots | None = None


def run(scenario: Scenario) -> Trace:
    """As `Snapshots.run`, with the snapshots that this process keeps."""
    global _shared
    if _shared is None:
        _shared = Snapshots()
        atexit.register(_shared.close)
    return _shared.run(scenario)


# ---- the processes of the tree ------------------------------------------------------------------------------------


class _World(GuestWorld):
    """A world that tells its records after each operation, where somebody listens."""

    tell: Callable[[], None] | None = None

    def do(self, index: int, operation: Any) -> None:
        """As in any world."""
        super().do(index, operation)
        if self.tell is not None:
            self.tell()


class _Node:
    """One process of the tree: what it has, and what it does when it is asked.

    drivers, machine, world  what is there already, None where it is not
    chunks                   what the world has told until here
    """

    def __init__(self, above: Connection) -> None:
        self._above = above
        self._below: dict[Any, tuple[int, Connection]] = {}
        self._drivers: dict[str, Image] | None = None
        self._machine: Machine | None = None
        self._world: _World | None = None
        self._done = 0
        self._chunks: list[bytes] = []
        self._told = 0
        self._known: frozenset[int] = frozenset()

    def serve(self) -> NoReturn:
        """Answer until nobody is above any more."""
        while True:
            try:
                path, what, argument = self._above.recv()
            except (EOFError, OSError):
                os._exit(0)
            try:
                answer = self._hand_on(path, what, argument) if path else self._do(what, argument)
            except Exception as error:
                answer = error
            self._above.send(answer if not isinstance(answer, Exception) else _as_sent(answer))

    def _hand_on(self, path: Path_, what: str, argument: Any) -> Any:
        """Ask the process below that the path begins with."""
        _, connection = self._below[path[0]]
        try:
            connection.send((path[1:], what, argument))
            return connection.recv()
        except (EOFError, OSError):
            raise EOFError from None

    def _do(self, what: str, argument: Any) -> Any:
        if what == "drop":
            pid, connection = self._below.pop(argument)
            connection.close()
            os.waitpid(pid, 0)
            return None
        return self._grow(argument) if what == "grow" else self._run(*argument)

    # ---- snapshots ------------------------------------------------------------------------------------------------

    def _grow(self, element: Any) -> bool | Exception:
        """Fork a process that is one step further. False where the run ends in that step, or the process died in it."""
        connection, there = Pipe()
        pid = os.fork()
        if not pid:
            for _, other in self._below.values():
                other.close()
            connection.close()
            self._above.close()
            self._below = {}
            self._above = there
            there.send(self._step(element))
            self.serve()
        there.close()
        try:
            grown = connection.recv()
        except (EOFError, OSError):
            grown = False
        if grown is True:
            self._below[element] = pid, connection
        else:
            connection.close()
            os.waitpid(pid, 0)
        return grown  # type: ignore[no-any-return]

    def _step(self, element: Any) -> bool | Exception:
        """Become one step further; in the new process."""
        _limit_time(COUNTING_LIMIT_S)
        try:
            if isinstance(element, Kitchen):
                self._equip(element)
            elif isinstance(element, Beginning):
                self._world = self._build(element.scenario)
            else:
                assert self._world is not None
                if not self._world.advance(self._done, element):
                    return False
                self._done += 1
                self._chunks.append(self._chunk())
        except Exception as error:
            return _as_sent(error)
        _limit_time(0)
        return True

    def _equip(self, kitchen: Kitchen) -> None:
        """Read the images, and run them on a new machine so that it knows their code.

        After the first run the emulator forgets again what it has translated, after the second it does not.
        """
        design, images, counting = kitchen
        drivers = self._drivers = _read_aside(design, images)
        machine = self._machine = Machine(counting, watched=False, tracing=True)
        made = Scenario("efi-image", design, images, devices=("block",), operations=_WARMING_UP)
        for _ in range(2):
            GuestWorld(made, drivers, machine).run()
            machine.renew()
        self._known = frozenset(machine.blocks)

    def _build(self, made: Scenario) -> _World:
        assert self._drivers is not None
        assert self._machine is not None
        world = _World(made, self._drivers, self._machine)
        self._machine.settle(world.images.convention.end)
        return world

    # ---- runs -----------------------------------------------------------------------------------------------------

    def _run(self, scenario: Scenario, counting: bool) -> _Ended | Exception:
        """Fork a process that does the rest of `scenario`, and give what it tells."""
        data, status, seconds = _aside(lambda pipe: self._run_here(scenario, counting, pipe))
        chunks, last = _parted(data)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            if last:
                return pickle.loads(last)  # type: ignore[no-any-return]
            return _Ended([*self._chunks, *chunks], seconds=seconds)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGPROF and not counting:
                return _Ended([], counting_wanted=True)
            death = "it does not come back" if number == signal.SIGPROF else signal.Signals(number).name
        else:
            death = {_NO_MEMORY: "out of memory"}.get(os.WEXITSTATUS(status), f"status {os.WEXITSTATUS(status)}")
        return _Ended([*self._chunks, *chunks], death)

    def _run_here(self, scenario: Scenario, counting: bool, pipe: int) -> int:
        """Do the rest of `scenario` and tell it; in the process of the run. Gives its exit status."""
        try:
            _limit_time(COUNTING_LIMIT_S if counting else PLAIN_LIMIT_S)
            if self._machine is None:
                self._drivers = open_drivers(scenario.design, scenario.images)
                self._machine = Machine(counting, watched=False, tracing=True)
            world = self._world = self._world or self._build(scenario)
            _limit_memory()
            world.scenario = scenario
            world.core.events.order = scenario.order
            world.tell = lambda: _write(pipe, self._chunk())
            world.run(self._done)
            _write(pipe, self._chunk())
        except MemoryError:
            return _NO_MEMORY
        except NotCountedError:
            _write(pipe, pickle.dumps(_Ended([], counting_wanted=True)), last=True)
        except Exception as error:
            _write(pipe, pickle.dumps(_as_sent(error)), last=True)
        return 0

    def _chunk(self) -> bytes:
        """What the world has recorded since it was asked last."""
        assert self._world is not None
        records = self._world.trace.records
        told, self._told = self._told, len(records)
        blocks = self._world.images.places(self._world.machine.blocks - self._known)
        return pickle.dumps(_Chunk(records[told:], blocks), pickle.HIGHEST_PROTOCOL)


_NO_MEMORY = 41
_LAST = 1 << 31


_WARMING_UP = tuple(operation(kind) for kind in ("connect", "request", "disconnect", "connect", "exit"))


def _read_aside(design: str, images: tuple[str, ...]) -> dict[str, Image]:
    """The images, read by a process that is gone afterwards: taking firmware apart leaves ten times its size behind."""

    def read(pipe: int) -> int:
        try:
            _write(pipe, pickle.dumps(open_drivers(design, images)))
        except Exception as error:
            _write(pipe, pickle.dumps(_as_sent(error)), last=True)
        return 0

    data, status, _ = _aside(read)
    parts, problem = _parted(data)
    if problem:
        raise pickle.loads(problem)
    assert status == 0, f"whoever reads images ended with {status}"
    return pickle.loads(parts[0])  # type: ignore[no-any-return]


def _aside(work: Callable[[int], int]) -> tuple[bytes, int, float]:
    """Let another process do `work`, which writes to a pipe and gives the exit status.

    Gives what it wrote, how it ended, and the seconds of processor time that it took.
    """
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(readable)
            status = work(writable)
        finally:
            os._exit(status)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        data = pipe.read()
    _, status, used = os.wait4(pid, 0)
    return data, status, used.ru_utime + used.ru_stime


def _as_sent(error: Exception) -> Exception:
    """An exception in a form that gets through: what users can mend as it is, our own bugs with their traceback."""
    from guest import ExtraMissing
    from guest.image import ImageError

    if isinstance(error, ExtraMissing | ImageError | EOFError):
        return error
    import traceback

    return SnapshotError("".join(traceback.format_exception(error)))


def _write(pipe: int, data: bytes, *, last: bool = False) -> None:
    """Write one part: its length, and a bit for the last one."""
    data = (len(data) | (_LAST if last else 0)).to_bytes(4, "little") + data
    while data:
        data = data[os.write(pipe, data) :]


def _parted(data: bytes) -> tuple[list[bytes], bytes]:
    """The parts that were written whole, and the one that was said to be the last."""
    parts: list[bytes] = []
    at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        part = data[at + 4 : at + 4 + (length & ~_LAST)]
        at += 4 + (length & ~_LAST)
        if at > len(data):
            break
        if length & _LAST:
            return parts, part
        parts.append(part)
    return parts, b""


def _limit_time(seconds: float) -> None:
    """Let a signal end this process after so much processor time; 0 for no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    """Let memory end soon after what this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit <= hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main() -> NoReturn:
    """The process at the root; its argument is the number of the file that leads up."""
    import gc

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and who asks for runs decides
    gc.collect()
    gc.freeze()
    gc.disable()
    _Node(Connection(int(sys.argv[1]))).serve()


if __name__ == "__main__":
    from guest import snapshots  # what is pickled has to name the module that others import

    snapshots.main()
