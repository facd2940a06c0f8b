"""The statistics of a campaign: `campaign.sqlite` in its folder, written by the one process that runs it, read by anybody.

`Statistics` writes, `read` reads. The tables are `SCHEMA`; `docs/campaigns.md` says what each column means, and a test
compares the two. Figures are absolute, never added to what is there: a campaign that was killed at any moment reads the
counters of its workers again and stores the same figures once more, so that nothing counts twice and nothing is lost.

What is written becomes visible with `commit`, all of it or nothing. A reader sees the last commit, also of a campaign that
was killed; it waits for a moment while somebody writes.

What deliberately lives elsewhere: the counters and findings of workers while they run (`campaign.findings`).
"""

from __future__ import annotations

import json
import platform
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from campaign.exit_status import UsageProblem

FILE = "campaign.sqlite"
FORMAT = 1
_WAIT_S = 30  # for another process that reads or writes at the moment

SCHEMA = """
CREATE TABLE campaign (
    format INTEGER NOT NULL, created REAL NOT NULL, target TEXT NOT NULL, images TEXT NOT NULL, environment TEXT NOT NULL,
    switches TEXT NOT NULL, fault TEXT NOT NULL, seeds TEXT NOT NULL
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, began REAL NOT NULL, seconds REAL NOT NULL, ended TEXT NOT NULL, designs TEXT NOT NULL,
    jobs INTEGER NOT NULL, max_time_s INTEGER, runs INTEGER, seed INTEGER, guided INTEGER NOT NULL, pid INTEGER NOT NULL,
    version TEXT NOT NULL, python TEXT NOT NULL
);
CREATE TABLE workers (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions, design TEXT NOT NULL, folder TEXT NOT NULL,
    began REAL NOT NULL, seconds REAL NOT NULL, executions INTEGER NOT NULL, edges INTEGER NOT NULL,
    features INTEGER NOT NULL, corpus_size INTEGER NOT NULL, rss_mb INTEGER NOT NULL, rss_max_mb INTEGER NOT NULL,
    news TEXT NOT NULL, ended TEXT NOT NULL
);
CREATE TABLE findings (
    id INTEGER PRIMARY KEY, design TEXT NOT NULL, signature TEXT NOT NULL, oracle TEXT NOT NULL, rule TEXT NOT NULL,
    agent TEXT NOT NULL, subject TEXT NOT NULL, source TEXT NOT NULL, expected TEXT NOT NULL, seen TEXT NOT NULL,
    note INTEGER NOT NULL, first_seen REAL NOT NULL, state TEXT NOT NULL, reliability REAL, operations INTEGER,
    environment TEXT NOT NULL, switches TEXT NOT NULL, orders TEXT NOT NULL, reproducer TEXT NOT NULL, raw BLOB NOT NULL,
    UNIQUE (design, signature)
);
CREATE TABLE sightings (
    finding INTEGER NOT NULL REFERENCES findings, worker INTEGER NOT NULL REFERENCES workers, count INTEGER NOT NULL,
    last_seen REAL NOT NULL, orders TEXT NOT NULL, environments TEXT NOT NULL, switches TEXT NOT NULL,
    PRIMARY KEY (finding, worker)
);
CREATE TABLE progress (
    time REAL NOT NULL, session INTEGER NOT NULL REFERENCES sessions, seconds REAL NOT NULL, design TEXT NOT NULL,
    executions INTEGER NOT NULL, edges INTEGER NOT NULL, features INTEGER NOT NULL, corpus_size INTEGER NOT NULL,
    findings INTEGER NOT NULL
);
CREATE TABLE events (
    time REAL NOT NULL, session INTEGER NOT NULL REFERENCES sessions, kind TEXT NOT NULL, design TEXT NOT NULL,
    text TEXT NOT NULL
);
"""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign tests. The folder of one campaign takes no run of another.

    images  what `--image` names, for a target that has images
    """

    target: str
    environment: str
    switches: tuple[str, ...] = ()
    fault: str = ""
    images: tuple[str, ...] = ()

    def __str__(self) -> str:
        many = [("switch", name) for name in self.switches] + [("image", name) for name in self.images]
        named = [("environment", self.environment), ("fault", self.fault), *many]
        return ", ".join([self.target, *(f"{name} {value}" for name, value in named if value)])


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One call of `ebsfuzz run` on the campaign: one row of `sessions`.

    ended  "" while it runs and after it was killed, "done" at its limits, "stopped" by the user, "failed"
    """

    id: int
    began: float
    seconds: float
    ended: str
    designs: tuple[str, ...]
    jobs: int
    max_time_s: int | None
    runs: int | None
    seed: int | None
    guided: bool
    pid: int
    version: str
    python: str


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One process that fuzzed: one row of `workers`.

    news   libFuzzer's last line that said something new
    ended  "" while it runs; otherwise a word or a sentence about its end
    """

    id: int
    session: int
    design: str
    folder: str
    began: float
    seconds: float
    executions: int
    edges: int
    features: int
    corpus_size: int
    rss_mb: int
    rss_max_mb: int
    news: str
    ended: str

    @property
    def executions_per_second(self) -> float:
        """Over the whole life of the process."""
        return self.executions / self.seconds if self.seconds else 0.0


class TriagedFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One signature of one design: a row of `findings`, with its `sightings` added up.

    state        "waiting" for triage, "minimized", "kept" as it was found, "unreliable", or "gone" when run again
    reliability  share of the runs in which its scenario showed it again; None while it waits
    operations   of the smallest scenario so far; None while it waits
    environment, switches, orders  of the smallest scenario: what it needs, and under which notification orders it shows
    seen_orders, seen_environments, seen_switches  over all sightings; a permutation counts as "permutation"
    reproducer   folder relative to the campaign's; "" while it waits
    """

    id: int
    design: str
    signature: str
    oracle: str
    rule: str
    agent: str
    subject: str
    source: str
    expected: str
    seen: str
    note: bool
    count: int
    first_seen: float
    last_seen: float
    state: str
    reliability: float | None
    operations: int | None
    environment: str
    switches: tuple[str, ...]
    orders: tuple[str | tuple[int, ...], ...]
    seen_orders: tuple[str, ...]
    seen_environments: tuple[str, ...]
    seen_switches: tuple[str, ...]
    reproducer: str


class ProgressPoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far one design had come at one moment: a row of `progress`. Figures are totals of the campaign.

    seconds  of the campaign: what all sessions took until then
    """

    time: float
    session: int
    seconds: float
    design: str
    executions: int
    edges: int
    features: int
    corpus_size: int
    findings: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something worth a line in the log: a row of `events`.

    kind  "session", "finding", "smaller", "worker", "corpus" or "problem"
    """

    time: float
    session: int
    kind: str
    design: str
    text: str


class CampaignRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the statistics of one campaign say, in the order in which it came."""

    identity: Identity
    created: float
    sessions: tuple[Session, ...]
    workers: tuple[Worker, ...]
    findings: tuple[TriagedFinding, ...]
    progress: tuple[ProgressPoint, ...]
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        """How long the campaign ran in all."""
        return sum(session.seconds for session in self.sessions)

    @property
    def executions(self) -> int:
        """Scenarios that all workers of all sessions have run."""
        return sum(worker.executions for worker in self.workers)

    @property
    def designs(self) -> tuple[str, ...]:
        """The designs of all sessions, each once."""
        return tuple(dict.fromkeys(design for session in self.sessions for design in session.designs))


def read(folder: Path) -> CampaignRecord:
    """What the statistics in a campaign's folder say. Raises UsageProblem where there are none that can be read."""
    path = folder / FILE
    if not path.is_file():
        raise UsageProblem(f"{folder}: no campaign: {FILE} is missing")
    with _readable(path):
        # `nolock` is not wanted: a reader must not see half a commit. What a killed writer left of one is rolled back by
        # the next connection that may write, so a reader may where it can; SQLite opens a file read-only elsewhere.
        connection = sqlite3.connect(path.absolute().as_uri() + "?mode=rw", uri=True, timeout=_WAIT_S)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")  # one state for all that follows
            campaign = connection.execute("SELECT * FROM campaign").fetchone()
            if campaign is None:
                raise UsageProblem(f"{folder}: no campaign: it was ended before it began")
            _check_format(path, campaign["format"])
            return CampaignRecord(
                identity=_decoded(campaign, Identity),
                created=campaign["created"],
                sessions=_rows(connection, "SELECT * FROM sessions ORDER BY id", Session),
                workers=_rows(connection, "SELECT * FROM workers ORDER BY id", Worker),
                findings=tuple(_findings(connection)),
                progress=_rows(connection, "SELECT * FROM progress ORDER BY rowid", ProgressPoint),
                events=_rows(connection, "SELECT * FROM events ORDER BY rowid", Event),
            )
        finally:
            connection.close()


class Statistics:
    """The statistics of a campaign that runs. Only the process that holds the campaign's lock may have one."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        """Open the statistics in `folder`, or begin them.

        Raises UsageProblem where they belong to another campaign, cannot be read, or have no room.
        """
        self._path = folder / FILE
        with _readable(self._path):
            self._connection = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
        try:
            self._open(folder, identity)
        except BaseException:
            self._connection.close()
            raise
        self.session = 0

    def _open(self, folder: Path, identity: Identity) -> None:
        with _readable(self._path):
            self._connection.row_factory = sqlite3.Row
            # The loss of the last second in a power failure is fine, the file's soundness is kept by SQLite.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("BEGIN IMMEDIATE")
            if not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in SCHEMA.split(";")[:-1]:
                    self._connection.execute(statement)
                self._insert("campaign", format=FORMAT, created=time.time(), seeds="", **msgspec.to_builtins(identity))
            row = self._connection.execute("SELECT * FROM campaign").fetchone()
            _check_format(self._path, row["format"])
            there = _decoded(row, Identity)
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN")
        if there != identity:
            raise UsageProblem(
                f"{folder}: the campaign of another command ({there}; now {identity}): name another --out"
            )
        self.session = 0

    def commit(self) -> None:
        """Make what was written visible, and safe. Raises UsageProblem where there is no room."""
        with _readable(self._path):
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN")

    def close(self) -> None:
        """Commit and let go. After a failed write there is nothing to commit."""
        try:
            if self._connection.in_transaction:
                self.commit()
        finally:
            self._connection.close()

    # ---- sessions ---------------------------------------------------------------------------------------------------

    def begin_session(
        self,
        *,
        designs: tuple[str, ...],
        jobs: int,
        max_time_s: int | None,
        runs: int | None,
        seed: int | None,
        guided: bool,
        pid: int,
    ) -> tuple[Session, ...]:
        """Begin a session; the earlier ones that it goes on with.

        Those are the latest, as long as they have the same limits, and none of them came to its end.
        """
        earlier = _rows(self._connection, "SELECT * FROM sessions ORDER BY id DESC", Session)
        continued: list[Session] = []
        for session in earlier:
            same = (session.designs, session.max_time_s, session.runs) == (designs, max_time_s, runs)
            if session.ended == "done" or not same:
                break
            continued.append(session)
        self.session = self._insert(
            "sessions",
            began=time.time(),
            seconds=0.0,
            ended="",
            designs=designs,
            jobs=jobs,
            max_time_s=max_time_s,
            runs=runs,
            seed=seed,
            guided=guided,
            pid=pid,
            version=version_of("ebsfuzz"),
            python=platform.python_version(),
        )
        return tuple(reversed(continued))

    def update_session(self, seconds: float, ended: str = "") -> None:
        """How long the session has taken by now, and how it ended."""
        self._update("sessions", self.session, seconds=seconds, ended=ended)

    def seconds_before(self) -> float:
        """How long all sessions before this one took."""
        row = self._connection.execute("SELECT total(seconds) FROM sessions WHERE id != ?", (self.session,)).fetchone()
        return float(row[0])

    # ---- workers ----------------------------------------------------------------------------------------------------

    def add_worker(self, design: str, folder: str) -> int:
        """A process that begins; its number."""
        return self._insert(
            "workers",
            session=self.session,
            design=design,
            folder=folder,
            began=time.time(),
            seconds=0.0,
            executions=0,
            edges=0,
            features=0,
            corpus_size=0,
            rss_mb=0,
            rss_max_mb=0,
            news="",
            ended="",
        )

    def update_worker(self, worker: int, **figures: Any) -> None:
        """Figures of a worker: columns of its row."""
        self._update("workers", worker, **figures)

    def workers(self, sessions: Iterable[int] | None = None) -> tuple[Worker, ...]:
        """The workers of these sessions, or of all."""
        found = _rows(self._connection, "SELECT * FROM workers ORDER BY id", Worker)
        if sessions is None:
            return found
        chosen = set(sessions)
        return tuple(worker for worker in found if worker.session in chosen)

    # ---- findings ---------------------------------------------------------------------------------------------------

    def add_finding(self, **columns: Any) -> int:
        """A signature that is new to its design; its number."""
        return self._insert(
            "findings",
            state="waiting",
            reliability=None,
            operations=None,
            environment="",
            switches=(),
            orders=(),
            reproducer="",
            **columns,
        )

    def update_finding(self, finding: int, **columns: Any) -> None:
        """What triage has found out: columns of the finding's row."""
        self._update("findings", finding, **columns)

    def raw_of(self, finding: int) -> bytes:
        """The input of a finding that triage looked at last, or is to look at."""
        return bytes(self._connection.execute("SELECT raw FROM findings WHERE id = ?", (finding,)).fetchone()[0])

    def count_of(self, finding: int) -> int:
        """In how many executions a finding has been seen."""
        query = "SELECT total(count) FROM sightings WHERE finding = ?"
        return int(self._connection.execute(query, (finding,)).fetchone()[0])

    def see(self, finding: int, worker: int, **columns: Any) -> None:
        """How often a worker has seen a finding by now: a row of `sightings`."""
        self._insert("sightings", "INSERT OR REPLACE", finding=finding, worker=worker, **columns)

    def findings(self) -> tuple[TriagedFinding, ...]:
        """All findings with their sightings so far, those that this process has not committed yet included."""
        return tuple(_findings(self._connection))

    # ---- what happened ----------------------------------------------------------------------------------------------

    def add_progress(self, **columns: Any) -> None:
        """One row of `progress`, now."""
        self._insert("progress", time=time.time(), session=self.session, **columns)

    def add_event(self, kind: str, design: str, text: str) -> None:
        """One row of `events`, now."""
        self._insert("events", time=time.time(), session=self.session, kind=kind, design=design, text=text)

    @property
    def seeds(self) -> str:
        """A digest of the starting corpus that was taken into the campaign last; "" before the first."""
        return str(self._connection.execute("SELECT seeds FROM campaign").fetchone()[0])

    @seeds.setter
    def seeds(self, digest: str) -> None:
        with _readable(self._path):
            self._connection.execute("UPDATE campaign SET seeds = ?", (digest,))

    def _insert(self, table: str, statement: str = "INSERT", /, **columns: Any) -> int:
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        with _readable(self._path):
            values = tuple(map(_encoded, columns.values()))
            row = self._connection.execute(f"{statement} INTO {table} ({names}) VALUES ({marks})", values).lastrowid
        return row or 0

    def _update(self, table: str, row: int, /, **columns: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        with _readable(self._path):
            values = tuple(map(_encoded, columns.values()))
            self._connection.execute(f"UPDATE {table} SET {names} WHERE id = ?", (*values, row))


def version_of(package: str) -> str:
    """The version of an installed package; "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# ---- rows -----------------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Make SQLite's errors the one line that the user needs."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # a mistake of this program
    except sqlite3.Error as error:
        raise UsageProblem(f"{path}: {error}") from error


def _check_format(path: Path, number: int) -> None:
    if number != FORMAT:
        raise UsageProblem(f"{path}: format {number} is not one that this program reads ({FORMAT})")


def _encoded(value: Any) -> Any:
    """A value for a column: lists become JSON."""
    return json.dumps(value) if isinstance(value, tuple | list) else value


def _decoded(row: sqlite3.Row, kind: type[Any]) -> Any:
    """A row as a record of `kind`, which has the columns' names; a record's lists are JSON in the row."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        value = row[field.name]
        values[field.name] = json.loads(value) if _is_list(field.type) else value
    return msgspec.convert(values, kind, strict=False)


def _is_list(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _rows(connection: sqlite3.Connection, query: str, kind: type[Any]) -> tuple[Any, ...]:
    return tuple(_decoded(row, kind) for row in connection.execute(query))


def _findings(connection: sqlite3.Connection) -> Iterator[TriagedFinding]:
    sightings: dict[int, list[sqlite3.Row]] = {}
    for row in connection.execute("SELECT * FROM sightings ORDER BY worker"):
        sightings.setdefault(row["finding"], []).append(row)
    for row in connection.execute("SELECT * FROM findings ORDER BY id"):
        seen = sightings.get(row["id"], [])
        added = {
            "count": sum(one["count"] for one in seen),
            "last_seen": max((one["last_seen"] for one in seen), default=row["first_seen"]),
            **{f"seen_{name}": _union(seen, name) for name in ("orders", "environments", "switches")},
        }
        yield _decoded({**dict(row), **added}, TriagedFinding)  # type: ignore[arg-type] # a dict reads like a row


def _union(rows: Iterable[sqlite3.Row], column: str) -> str:
    return json.dumps(sorted({name for row in rows for name in json.loads(row[column])}))
