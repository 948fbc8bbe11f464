"""Who takes the alias: the rule, and every order in which two promotions at once can go."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence

import pytest

from pipelines.errors import DataError, InputError
from pipelines.registry.audit import AuditRecord, encode_record, make_record, parse_records
from pipelines.registry.gates import Standing, judge
from pipelines.registry.promote import Decision, compete, promote
from pipelines.registry.selection import best_on_val

ROWS = "ab" * 32


def standing(version: int, correct: int, rows: str = ROWS, total: int = 360) -> Standing:
    return Standing(str(version), correct, total, rows)


@pytest.mark.parametrize(
    ("correct", "moves", "reason"),
    [
        (341, True, "version 2 has 341 of 360 right (94.72%) against version 1 has 340 of 360 right (94.44%)"),
        (340, False, "a tie stays with version 1"),
        (339, False, "not better"),
    ],
)
def test_only_strictly_more_rows_right_move_the_alias(correct: int, moves: bool, reason: str) -> None:
    verdict = judge(standing(2, correct), standing(1, 340))
    assert verdict.moves is moves
    assert reason in verdict.reason
    assert "on the same 360 rows" in verdict.reason


def test_the_first_version_takes_the_alias_and_the_holder_keeps_it() -> None:
    assert judge(standing(1, 5), None).moves
    assert judge(standing(1, 5), None).reason == "nothing held the alias; version 1 has 5 of 360 right (1.39%)"
    assert judge(standing(1, 5), standing(1, 5)).reason == "version 1 holds the alias already"


def test_figures_on_other_rows_are_never_compared() -> None:
    with pytest.raises(ValueError, match="version 1 was measured on 360 rows cd"):
        judge(standing(2, 350), standing(1, 340, rows="cd" * 32))


def test_of_several_labels_the_mean_average_precision_decides() -> None:
    old, new = (
        Standing(str(n), correct, 360, ROWS, "map", score) for n, correct, score in ((1, 300, 0.7), (2, 9, 0.8))
    )
    verdict = judge(new, old)
    assert verdict.moves
    assert verdict.reason == (
        "version 2 has a mean average precision of 0.8000 against version 1 has a mean average precision of 0.7000"
        " on the same 360 rows"
    )
    assert not judge(old, new).moves
    assert not judge(Standing("3", 360, 360, ROWS, "map", 0.8), new).moves  # a tie, whatever rows are wholly right
    with pytest.raises(ValueError, match="version 1 was measured on 360 rows"):
        judge(new, standing(1, 340))
    record = make_record(
        alias="champion", action="gate", version="2", before="1", moves=True, reason="", standing=new, key="k"
    )
    (read,) = parse_records({record.tag: encode_record(record)})
    assert (read.metric, read.score, read.worth) == ("map", 0.8, 0.8)
    assert (
        "metric"
        not in make_record(
            alias="a", action="gate", version="2", before="1", moves=True, reason="", standing=standing(2, 3)
        ).to_json()
    )


def test_best_on_val() -> None:
    catalogs = {"train": {"best": {"val_top1": 0.9}}, "tune": {"best": {"val_top1": 0.95}}}
    assert best_on_val(catalogs) == "tune"
    assert best_on_val({"train": catalogs["tune"], "tune": catalogs["tune"]}) == "train"
    assert best_on_val({"a": {"best": {"val_map": 0.5}}, "b": {"best": {"val_map": 0.6}}}) == "b"
    words = r"the catalog of train has neither best\.val_top1 nor best\.val_map: nothing to choose by"
    with pytest.raises(InputError, match=words):
        best_on_val({"train": {"best": {}}})
    with pytest.raises(InputError, match="there is no finished training to choose from"):
        best_on_val({})


class MemoryBoard:
    """A registered model in memory. `turn` is called before every access: it may wait, count, or raise."""

    def __init__(self, holder: str = "", turn: Callable[[], None] = lambda: None) -> None:
        self.aliases = {"champion": holder} if holder else {}
        self.tags: dict[str, str] = {}
        self.history: list[str] = []
        self.turn = turn

    def read_alias(self, alias: str) -> str:
        self.turn()
        return self.aliases.get(alias, "")

    def set_alias(self, alias: str, version: str) -> None:
        self.turn()
        self.aliases[alias] = version
        self.history.append(version)

    def read_records(self) -> list[AuditRecord]:
        self.turn()
        return parse_records(self.tags)

    def write_record(self, record: AuditRecord) -> None:
        self.turn()
        self.tags[record.tag] = encode_record(record)


SCORES = {"1": 340, "2": 350, "3": 345}


def measure(version: str) -> Standing:
    return standing(int(version), SCORES[version])


def candidate(version: int) -> Standing:
    return standing(version, SCORES[str(version)])


def test_a_better_candidate_moves_the_alias_and_leaves_a_closed_record() -> None:
    board = MemoryBoard("1")
    decision = compete(board, "champion", candidate(2), measure)
    assert (decision.moved, decision.champion, decision.before) == (True, "2", "1")
    (record,) = board.read_records()
    assert (record.version, record.before, record.moves, record.is_open) == ("2", "1", True, False)
    assert record.reason == decision.reason


def test_a_worse_candidate_leaves_the_alias_and_a_record() -> None:
    board = MemoryBoard("2")
    decision = compete(board, "champion", candidate(3), measure)
    assert (decision.moved, decision.champion) == (False, "2")
    assert board.history == []
    assert [record.moves for record in board.read_records()] == [False]


def test_a_champion_that_cannot_be_measured_keeps_the_alias() -> None:
    def damaged(version: str) -> Standing:
        raise DataError("weights.safetensors has the hash 12; the registry names 34")

    board = MemoryBoard("1")
    decision = compete(board, "champion", candidate(2), damaged)
    assert not decision.moved
    assert board.aliases == {"champion": "1"}
    assert decision.reason == (
        "version 1 holds the alias and cannot be measured on the same rows: "
        "weights.safetensors has the hash 12; the registry names 34"
    )


def test_a_person_may_roll_back_and_later_gates_respect_it() -> None:
    board = MemoryBoard("1")
    compete(board, "champion", candidate(2), measure)
    decision = promote(board, "champion", "1", "2 fails on night images")
    assert (decision.moved, board.aliases["champion"]) == (True, "1")
    # Version 3 beats 1 but not 2: that 2 was once promoted does not bring it back.
    assert compete(board, "champion", candidate(3), measure).champion == "3"
    assert [record.action for record in board.read_records()] == ["gate", "promote", "gate"]
    assert board.read_records()[1].reason == "2 fails on night images"
    assert not any(record.is_open for record in board.read_records())


def test_a_killed_promotion_is_not_undone_by_a_worse_candidate() -> None:
    board = MemoryBoard("1")
    killed = make_record(
        alias="champion", action="gate", version="2", before="1", moves=True, reason="better", standing=candidate(2)
    )
    board.write_record(killed)  # the process died before it set the alias
    decision = compete(board, "champion", candidate(3), measure)
    assert (decision.moved, decision.champion) == (False, "2")
    assert decision.reason.endswith("; version 2 was promoted at the same time: better")
    assert not any(record.is_open for record in board.read_records())


def test_a_rollback_ends_promotions_that_were_cut_off() -> None:
    board = MemoryBoard("1")
    board.write_record(
        make_record(
            alias="champion", action="gate", version="2", before="1", moves=True, reason="x", standing=candidate(2)
        )
    )
    promote(board, "champion", "1", "stay")
    assert compete(board, "champion", candidate(3), measure).champion == "3"


@pytest.mark.parametrize("kill_at", range(1, 12))
def test_killed_at_any_access_and_run_again(kill_at: int) -> None:
    class Killed(BaseException):
        pass

    count = itertools.count(1)

    def turn() -> None:
        if next(count) == kill_at:
            raise Killed

    board = MemoryBoard("1", turn)
    with contextlib.suppress(Killed):
        compete(board, "champion", candidate(2), measure)
    board.turn = lambda: None
    assert board.aliases["champion"] in ("1", "2")
    assert compete(board, "champion", candidate(2), measure).champion == "2"
    assert not any(record.is_open for record in board.read_records())


class Schedule:
    """Lets threads access the board one at a time, in a given order of names; the rest go as they come."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order = list(order)
        self._finished: set[str] = set()
        self._turns = threading.Condition()

    def wait_for(self, name: str) -> None:
        with self._turns:
            self._turns.wait_for(lambda: self._is_next(name), timeout=10)
            if self._order:
                self._order.pop(0)
            self._turns.notify_all()

    def finish(self, name: str) -> None:
        with self._turns:
            self._finished.add(name)
            self._turns.notify_all()

    def _is_next(self, name: str) -> bool:
        while self._order and self._order[0] in self._finished:
            self._order.pop(0)
        return not self._order or self._order[0] == name


def run_together(order: Sequence[str], jobs: dict[str, Callable[[], object]], board: MemoryBoard) -> None:
    schedule = Schedule(order)
    board.turn = lambda: schedule.wait_for(threading.current_thread().name)
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            jobs[name]()
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)
        finally:
            schedule.finish(name)

    threads = [threading.Thread(target=work, args=(name,), name=name) for name in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    board.turn = lambda: None
    assert not failures


def orders(first: int, second: int) -> list[str]:
    """Return every interleaving of `first` accesses of A with `second` of B."""
    length = first + second
    return [
        "".join("A" if place in places else "B" for place in range(length))
        for places in map(set, itertools.combinations(range(length), first))
    ]


def test_two_promotions_at_once_end_on_the_better_version_in_every_order() -> None:
    # Eight accesses lead from the first look to the settled record; what follows cannot move the alias.
    for order in orders(8, 8)[::9]:
        board = MemoryBoard("1")
        decisions: dict[str, Decision] = {}

        def job(name: str, version: int, board: MemoryBoard = board, out: dict[str, Decision] = decisions) -> None:
            out[name] = compete(board, "champion", candidate(version), measure)

        run_together(order, {"A": lambda job=job: job("A", 2), "B": lambda job=job: job("B", 3)}, board)  # type: ignore[misc]
        assert board.aliases["champion"] == "2", order
        records = board.read_records()
        assert {record.version for record in records} == {"2", "3"}, order
        assert not any(record.is_open for record in records), order
        assert decisions["A"].champion == "2", order
        assert decisions["B"].moved is (decisions["B"].champion == "3"), order


def test_a_person_and_a_gate_at_once_leave_a_whole_log() -> None:
    for order in orders(5, 8)[::3]:
        board = MemoryBoard("2")
        jobs = {
            "A": lambda board=board: promote(board, "champion", "1", "rollback"),
            "B": lambda board=board: compete(board, "champion", candidate(3), measure),
        }
        run_together(order, jobs, board)  # type: ignore[arg-type]
        # Either the gate came first (3 is worse than 2: no move) or it met version 1 and beat it, or the person won.
        assert board.aliases["champion"] in ("1", "3"), order
        assert {record.action for record in board.read_records()} == {"gate", "promote"}
        assert not any(record.is_open for record in board.read_records()), order


def test_records_survive_their_tags_and_foreign_tags_are_left_out() -> None:
    record = make_record(
        alias="champion", action="gate", version="2", before="", moves=True, reason="r", standing=candidate(2)
    )
    tags = {record.tag: encode_record(record), "resnet.audit.broken": "{", "resnet.audit.other": "[1]", "team": "x"}
    assert parse_records(tags) == [record]


def test_a_reason_holds_no_secret_and_fits_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "correct-horse-battery")
    record = make_record(
        alias="champion",
        action="promote",
        version="2",
        before="1",
        moves=True,
        reason="correct-horse-battery " + "x" * 9000,
    )
    assert record.reason.startswith("[redacted] x")
    assert len(encode_record(record)) < 5000
