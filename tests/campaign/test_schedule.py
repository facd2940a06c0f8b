"""Shares: each design gets the same time, all runs are done, and nobody starts without a limit."""

from __future__ import annotations

import pytest

from campaign.schedule import SLICE_S, Assignment, Schedule

DESIGNS = ("disconnect", "exit-callback", "reference-count")


def shares(schedule: Schedule, jobs: int) -> list[tuple[float, Assignment]]:
    """When each worker starts, and with which share, where every worker takes all the time that it has."""
    now = 0.0
    running: list[tuple[float, Assignment]] = []
    started: list[tuple[float, Assignment]] = []
    while True:
        while len(running) < jobs and (assignment := schedule.next(now)):
            started.append((now, assignment))
            running.append((now + assignment.seconds, assignment))
        if not running:
            return started
        running.sort(key=lambda one: one[0])
        now, ended = running.pop(0)
        schedule.end(ended, ended.seconds, ended.runs or 0)


def test_designs_run_side_by_side_for_the_whole_time() -> None:
    """With a worker for each."""
    assert shares(Schedule(DESIGNS, 3, 60, None), 3) == [(0, Assignment(design, 60, None)) for design in DESIGNS]


@pytest.mark.parametrize(("jobs", "seconds"), [(1, 20), (2, 40), (4, 80), (5, 100)])
def test_every_design_gets_the_same_time(jobs: int, seconds: int) -> None:
    """And the whole takes as long as was asked for, whatever the number of workers."""
    started = shares(Schedule(DESIGNS, jobs, 60, None), jobs)
    for design in DESIGNS:
        assert sum(share.seconds for _, share in started if share.design == design) == seconds
    assert max(now + share.seconds for now, share in started) == 60


def test_a_long_campaign_comes_back_to_each_design_again_and_again() -> None:
    """No process grows old, and no design waits for days."""
    started = shares(Schedule(DESIGNS, 2, 7 * 86400, None), 2)
    assert max(share.seconds for _, share in started) <= SLICE_S
    assert {share.design for _, share in started[:3]} == set(DESIGNS)


def test_a_share_is_never_without_limit() -> None:
    """libFuzzer would take 0 seconds for "no limit"."""
    assert [share.seconds for _, share in shares(Schedule(DESIGNS, 3, 1, None), 3)] == [1, 1, 1]
    assert [share.seconds for _, share in shares(Schedule(DESIGNS, 1, None, 5), 1)] == [SLICE_S] * 3


def test_more_jobs_than_designs_share_the_runs() -> None:
    """All runs are done, none twice."""
    started = shares(Schedule(DESIGNS[:2], 5, None, 10), 5)
    assert sorted((share.design, share.runs) for _, share in started) == [
        *[("disconnect", 3), ("disconnect", 3), ("disconnect", 4)],
        *[("exit-callback", 5), ("exit-callback", 5)],
    ]


def test_no_worker_is_left_without_runs() -> None:
    """libFuzzer would take 0 runs for a check of the corpus alone."""
    assert [share.runs for _, share in shares(Schedule(DESIGNS[:1], 8, None, 2), 8)] == [1, 1]


def test_what_a_worker_did_not_run_goes_to_the_next() -> None:
    """It was killed, or its time was over."""
    schedule = Schedule(DESIGNS[:1], 1, None, 10)
    first = schedule.next(0)
    assert first is not None
    assert schedule.next(0) is None
    schedule.end(first, 1, 4)
    assert schedule.next(1) == Assignment("disconnect", SLICE_S, 6)


def test_earlier_sessions_count() -> None:
    """A design that has had its runs gets none; the one that had least time comes first."""
    schedule = Schedule(DESIGNS, 1, 60, 10)
    schedule.credit("disconnect", 9, 10)
    schedule.credit("exit-callback", 7, 3)
    assert [share[:1] + share[2:] for _, share in shares(schedule, 1)] == [
        ("reference-count", 10),
        ("exit-callback", 7),
    ]


def test_a_design_that_is_given_up_gets_nothing_more() -> None:
    """Also of what its workers did not run."""
    schedule = Schedule(DESIGNS[:1], 1, None, 10)
    assignment = schedule.next(0)
    assert assignment is not None
    schedule.give_up("disconnect")
    schedule.end(assignment, 1, 0)
    assert schedule.next(1) is None


def test_a_design_goes_on_until_its_runs_are_given_out_or_it_is_given_up() -> None:
    """What a worker did not run is given out once more."""
    schedule = Schedule(("disconnect",), 1, None, 10)
    assert schedule.goes_on("disconnect")
    assignment = schedule.next(0)
    assert assignment is not None
    assert not schedule.goes_on("disconnect")
    schedule.end(assignment, 1, 4)
    assert schedule.goes_on("disconnect")
    schedule.give_up("disconnect")
    assert not schedule.goes_on("disconnect")
