"""Snapshots: the same traces as without, and whatever becomes of a run's process, its findings are kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest import snapshots, world
from guest.image import ImageError
from guest.snapshots import SIGHTINGS, SnapshotError, Snapshots
from reference_impl.scenario import Operation, Scenario, operation, scenario
from reference_impl.trace import Kind, Record, Trace
from tests.guest.firmware import need_firmware

CONNECT, DISCONNECT, EXIT = operation("connect"), operation("disconnect"), operation("exit")
BUS = operation("connect", driver="xenbus", recursive=False)


def described(*operations: Operation, disks: int = 1, **more: object) -> Scenario:
    """A scenario with block devices."""
    return scenario(world="efi-image", design="shipped", devices=("block",) * disks, operations=operations, **more)


@pytest.fixture(scope="module")
def kept():
    """Snapshots that the tests of this module share."""
    need_firmware()
    made = Snapshots()
    yield made
    made.close()


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Snapshots of worlds in which time does terrible things to the process: by milliseconds."""
    need_firmware()
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "import guest.snapshots, reference_impl.world\n"
        "guest.snapshots.PLAIN_LIMIT_S = guest.snapshots.COUNTING_LIMIT_S = 8\n"
        "def time(self, milliseconds):\n"
        "    if milliseconds == 1: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if milliseconds == 10: bytearray(1 << 33)\n"
        "    if milliseconds == 100: guest.snapshots._limit_time(0.1)\n"
        "    while milliseconds == 100: pass\n"
        "    if milliseconds == 1000: raise KeyError('a bug of our own')\n"
        "reference_impl.world.PlatformWorld._time = time\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Snapshots()
    yield made
    made.close()


def death(trace: Trace) -> Record:
    """The last record."""
    return Record(*trace.records[-1])


@pytest.mark.parametrize(
    "made",
    [
        described(CONNECT, EXIT),
        described(BUS, CONNECT, operation("request"), EXIT, disks=2),
        described(CONNECT, DISCONNECT, CONNECT, EXIT, reconnection=False, order="fifo"),
        described(operation("backend", delay=3), CONNECT, operation("request"), EXIT),
        described(operation("fail", nth=3), CONNECT, EXIT),
        described(CONNECT, operation("unload", driver="block"), operation("load", driver="block"), CONNECT, EXIT),
        described(operation("exit", map_key="stale"), operation("allocate"), EXIT, disks=0),
        described(),
        described(
            CONNECT,
            operation("time"),
            EXIT,
            environment="hostile",
            switches=("failures-anywhere", "third-party-allocates", "timer-ticks"),
            order=(1, 0),
        ),
    ],
    ids=["exit", "two-disks", "restart", "slow-backend", "fault", "reload", "retry", "nothing", "hostile"],
)
def test_the_trace_is_the_same_as_without_snapshots(kept, made):
    """Byte for byte, from each snapshot that there is on the way."""
    expected = world.run(made).records
    for _ in range(SIGHTINGS + 1):
        records = kept.run(made).records
        assert records == expected
        assert repr(records) == repr(expected)


def test_beginnings_that_come_again_become_snapshots(kept):
    """Each operation before the exit is one; a beginning that ends the run is none."""
    made = described(CONNECT, DISCONNECT, EXIT, disks=3)
    for _ in range(SIGHTINGS):
        kept.run(made)
    assert [len(path) for path in kept._alive if path[-1:] == (DISCONNECT,)][-1:] == [4]
    fault = described(operation("fail", nth=1), CONNECT, EXIT, disks=3)
    for _ in range(SIGHTINGS + 1):
        kept.run(fault)
    assert not [path for path in kept._alive if path[2:] == fault.operations[:2]]


def test_what_was_not_used_for_longest_goes():
    """There are never more than so many processes, and what goes can come again."""
    need_firmware()
    kept = Snapshots(size=4)
    made = [described(operation("allocate", pages=pages), CONNECT, EXIT) for pages in (1, 2, 4, 16)]
    expected = world.run(made[0]).records
    for one in [*made, made[0]]:
        for _ in range(SIGHTINGS):
            assert one is not made[0] or kept.run(one).records == expected
            kept.run(one)
        assert len(kept._alive) <= 4
    kept.close()


def test_blocks_that_no_run_had_translated_before_are_told(kept):
    """A path that the first runs do not take shows, by image and offset, from whichever snapshot."""
    made = described(CONNECT, operation("unload", driver="block"), EXIT)
    told = [kept.run(made).blocks for _ in range(SIGHTINGS + 1)]
    assert told[0] == told[-1]
    assert "XenPvBlkDxe" in told[0]


@pytest.mark.parametrize(
    ("milliseconds", "how"), [(1, "SIGSEGV"), (10, "out of memory"), (100, "it does not come back")]
)
def test_a_process_that_dies_leaves_its_records_and_how_it_died(broken, milliseconds, how):
    """Only the run itself is hurt: the next one is as ever."""
    trace = broken.run(described(CONNECT, operation("time", milliseconds=milliseconds), EXIT))
    last = death(trace)
    assert (last.kind, last.agent, last.name, last.value) == (Kind.FAULT, "emulator", "crash", how)
    assert last.arguments == (0, "connect")
    assert trace.records[:-1] == world.run(described(CONNECT)).records
    assert broken.run(described(CONNECT, EXIT)).records == world.run(described(CONNECT, EXIT)).records


def test_a_snapshot_that_dies_while_it_is_made_does_no_harm(broken):
    """What begins with that is run from the one before."""
    made = described(CONNECT, operation("time"), EXIT)
    for _ in range(SIGHTINGS + 1):
        assert death(broken.run(made)).value == "SIGSEGV"


def test_a_bug_of_our_own_comes_with_its_traceback(broken):
    """It is no finding."""
    with pytest.raises(SnapshotError, match="a bug of our own"):
        broken.run(described(operation("time", milliseconds=1000), EXIT))


def test_an_image_that_is_missing_is_said_here(kept):
    """As without snapshots."""
    with pytest.raises(ImageError, match=r"gone\.efi: no such file"):
        kept.run(scenario(world="efi-image", design="shipped", images=("gone.efi",)))


def test_without_the_root_everything_begins_again():
    """Somebody may have killed it."""
    need_firmware()
    made = Snapshots()
    expected = made.run(described(CONNECT)).records
    assert made._root is not None
    os.kill(made._root._process.pid, signal.SIGKILL)
    made._root._process.wait()
    assert made.run(described(CONNECT)).records == expected
    root = made._root
    made.close()
    assert root._process.poll() is not None


def test_parts_that_were_cut_off_do_not_count():
    """A process may die while it writes."""
    readable, writable = os.pipe()
    snapshots._write(writable, b"first")
    snapshots._write(writable, b"second")
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        data = pipe.read()
    assert snapshots._parted(data) == ([b"first", b"second"], b"")
    assert snapshots._parted(data[:-1]) == ([b"first"], b"")
    assert snapshots._parted(data[:10]) == ([b"first"], b"")
