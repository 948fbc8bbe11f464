"""Shares of the cluster and what a trial's process does; no Ray is started."""

from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.config.load import load_config
from pipelines.errors import ClusterError, ConfigError, DataError, StorageError, Superseded
from pipelines.ray_runtime import RaySession
from pipelines.tune.config import TuneConfig
from pipelines.tune.drive import Share, _Observer, divide, keep_secrets_out_of_tune
from pipelines.tune.stepwise import Stalled, StepwiseFit
from pipelines.tune.trial import JOB, RowsCache, TrialActor, describe


def share(nodes: list[float], trials: int, *overrides: str, gpus: float = 0.0) -> Share:
    config = load_config(TuneConfig, None, overrides)
    session = RaySession(sum(nodes), gpus, len(nodes), node_cpus=tuple(nodes))
    return divide(config, trials, session)


def test_tune_puts_no_secret_into_a_runtime_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.execution import class_cache

    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "planted-secret")
    keep_secrets_out_of_tune()
    actor = class_cache._ActorClassCache().get(type("Trainable", (), {}))
    environment = actor._default_options["runtime_env"]["env_vars"]
    assert "PL_DISABLE_FORK" in environment  # it is the place that Tune reads from
    assert "planted-secret" not in environment.values()


@pytest.mark.parametrize(
    ("nodes", "trials", "overrides", "expected"),
    [
        ([2], 8, [], Share(1, False, 2)),
        ([2], 1, [], Share(2, False, 1)),
        ([1, 1], 1, [], Share(1, False, 1)),  # two nodes of one CPU: no process can have both
        ([16], 3, [], Share(5, False, 3)),
        ([16], 8, ["max_concurrent_trials=2"], Share(8, False, 2)),
        ([16], 8, ["cpus_per_worker=4"], Share(4, False, 4)),
        ([2], 4, ["workers_per_trial=2"], Share(1, False, 1)),
        ([8], 4, ["workers_per_trial=2"], Share(1, False, 4)),
        ([8], 2, ["workers_per_trial=2"], Share(2, False, 2)),
        ([8], 2, ["train.use_gpu=false"], Share(4, False, 2)),
    ],
)
def test_the_cluster_is_shared_out(nodes: list[float], trials: int, overrides: list[str], expected: Share) -> None:
    assert share(nodes, trials, *overrides) == expected


def test_gpus_limit_how_many_run_at_once() -> None:
    assert share([8, 8], 8, gpus=2) == Share(8, True, 2)
    assert share([8, 8], 8, "workers_per_trial=2", gpus=2) == Share(8, True, 1)
    with pytest.raises(ConfigError, match="use_gpu is true for 1 workers, and the cluster has 0 GPUs"):
        share([8, 8], 8, "train.use_gpu=true")


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(ClusterError, match="a trial of one worker needs 4 CPU, and the cluster has 2"):
        share([2, 2, 2, 2], 4, "cpus_per_worker=4")
    with pytest.raises(
        ClusterError, match=r"a trial of 4 workers with 1 CPUs each needs 3\.97 CPUs; the cluster has 2"
    ):
        share([2], 4, "workers_per_trial=4")


def test_faults_are_told_in_one_line() -> None:
    assert describe(DataError("the loss became nan", mend="lower lr")) == "the loss became nan"
    try:
        raise ValueError("first line\nsecond line")
    except ValueError as error:
        words = describe(error)
    assert words.startswith("ValueError: first line (test_drive.py line ")
    assert "second" not in words


def make_actor(fit: Any, timeout_s: float = 0.0) -> TrialActor:
    actor = TrialActor.__new__(TrialActor)
    actor._fit = StepwiseFit(fit)
    actor._job = {"trial": "0004", "timeout_s": timeout_s}
    return actor


def test_an_actor_reports_epochs_and_then_the_end() -> None:
    def fit(on_epoch: Any) -> str:
        on_epoch(SimpleNamespace(epoch=1, val_score=0.5))
        return "outcome"

    actor = make_actor(fit)
    assert actor.step() == {"trial": "0004", "epoch": 1, "val_top1": 0.5}
    assert actor.step() == {"trial": "0004", "done": True}


def test_a_trial_that_a_newer_sweep_has_taken_ends_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    result = make_actor(raising(Superseded("another command trains here", mend="let it"))).step()
    assert result["done"]
    followed: list[str] = []
    sweep: Any = SimpleNamespace(
        is_stopped=lambda _: False, follow=followed.append, end=lambda *_: followed.append("end")
    )
    trial, observer = SimpleNamespace(config={JOB: '{"trial": "0004"}'}, last_result=result), _Observer(sweep)
    observer.on_trial_result(1, [], trial, result)
    observer.on_trial_complete(1, [], trial)
    assert not followed  # the folder is the newer sweep's
    assert isinstance(observer.fault, Superseded)
    assert (observer.fault.what, observer.fault.mend) == ("another command trains here", "let it")


def test_a_last_checkpoint_is_waited_for() -> None:
    asked_s: list[float] = []
    actor = make_actor(lambda _: "outcome")
    actor._fit = SimpleNamespace(stop=lambda timeout_s: asked_s.append(timeout_s))  # type: ignore[assignment]
    actor.cleanup()
    assert asked_s[0] >= 60

    told: list[str] = []
    sweep: Any = SimpleNamespace(
        is_stopped=lambda _: True,
        await_best=lambda name: told.append(f"await {name}"),
        end=lambda name, status: told.append(f"{status} {name}"),
    )
    trial = SimpleNamespace(config={JOB: '{"trial": "0004"}'}, last_result={})
    _Observer(sweep).on_trial_complete(0, [], trial)
    assert told == ["await 0004", "stopped 0004"]


def raising(error: Exception) -> Any:
    def fit(on_epoch: Any) -> str:
        raise error

    return fit


def test_a_fault_of_the_training_ends_the_trial_and_spares_the_actor() -> None:
    actor = make_actor(raising(DataError("the loss became nan")))
    assert actor.step() == {"trial": "0004", "failure": "the loss became nan", "done": True}
    assert make_actor(raising(ZeroDivisionError("x"))).step()["failure"].startswith("ZeroDivisionError: x (")


@pytest.mark.parametrize("error", [StorageError("away"), ClusterError("gone"), Stalled("no epoch")])
def test_what_another_attempt_may_mend_is_left_to_tune(error: Exception) -> None:
    with pytest.raises(type(error)):
        make_actor(raising(error)).step()


def test_decoded_splits_are_kept_between_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, str]] = []

    def open_rows(dataset: Any, split: str, **how: Any) -> Any:
        opened.append((dataset.ref, split))
        return SimpleNamespace(is_cached=how["limit_bytes"] > 0)

    monkeypatch.setattr("pipelines.train.feed.SplitRows", open_rows)
    rows, one, two = RowsCache(), SimpleNamespace(ref="d@v1"), SimpleNamespace(ref="d@v2")
    first = rows(one, "train", limit_bytes=1, window_groups=8)
    rows(one, "val", limit_bytes=1)
    assert rows(one, "train", limit_bytes=1, window_groups=16) is first  # all pixels are there, whatever the batch
    assert opened == [("d@v1", "train"), ("d@v1", "val")]
    rows(two, "train", limit_bytes=0, window_groups=8)
    rows(two, "train", limit_bytes=0, window_groups=8)
    rows(two, "train", limit_bytes=0, window_groups=16)
    assert opened[2:] == [("d@v2", "train")] * 2
