"""The run log against a store that comes and goes, without MLflow's own storage."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from pipelines import tracking
from pipelines.errors import RegistryError, Superseded
from pipelines.tracking import RUN_KEY_TAG, RunLog, TrackingConfig
from pipelines.tracking_answers import NotOfferedError
from pipelines.tracking_records import Place, Record


class Refused(Exception):
    def __init__(self, error_code: str) -> None:
        super().__init__(f"refused: {error_code}")
        self.error_code = error_code


class FakeStore:
    """What MlflowClient offers, in memory; `fault` is raised by every call while it is set."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.lose_answers = False
        self.runs: dict[str, SimpleNamespace] = {}
        self.history: dict[tuple[str, str], list[tuple[int, float, int]]] = defaultdict(list)
        self.num_calls = 0

    def call(self) -> None:
        self.num_calls += 1
        if self.fault is not None:
            raise self.fault

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str, start_time: int | None = None) -> Any:
        self.call()
        run_id = f"run-{len(self.runs)}"
        info = SimpleNamespace(
            run_id=run_id,
            lifecycle_stage="active",
            experiment_id=experiment_id,
            status="RUNNING",
            start_time=start_time,
            end_time=None,
        )
        self.runs[run_id] = SimpleNamespace(info=info, data=SimpleNamespace(params={}, tags=dict(tags)), name=run_name)
        return self.runs[run_id]

    def get_run(self, run_id: str) -> Any:
        self.call()
        if run_id not in self.runs:
            raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        self.call()
        wanted = filter_string.split("'")[1]
        return [run for run in self.runs.values() if run.data.tags.get(RUN_KEY_TAG) == wanted]

    def update_run(self, run_id: str, status: str) -> None:
        self.call()
        self.runs[run_id].info.status = status

    def set_terminated(self, run_id: str, status: str, end_time: int | None = None) -> None:
        self.update_run(run_id, status)
        self.runs[run_id].info.end_time = end_time or int(time.time() * 1000)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].data.tags[key] = value

    def log_batch(
        self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), synchronous: bool | None = None
    ) -> None:
        self.call()
        for metric in metrics:
            self.history[run_id, metric.key].append((metric.step, metric.value, metric.timestamp))
        self.runs[run_id].data.params.update({param.key: param.value for param in params})
        self.runs[run_id].data.tags.update({tag.key: tag.value for tag in tags})
        if self.lose_answers:
            self.fault = ConnectionError("answer lost")
            raise self.fault

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        self.call()
        points = self.history[run_id, key]
        return [SimpleNamespace(step=step, value=value, timestamp=stamp) for step, value, stamp in points]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    fake = FakeStore()

    def open_experiment(client: FakeStore, uri: str, name: str) -> str:
        client.call()
        return "1"

    monkeypatch.setattr(tracking, "open_client", lambda uri: fake)
    monkeypatch.setattr(tracking, "open_experiment", open_experiment)
    return fake


SERVER = TrackingConfig(uri="http://mlflow:5000")


def open_log(**changes: Any) -> RunLog:
    return RunLog.open(SERVER, **{"run_name": "r", **changes})


def steps(store: FakeStore, run_id: str, name: str) -> list[int]:
    return [step for step, _, _ in store.history[run_id, name]]


def test_outage_in_the_middle_loses_nothing_and_warns_once(store: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log()
    log.log_metrics({"loss": 1.0}, 0)
    store.fault = ConnectionError("refused")
    with caplog.at_level(logging.WARNING):
        for step in range(1, 50):
            log.log_metrics({"loss": 1.0}, step)
    calls_while_away = store.num_calls
    assert log.logged_steps("loss") == set(range(1, 50))  # those waiting; the server cannot be asked
    store.fault = None
    log.end()
    assert steps(store, log.run_id, "loss") == list(range(50))
    assert store.runs[log.run_id].info.status == "FINISHED"
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        "MLflow at http://mlflow:5000 does not answer (refused); run 'r' goes on, its records are kept and sent later."
    ]
    assert calls_while_away < 10  # the pause keeps a run from waiting for a dead server at every step


def test_server_away_at_the_start_gives_the_run_its_id_later(store: FakeStore) -> None:
    store.fault = ConnectionError("refused")
    log = open_log()
    assert log.run_id == ""
    log.log_params({"lr": 0.1})
    log.log_metrics({"loss": 1.0}, 0)
    store.fault = None
    log.end()
    assert log.run_id == "run-0"
    assert store.runs["run-0"].data.params == {"lr": "0.1"}
    assert steps(store, "run-0", "loss") == [0]


def test_records_are_sent_again_after_the_pause(store: FakeStore) -> None:
    log = open_log()
    store.fault = ConnectionError("refused")
    log.pause_s = 0.0
    log.log_metrics({"loss": 1.0}, 0)
    store.fault = None
    log.log_metrics({"loss": 2.0}, 1)
    assert steps(store, log.run_id, "loss") == [0, 1]


def test_lost_answer_does_not_double_a_step(store: FakeStore) -> None:
    log = open_log()
    store.lose_answers = True
    log.log_metrics({"loss": 1.0}, 0)
    store.lose_answers, store.fault = False, None
    log.end()
    assert steps(store, log.run_id, "loss") == [0]


def test_still_away_at_the_end_says_what_is_missing(store: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log()
    store.fault = ConnectionError("refused")
    log.log_metrics({"loss": 1.0}, 0)
    log.end()
    assert caplog.records[-1].getMessage() == (
        "2 records of run 'r' were not delivered: MLflow at http://mlflow:5000 is away, or too slow. The output folder"
        " holds every figure; going on with the run sends those of a training, and `resnet track` when it or a sweep is"
        " done."
    )


@pytest.mark.parametrize("patience_s", [0.0, 0.4])
def test_a_slow_server_holds_the_end_of_a_run_up_for_a_while_only_and_knows_that_it_has_ended(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, patience_s: float
) -> None:
    log = open_log(patience_s=patience_s)
    store.fault = ConnectionError("refused")
    for step in range(50):
        log.log_metrics({"loss": 1.0}, step)
    store.fault = None
    monkeypatch.setattr(tracking, "_LONGEST_CALL_S", 0.2)
    for record in log._queue:
        record.send = lambda *how, send=record.send: (time.sleep(0.05), send(*how))
    began_s = time.monotonic()
    log.end()
    assert time.monotonic() - began_s < 1.5
    assert store.runs[log.run_id].info.status == "FINISHED"
    assert "records of run 'r' were not delivered: MLflow at http://mlflow:5000 is away, or too slow." in caplog.text


def test_a_refused_record_is_dropped_and_the_rest_arrive(store: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log()
    store.fault = Refused("INVALID_PARAMETER_VALUE")
    log.log_metrics({"loss": 1.0}, 0)
    store.fault = None
    log.log_metrics({"loss": 1.0}, 1)
    assert steps(store, log.run_id, "loss") == [1]
    assert caplog.records[0].getMessage() == ("MLflow refused metrics of run 'r': refused: INVALID_PARAMETER_VALUE")


def test_what_a_server_does_not_offer_is_said_once_and_keeps_nothing_back(
    store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    def send(place: Place, tried: bool) -> None:
        raise NotOfferedError("this server keeps no logged models")

    log = open_log()
    for step in range(3):
        log.put(Record("models", send))
        log.log_metrics({"loss": 1.0}, step)
    log.end()
    assert steps(store, log.run_id, "loss") == [0, 1, 2]
    assert log.num_waiting == 0
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow refused models of run 'r': this server keeps no logged models"
    ]


@pytest.mark.parametrize("is_background", [False, True])
def test_what_comes_after_the_end_is_refused(
    store: FakeStore, caplog: pytest.LogCaptureFixture, is_background: bool
) -> None:
    log = open_log(is_background=is_background)
    log.log_metrics({"loss": 1.0}, 0)
    log.end()
    log.log_metrics({"loss": 1.0}, 1)
    assert (log.num_waiting, steps(store, log.run_id, "loss")) == (0, [0])
    assert [record.getMessage() for record in caplog.records] == ["metrics of run 'r' came after its end: not recorded"]


def test_refused_credentials_stop_the_run_before_work(store: FakeStore) -> None:
    store.fault = Refused("PERMISSION_DENIED")
    with pytest.raises(RegistryError) as caught:
        open_log()
    assert str(caught.value) == (
        "RegistryError: MLflow cannot open a run: refused: PERMISSION_DENIED\n"
        "  where: http://mlflow:5000\n"
        "  mend:  check tracking.uri and its credentials, or run with tracking.enabled=false"
    )


def test_run_is_found_again_by_its_key(store: FakeStore) -> None:
    first = open_log(tags={RUN_KEY_TAG: "abc"})
    again = open_log(tags={RUN_KEY_TAG: "abc"})
    other = open_log(tags={RUN_KEY_TAG: "def"})
    assert again.run_id == first.run_id
    assert other.run_id != first.run_id


def test_changed_parameter_on_resume_becomes_a_tag(store: FakeStore) -> None:
    first = open_log()
    first.log_params({"num_workers": 1, "optimizer": {"lr": 0.1}})
    again = open_log(run_id=first.run_id)
    again.log_params({"num_workers": 2, "optimizer": {"lr": 0.1}})
    assert store.runs[first.run_id].data.params == {"num_workers": "1", "optimizer.lr": "0.1"}
    assert store.runs[first.run_id].data.tags == {"resumed.num_workers": "2"}


def test_secrets_are_redacted_in_params_tags_and_name(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "correct-horse-battery")
    log = open_log(run_name="correct-horse-battery", tags={"uri": "http://u:pw12345@h/x"}, parent_run_id="p")
    log.log_params({"hub": {"token": "abcdef"}, "note": "see correct-horse-battery"})
    run = store.runs[log.run_id]
    everything = f"{run.name} {run.data.params} {run.data.tags}"
    assert not any(secret in everything for secret in ("correct-horse", "pw12345", "abcdef"))
    assert run.data.tags["mlflow.parentRunId"] == "p"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("x"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Superseded("another command trains"), "RUNNING"),
    ],
)
def test_context_manager_ends_the_run(store: FakeStore, error: BaseException | None, status: str) -> None:
    log = open_log()
    try:
        with log:
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt, Superseded):
        pass
    assert store.runs[log.run_id].info.status == status


@pytest.mark.parametrize("error", [ValueError("refused"), KeyboardInterrupt()])
def test_a_command_that_ends_before_its_run_was_begun_leaves_the_run_as_it_is(
    store: FakeStore, error: BaseException
) -> None:
    running = open_log()

    def be_refused() -> None:
        with open_log(is_deferred=True, run_id=running.run_id) as log:
            log.log_params({"num_workers": 64})
            raise error

    with pytest.raises(type(error)):
        be_refused()
    run = store.runs[running.run_id]
    assert (run.info.status, run.data.params, run.data.tags) == ("RUNNING", {}, {})


def test_work_that_was_done_before_is_told_with_its_own_times(store: FakeStore) -> None:
    for _ in range(2):  # told once more it stays as it is
        with open_log(span_s=(1000.0, 2000.0), tags={RUN_KEY_TAG: "k"}) as log:
            log.log_metrics({"loss": 1.0}, 0)
    info = store.runs[log.run_id].info
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", 1_000_000, 2_000_000)
    info.end_time = 3_000_000
    with pytest.raises(ValueError, match="x"), open_log(span_s=(1000.0, 2000.0), tags={RUN_KEY_TAG: "k"}):
        raise ValueError("x")
    assert (info.status, info.end_time) == ("FINISHED", 3_000_000)
    info.status = "KILLED"  # it was gone on with while MLflow was away
    with open_log(span_s=(1000.0, 2000.0), tags={RUN_KEY_TAG: "k"}):
        pass
    assert (info.status, info.end_time) == ("FINISHED", 2_000_000)


def test_a_call_that_hangs_holds_up_nobody_who_calls_the_work_off(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_LAST_CALL_S", 0.2)
    log, is_free = open_log(is_background=True), threading.Event()
    log.put(Record("a call that hangs", lambda place, tried: (is_free.wait(20), None)[1]))
    began_s = time.monotonic()
    log.end("KILLED")
    assert time.monotonic() - began_s < 3
    is_free.set()


def test_telling_that_is_refused_at_its_start_waits_for_nothing(store: FakeStore) -> None:
    store.fault = Refused("PERMISSION_DENIED")
    began_s = time.monotonic()
    log = open_log(is_deferred=True, span_s=(1000.0, 2000.0), patience_s=30.0)
    with pytest.raises(RegistryError), log:
        log.begin()
    assert time.monotonic() - began_s < 5


def test_what_a_store_refuses_that_was_met_before_is_an_outage(store: FakeStore) -> None:
    store.fault = Refused("PERMISSION_DENIED")
    log = open_log(is_met=True)
    log.log_metrics({"loss": 1.0}, 0)
    store.fault = None
    log.end()
    assert steps(store, log.run_id, "loss") == [0]


def test_tracking_turned_off_touches_nothing(store: FakeStore) -> None:
    with RunLog.open(TrackingConfig(enabled=False), run_name="r") as log:
        log.log_params({"a": 1})
        log.log_metrics({"loss": 1.0}, 0)
        log.log_file("x.txt", b"x")
        assert log.logged_steps("loss") == set()
    assert (log.run_id, store.num_calls) == ("", 0)


def test_a_metric_that_is_no_number_is_the_callers_bug(store: FakeStore) -> None:
    with pytest.raises(ValueError, match="could not convert string to float"):
        open_log().log_metrics({"loss": "high"}, 0)  # type: ignore[dict-item]


def test_adding_to_a_finished_run_leaves_its_status(store: FakeStore) -> None:
    with open_log() as log:
        log.log_metrics({"loss": 1.0}, 0)
    store.runs[log.run_id].info.status = "FAILED"
    with open_log(run_id=log.run_id, attach=True) as added:
        added.log_metrics({"test_top1": 0.9}, 0)
    assert steps(store, log.run_id, "test_top1") == [0]
    assert store.runs[log.run_id].info.status == "FAILED"


def test_adding_to_a_run_that_is_gone_makes_no_new_one(store: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
    with open_log(run_id="gone", attach=True) as log:
        log.log_metrics({"test_top1": 0.9}, 0)
    assert store.runs == {}
    assert caplog.records[0].getMessage() == ("run gone is no longer in http://mlflow:5000; nothing is added to it")
    assert len(caplog.records) == 1


def test_ending_delivers_so_that_a_late_run_id_can_be_kept(store: FakeStore) -> None:
    store.fault = ConnectionError("refused")
    with open_log() as log:
        log.log_metrics({"loss": 1.0}, 0)
        store.fault = None
        log.end()
        assert log.run_id == "run-0"
    assert store.runs["run-0"].info.status == "FINISHED"
    assert steps(store, "run-0", "loss") == [0]


def test_a_deferred_run_is_opened_by_begin_and_not_before(store: FakeStore) -> None:
    log = open_log(is_deferred=True)
    log.log_params({"lr": 0.1})
    assert (log.run_id, store.num_calls) == ("", 0)
    log.begin()
    assert store.runs[log.run_id].data.params == {"lr": "0.1"}
    log.log_metrics({"loss": 1.0}, 0)
    log.end()
    assert steps(store, log.run_id, "loss") == [0]


def test_a_deferred_run_is_refused_by_begin(store: FakeStore) -> None:
    store.fault = Refused("PERMISSION_DENIED")
    log = open_log(is_deferred=True)
    with pytest.raises(RegistryError, match="MLflow cannot open a run"):
        log.begin()


def test_nobody_waits_for_a_slow_server_in_the_background(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(is_background=True)
    log_batch = store.log_batch

    def slowly(*arguments: Any, **options: Any) -> None:
        time.sleep(0.2)
        log_batch(*arguments, **options)

    monkeypatch.setattr(store, "log_batch", slowly)
    started_s = time.monotonic()
    for step in range(10):
        log.log_metrics({"loss": 1.0}, step)
    assert time.monotonic() - started_s < 0.2
    log.end()
    assert steps(store, log.run_id, "loss") == list(range(10))


def test_what_a_resumed_run_holds_is_not_doubled_when_the_server_was_away_at_its_start(store: FakeStore) -> None:
    first = open_log(tags={RUN_KEY_TAG: "abc"})
    first.log_metrics({"loss": 1.0}, 0)
    store.fault = ConnectionError("refused")
    again = open_log(tags={RUN_KEY_TAG: "abc"})
    assert again.logged_steps("loss") == set()  # nobody can be asked
    store.fault = None
    for step in (0, 1):
        again.log_metrics({"loss": 1.0}, step)
    again.end()
    assert again.run_id == first.run_id
    assert steps(store, first.run_id, "loss") == [0, 1]


def test_a_server_that_comes_back_within_the_patience_gets_everything(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(is_background=True, patience_s=60.0)
    store.fault = ConnectionError("refused")
    log.log_metrics({"loss": 1.0}, 0)
    slept: list[float] = []

    def come_back(seconds: float) -> None:
        slept.append(seconds)
        store.fault = None if len(slept) > 2 else store.fault

    monkeypatch.setattr(tracking.time, "sleep", come_back)
    log.end()
    assert len(slept) == 3
    assert log.num_waiting == 0
    assert store.runs[log.run_id].info.status == "FINISHED"
