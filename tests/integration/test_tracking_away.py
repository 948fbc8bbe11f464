"""A training whose MLflow server is away, broken or slow: no step waits, and every figure arrives once."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Storage
from pipelines.tracking import RunLog, TrackingConfig, open_client
from pipelines.tracking_models import ModelSet, RankedModel
from pipelines.train import stage
from pipelines.train.checkpoint import committed_steps
from pipelines.train.deliver import deliver
from pipelines.train.records import EpochRecord
from pipelines.train.samples import SampleReader
from pipelines.train.step import Step
from tests.flaky_wire import FlakyWire, Mode, flaky_wire
from tests.integration.test_tracking_gateway import MEND, NO_ROUTE, gateway_to, open_log
from tests.integration.test_tracking_store import _server
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

STEP_S = 0.1
"""Each step of the tiny network is made as long as one of a real one."""
END_STEPS = 100
"""Steps from the start of an outage to the end of a run that ends in it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _server(port, tmp_path_factory.mktemp("server")):
        yield port


class Outage:
    """A training during which the wire to the server is disturbed, and when each of its steps began."""

    def __init__(self, wire: FlakyWire, mode: Mode, seconds: float) -> None:
        self.wire, self.mode, self.seconds = wire, mode, seconds
        self.starts_s: list[float] = []
        self.began_s = self.ended_s = float("inf")

    def begin(self) -> None:
        if self.began_s < float("inf"):
            return
        self.wire.mode, self.began_s = self.mode, time.perf_counter()
        threading.Timer(self.seconds, self._end).start()

    def _end(self) -> None:
        self.wire.mode, self.ended_s = "whole", time.perf_counter()

    def steps(self) -> tuple[list[float], list[float]]:
        """Return how long each step took while the server was away, and each of the others."""
        away: list[float] = []
        there: list[float] = []
        for before, after in pairwise(self.starts_s):
            (away if self.began_s <= before < self.ended_s else there).append(after - before)
        return away, there

    def ratio(self) -> float:
        """Mean time of a step while the server was away, over that of the others; no number where one side has none."""
        away, there = self.steps()
        return (sum(away) / len(away)) / (sum(there) / len(there)) if away and there else math.nan


def train_through(
    server: int,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    mode: Mode,
    when: str,
    seconds: float,
    epochs: int,
) -> dict[str, Any]:
    dataset = write_dataset(place / "dataset")
    take = Step.__call__
    with flaky_wire(server) as wire:
        outage = Outage(wire, mode, seconds)
        begin_at = {"start": 0, "middle": 4 * epochs // 8, "end": 4 * epochs - END_STEPS}[when]

        def stepping(self: Step, *arguments: Any) -> Any:
            outage.starts_s.append(time.perf_counter())
            if len(outage.starts_s) >= begin_at:
                outage.begin()
            time.sleep(STEP_S)
            return take(self, *arguments)

        monkeypatch.setattr(Step, "__call__", stepping)
        if when == "start":
            outage.begin()
        tracking = {"uri": f"http://127.0.0.1:{wire.port}", "experiment": f"{mode}-{when}-{seconds:g}"}
        config = make_config(dataset, epochs=epochs, local=True, out=str(place / "run"), tracking=tracking)
        started_s = time.perf_counter()
        stage.run(config)
        took_s = time.perf_counter() - started_s
        found = look_at(server, tracking["experiment"], epochs)
        return {"mode": mode, "when": when, "away_s": seconds, "step_ratio": round(outage.ratio(), 3),
                "fewest_steps": min(map(len, outage.steps())), "took_s": round(took_s, 1), **found}  # fmt: skip


def look_at(server: int, experiment: str, epochs: int) -> dict[str, Any]:
    """Return what the server holds of the one run: its status, figures that are missing or there twice, its models."""
    client = open_client(f"http://127.0.0.1:{server}")
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    lost = doubled = 0
    by_epoch = ("train_loss", "val_loss", "val_top1", "images_per_s", "lr")
    by_step = ("step_loss", "step_lr", "step_images_per_s")
    expected = {**dict.fromkeys(by_epoch, epochs), **dict.fromkeys(by_step, 4 * epochs)}
    for name, last in expected.items():
        steps = Counter(point.step for point in client.get_metric_history(run.info.run_id, name))
        lost += len(set(range(1, last + 1)) - set(steps))
        doubled += sum(count - 1 for count in steps.values())
    folder = Storage.open(run.data.tags["out"])
    cores = "system/worker_0/cpu_cores_used"
    told = Counter(point.step for point in client.get_metric_history(run.info.run_id, cores))
    started_s = json.loads(folder.read("run.json"))["started_s"]
    lost += len({point.step for point in SampleReader(folder, started_s).read_new()} - set(told)) + (not told)
    doubled += sum(count - 1 for count in told.values())
    best = client.get_metric_history(run.info.run_id, "best_epoch")
    models = client.search_logged_models([found.experiment_id])
    is_ranked = sorted(int(model.tags["resnet.rank"]) for model in models) == list(range(1, len(models) + 1))
    kept = sorted(int(model.params["step"]) for model in models if str(model.status) == "READY")
    return {
        "status": run.info.status,
        "lost": lost,
        "doubled": doubled + len(best) - 1,
        "figures": len(client.list_artifacts(run.info.run_id, "figures")),
        "models": is_ranked and kept == committed_steps(folder) and len(run.outputs.model_outputs) == len(kept),
    }


WHOLE = {"status": "FINISHED", "lost": 0, "doubled": 0, "figures": 2, "models": True}


def assert_whole(found: dict[str, Any]) -> None:
    print("\n" + json.dumps(found))
    assert {name: found[name] for name in WHOLE} == WHOLE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "when"),
    [("cut", "start"), ("cut", "middle"), ("cut", "end"), ("500", "middle"), ("slow", "middle")],
)
def test_a_minute_without_the_server_costs_nothing(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, when: str
) -> None:
    epochs = 80 if when == "end" else 180  # 720 steps take 72 s and more, the outage 60 s of them
    found = train_through(server, tmp_path, monkeypatch, mode=mode, when=when, seconds=60, epochs=epochs)
    assert_whole(found)
    assert found["fewest_steps"] >= 40  # on either side, else the ratio says nothing
    assert found["step_ratio"] <= 1.05


def test_steps_on_one_side_alone_are_no_ratio() -> None:
    outage = Outage(FlakyWire(0), "cut", 1.0)
    outage.starts_s = [1.0, 2.0, 3.0]
    assert math.isnan(outage.ratio())  # never away
    outage.began_s, outage.ended_s = 0.0, 9.0
    assert math.isnan(outage.ratio())  # never there
    outage.ended_s = 1.5
    assert outage.ratio() == 1.0


def test_an_outage_of_seconds(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking._FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr("pipelines.train.teller._LOOK_S", 0.5)
    monkeypatch.setattr("pipelines.train.teller._LIST_S", 0.5)  # models come and go while the server does
    assert_whole(train_through(server, tmp_path, monkeypatch, mode="500", when="middle", seconds=4, epochs=16))


def test_a_server_that_stays_away_gets_everything_later_and_once(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.train.teller.PATIENCE_S", 0.0)
    dataset = write_dataset(tmp_path / "dataset")
    with flaky_wire(server) as wire:
        tracking = {"uri": f"http://127.0.0.1:{wire.port}", "experiment": "later"}
        config = make_config(dataset, epochs=6, local=True, out=str(tmp_path / "run"), tracking=tracking)
        tell_epoch = stage.Teller.tell_epoch

        def cut_after_three(self: stage.Teller, record: EpochRecord) -> bool:
            if record.epoch == 4:
                deadline_s = time.monotonic() + 60
                while self._log.num_waiting and time.monotonic() < deadline_s:
                    time.sleep(0.05)
                wire.mode = "cut"
            return tell_epoch(self, record)

        with monkeypatch.context() as patch:
            patch.setattr(stage.Teller, "tell_epoch", cut_after_three)
            stage.run(config)
        assert Storage.open(config.out).exists("_catalog.json")
        wire.mode = "whole"
        for sent in (3, 0):
            assert deliver(config.out, TrackingConfig(**tracking)).figures["epochs_sent"] == sent
    assert look_at(server, "later", 6) == WHOLE


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "pipelines.tracking"]


def test_a_gateway_that_turns_all_away_for_a_time_is_an_outage(server: int, caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of a run and when one is gone on with: MLflow was met at that address before."""
    with gateway_to(f"http://127.0.0.1:{server}") as gateway:
        log = open_log(gateway)
        log.log_metrics({"loss": 1.0}, 1)
        gateway.closed = ["/"]
        log.log_metrics({"loss": 2.0}, 2)
        again = open_log(gateway, run_id=log.run_id)
        why = f"{gateway.uri} answers, but not as MLflow does ({json.dumps(json.loads(NO_ROUTE[1]))})"
        assert said(caplog) == [
            f"{why}; run 'r' goes on, its records are kept and sent later. Mend: {MEND}."
        ] * 2  # fmt: skip
        gateway.closed = []
        for each in (log, again):
            each.end()
        client = open_client(f"http://127.0.0.1:{server}")
    assert [point.step for point in client.get_metric_history(log.run_id, "loss")] == [1, 2]
    assert client.get_run(log.run_id).info.status == "FINISHED"


def test_a_gateway_that_lets_some_paths_not_through_keeps_nothing_else_back(
    server: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModelSet("k", "checkpoint", ("digits", "f" * 64))
    send, sent = RunLog._send, []

    def close_for_the_first(self: RunLog, *arguments: Any) -> Any:
        """As a route that is back between a record and the question whether MLflow answers for the run."""
        sent.append(1)
        gateway.closed = ["log-batch"] if len(sent) == 1 else ["/mlflow-artifacts/", "/logged-models"]
        answer = send(self, *arguments)
        gateway.closed = []
        return answer

    monkeypatch.setattr(RunLog, "_send", close_for_the_first)
    with gateway_to(f"http://127.0.0.1:{server}") as gateway, open_log(gateway) as log:
        for step in (1, 2):
            log.log_metrics({"val_loss": 1.0 / step}, step)
            log.log_file(f"figures/{step}.txt", b"curve")
            record = models.replace([RankedModel(f"epoch-{step}", str(step), step, {"val_loss": 1.0 / step})])
            assert record is not None
            log.put(record)
            assert log.num_waiting == 0
    client = open_client(f"http://127.0.0.1:{server}")
    assert [point.step for point in client.get_metric_history(log.run_id, "val_loss")] == [1, 2]
    assert client.get_run(log.run_id).info.status == "FINISHED"
    first, second, third = said(caplog)  # the models once
    assert first.startswith(
        f"file figures/1.txt of run 'r' cannot be recorded: MLflow at {gateway.uri} answers for the run, but to this"
        " came HTTP 404 "
    )
    assert first.endswith(f". Mend: {MEND}.")
    assert second.startswith("MLflow refused models of run 'r': this server keeps no logged models (MLflow 3 does): ")
    assert third.startswith("file figures/2.txt of run 'r'")
