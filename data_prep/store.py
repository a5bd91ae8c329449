"""A run's rows in one SQLite file: each record once, by its key, whatever is killed when; exported sorted, so that two runs compare byte for byte."""

from __future__ import annotations

import dataclasses
import json
import threading
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from etils import epath

from data_prep.cache import connect
from data_prep.pipeline import dumps, loads
from data_prep.schema import Record, Triplet

if TYPE_CHECKING:
    from data_prep.stages.material import Questions

_TABLES = """
CREATE TABLE IF NOT EXISTS admitted (number INTEGER PRIMARY KEY, key TEXT UNIQUE, triplet TEXT);
CREATE TABLE IF NOT EXISTS turned_away (number INTEGER PRIMARY KEY, id TEXT, source TEXT, reason TEXT, detail TEXT);
CREATE TABLE IF NOT EXISTS records (
  key TEXT PRIMARY KEY, id TEXT, source TEXT, stage TEXT, reason TEXT, quadrant TEXT, cost REAL, record TEXT, row TEXT
);
CREATE INDEX IF NOT EXISTS by_reason ON records (stage, reason, quadrant);
CREATE TABLE IF NOT EXISTS material (number INTEGER PRIMARY KEY, questions INTEGER, record TEXT);
CREATE TABLE IF NOT EXISTS dropped (number INTEGER, reason TEXT, text TEXT);
CREATE TABLE IF NOT EXISTS unmade (number INTEGER PRIMARY KEY, failure TEXT);
CREATE TABLE IF NOT EXISTS refused (key TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS verdicts (
  key TEXT, stage TEXT, reviewer TEXT, verdict TEXT, note TEXT, PRIMARY KEY (key, stage, reviewer)
);
"""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A record with a verdict, as it is stored: `row` is the trajectory's line, empty when it was rejected."""

    record: Record
    text: str
    row: str


class Store:
    """`WORKDIR/rows.sqlite`."""

    def __init__(self, workdir: epath.PathLike):
        self.workdir = epath.Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._db = connect(self.workdir / "rows.sqlite")
        self._db.executescript(_TABLES)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    # ---- stage 0: what the questions were made of

    def begin_material(self) -> None:
        """Forgets what stage 0 made before: it comes again, from stored replies."""
        with self._lock:
            for table in ("material", "unmade", "dropped", "refused"):
                self._db.execute(f"DELETE FROM {table}")

    def put_material(self, number: int, made: Questions) -> None:
        """What became of the source's video `number`; refused questions are kept as records, outside of what is admitted."""
        self.put(Finished(record, dumps(record), "") for record in made.refused)
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT OR REPLACE INTO material VALUES (?, ?, ?)",
                (number, len(made.triplets), dumps(made.record)),
            )
            self._db.executemany(
                "INSERT INTO dropped VALUES (?, ?, ?)",
                [(number, reason, text) for reason, text in made.dropped],
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO refused VALUES (?)", [(r.key,) for r in made.refused]
            )
            self._db.execute("COMMIT")

    def put_unmade(self, number: int, failure: str) -> None:
        """The source's video `number` gave no questions in this run, as the endpoint or its storage failed."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO unmade VALUES (?, ?)", (number, failure))

    # ---- admission: what goes into the stages

    def admit(self, entries: Iterable[tuple[str, Triplet, str, str]]) -> None:
        """Replaces what is admitted, in one transaction: (key, triplet, reason, detail); a reason turns the triplet away."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute("DELETE FROM admitted")
                self._db.execute("DELETE FROM turned_away")
                for number, (key, triplet, reason, detail) in enumerate(entries):
                    if not reason:
                        text = json.dumps(triplet.to_json(), ensure_ascii=False)
                        cursor = self._db.execute(
                            "INSERT OR IGNORE INTO admitted VALUES (?, ?, ?)", (number, key, text)
                        )
                        if cursor.rowcount:
                            continue
                        reason, detail = "repeated", "the same triplet again"
                    self._db.execute(
                        "INSERT INTO turned_away VALUES (?, ?, ?, ?, ?)",
                        (number, triplet.id, triplet.source, reason, detail),
                    )
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def counts(self) -> tuple[int, int, int]:
        """(admitted, of them finished, turned away)."""
        one = lambda query: self._one(query)[0]
        return (
            one("SELECT COUNT(*) FROM admitted"),
            one("SELECT COUNT(*) FROM admitted JOIN records USING (key)"),
            one("SELECT COUNT(*) FROM turned_away"),
        )

    def todo(self, page: int = 512) -> Iterator[tuple[str, Triplet]]:
        """Admitted triplets without a record, in order, read page by page."""
        last = -1
        while True:
            with self._lock:
                rows = self._db.execute(
                    "SELECT number, key, triplet FROM admitted WHERE number > ? "
                    "AND NOT EXISTS (SELECT 1 FROM records WHERE records.key = admitted.key) "
                    "ORDER BY number LIMIT ?",
                    (last, page),
                ).fetchall()
            if not rows:
                return
            for number, key, text in rows:
                last = number
                yield key, Triplet.from_json(json.loads(text))

    # ---- records

    def put(self, finished: Iterable[Finished]) -> None:
        """Stores records; one that is there already stays as it is."""
        rows = [
            (
                f.record.key,
                f.record.triplet.id,
                f.record.triplet.source,
                f.record.rejection.stage if f.record.rejection else "",
                f.record.rejection.reason if f.record.rejection else "",
                f.record.quadrant or "",
                f.record.cost,
                f.text,
                f.row,
            )
            for f in finished
        ]
        with self._lock:
            self._db.executemany(
                "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    def records(self, where: str = "1", parameters: tuple = ()) -> Iterator[Record]:
        """Records of the admitted triplets, by key. `where` is SQL of this module's callers, never of users."""
        for (text,) in self.rows(f"SELECT record FROM records JOIN admitted USING (key) WHERE {where} ORDER BY key", parameters):  # fmt: skip
            yield loads(text)

    def record(self, key: str) -> Record:
        """One record, admitted or not.

        Raises:
          KeyError: it is not there.
        """
        found = self._one("SELECT record FROM records WHERE key = ?", (key,))
        if found is None:
            raise KeyError(f"no record {key!r}")
        return loads(found[0])

    def rows(self, query: str, parameters: tuple = ()) -> Iterator[tuple]:
        """Rows of a query, streamed through a connection of their own."""
        db = connect(self.workdir / "rows.sqlite")
        try:
            yield from db.execute(query, parameters)
        finally:
            db.close()

    def _one(self, query: str, parameters: tuple = ()) -> tuple:
        with self._lock:
            return self._db.execute(query, parameters).fetchone()

    # ---- verdicts of people

    def judge(self, *, key: str, stage: str, reviewer: str, verdict: str, note: str) -> None:
        """Stores a reviewer's verdict on a stage of a record; a second one replaces the first.

        Raises:
          ValueError: no such record, or an unknown verdict.
        """
        if verdict not in ("accept", "reject"):
            raise ValueError(f"verdict is {verdict!r}; accept or reject")
        if self._one("SELECT 1 FROM records WHERE key = ?", (key,)) is None:
            raise ValueError(f"no record {key!r}")
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)",
                (key, stage, reviewer, verdict, note[:2000]),
            )

    # ---- export

    def export(self) -> dict[str, int]:
        """Writes the accepted rows, RL rows and rejected records; each file appears whole. Returns lines by file name."""
        from data_prep.assemble import rl_row

        accepted = "SELECT row FROM records JOIN admitted USING (key) WHERE stage = '' ORDER BY key"
        written = {"trajectories.jsonl": self._write("trajectories.jsonl", (r for (r,) in self.rows(accepted)))}  # fmt: skip
        rl = (json.dumps(rl_row(r), ensure_ascii=False) for r in self.records("stage = ''"))
        written["rl.jsonl"] = self._write("rl.jsonl", rl)
        ended = (
            "SELECT record FROM records JOIN admitted USING (key) WHERE stage != '' ORDER BY key"
        )
        written["rejected.jsonl"] = self._write("rejected.jsonl", (r for (r,) in self.rows(ended)))
        return written

    def _write(self, name: str, lines: Iterable[str]) -> int:
        return write_lines(self.workdir / name, lines)


def write_lines(path: epath.Path, lines: Iterable[str]) -> int:
    """Writes a file that appears when it is whole; returns the number of lines."""
    part = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    count = 0
    with part.open("w") as out:
        for text in lines:
            out.write(text + "\n")
            count += 1
    part.replace(path)
    return count
