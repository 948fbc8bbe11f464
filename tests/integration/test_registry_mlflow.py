"""Registration against a real MLflow store: gates, reruns after a kill at every call, altered files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import tracking
from pipelines.errors import ConfigError, InputError, RegistryError
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.stage import run as evaluate
from pipelines.package.load import load_package
from pipelines.package.predictor import Predictor
from pipelines.registry import register
from pipelines.registry.config import RegisterConfig
from pipelines.registry.listing import list_models, page_of, promote_version, show_model
from pipelines.registry.plan import plan
from pipelines.registry.stage import RegisterResult, run
from pipelines.tracking import RunLog, TrackingConfig
from tests.factories import encode
from tests.unit.evaluate.small_world import make_dataset, make_training, read_json

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Iterator[Path]:
    """A dataset, and five trainings with their evaluations; the working directory must stay empty."""
    root = tmp_path_factory.mktemp("registry")
    make_dataset(root / "data")
    for seed in range(5):
        make_training(root / f"train-{seed}", seed=seed)
        evaluate(evaluation(root, mlflow_uri, seed))
    before = Path.cwd()
    (root / "cwd").mkdir()
    os.chdir(root / "cwd")
    yield root
    os.chdir(before)
    assert list((root / "cwd").iterdir()) == []


@pytest.fixture(autouse=True)
def quick_save(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, world: Path) -> None:
    """Let MLflow write a model folder once and copy it from then on, with the package's own two files in it.

    It takes seconds each time; the test that runs the registered model goes the whole way.
    """
    if "answers_like_the_training" in request.node.name:
        return
    real: Callable[..., Path] = register._save

    def save(scratch: Path, inputs: Any, *args: Any) -> Path:
        if not (world / "saved").exists():
            shutil.copytree(real(scratch, inputs, *args), world / "saved")
        shutil.copytree(world / "saved", scratch / "copy")
        for name in ("weights.safetensors", "model.json"):
            shutil.copy(Path(inputs.package.uri, name), scratch / "copy" / "artifacts" / name)
        return scratch / "copy"

    monkeypatch.setattr(register, "_save", save)


def evaluation(root: Path, uri: str, seed: int, data: str = "data") -> EvaluateConfig:
    return EvaluateConfig(
        model=str(root / f"train-{seed}"),
        dataset=str(root / data),
        out=str(root / f"evaluation-{data}-{seed}"),
        tracking=TrackingConfig(uri=uri),
    )


def config(world: Path, uri: str, name: str, seed: int, data: str = "data", **changes: Any) -> RegisterConfig:
    values = {
        "model": str(world / f"train-{seed}"),
        "name": name,
        "evaluation": str(world / f"evaluation-{data}-{seed}"),
        "out": str(world / f"register-{name}-{data}-{seed}"),
        "tracking": {"uri": uri},
    }
    return RegisterConfig.model_validate(values | changes)


def correct_rows(world: Path, seed: int) -> int:
    return int(read_json(world / f"evaluation-data-{seed}" / "_catalog.json")["metrics"]["correct_rows"])


@pytest.fixture(scope="module")
def ranked(world: Path) -> list[int]:
    """Seeds from worst to best."""
    return sorted(range(5), key=lambda seed: correct_rows(world, seed))


def test_first_version_worse_candidate_better_candidate(world: Path, mlflow_uri: str, ranked: list[int]) -> None:
    low, high = ranked[0], ranked[-1]
    assert correct_rows(world, low) < correct_rows(world, high)
    first = run(config(world, mlflow_uri, "ladder", low))
    assert (first.version, first.champion_moved) == ("1", True)
    assert first.reason.startswith("nothing held the alias; version 1 has")
    second = run(config(world, mlflow_uri, "ladder", high))
    assert (second.version, second.champion_moved) == ("2", True)
    assert "on the same 27 rows" in second.reason
    third = run(config(world, mlflow_uri, "ladder", ranked[1]))
    assert (third.version, third.champion_moved) == ("3", False)
    shown = show_model("ladder", TrackingConfig(uri=mlflow_uri))
    assert shown.aliases == {"champion": "2"}
    assert [row.version for row in shown.versions] == ["3", "2", "1"]
    assert [row.aliases for row in shown.versions] == [(), ("champion",), ()]
    assert shown.versions[1].test_top1 == correct_rows(world, high) / 27
    assert [(record.version, record.moves, record.is_open) for record in shown.audit] == [
        ("3", False, False),
        ("2", True, False),
        ("1", True, False),
    ]
    catalog = read_json(world / f"register-ladder-data-{high}" / "_catalog.json")
    assert (catalog["name"], catalog["version"], catalog["promoted"]) == ("ladder", "2", True)
    audit = read_json(world / f"register-ladder-data-{high}" / "audit.json")
    assert audit == shown.audit[1].to_json()


def test_a_tie_stays_with_the_older_version(world: Path, mlflow_uri: str, tmp_path: Path) -> None:
    # The same weights with other figures in model.json answer alike: another package would tie exactly.
    run(config(world, mlflow_uri, "tie", 0))
    shutil.copytree(world / "train-0", tmp_path / "train")
    path = tmp_path / "train" / "model" / "model.json"
    values = json.loads(path.read_text())
    values["mean"] = [value + 1e-7 for value in values["mean"]]
    path.write_text(json.dumps(values))
    measured = evaluation(world, mlflow_uri, 0).model_copy(
        update={"model": str(tmp_path / "train"), "out": str(tmp_path / "evaluation")}
    )
    evaluate(measured)
    result = run(
        config(
            world, mlflow_uri, "tie", 0,
            model=str(tmp_path / "train"), evaluation=str(tmp_path / "evaluation"), out=str(tmp_path / "register"),
        )
    )  # fmt: skip
    assert (result.version, result.champion_moved) == ("2", False)
    assert result.reason.endswith(": a tie stays with version 1")


def test_the_same_network_is_registered_once(world: Path, mlflow_uri: str, tmp_path: Path) -> None:
    first = run(config(world, mlflow_uri, "once", 0))
    again = run(config(world, mlflow_uri, "once", 0))
    assert again.skipped
    elsewhere = run(config(world, mlflow_uri, "once", 0, out=str(tmp_path / "other")))
    assert (elsewhere.version, elsewhere.champion_moved) == (first.version, True)
    assert show_model("once", TrackingConfig(uri=mlflow_uri)).num_versions == 1


def test_other_rows_make_the_champion_be_measured_again(world: Path, mlflow_uri: str, ranked: list[int]) -> None:
    make_dataset(world / "more", counts={"train": {"a": 2, "b": 2, "c": 2}, "test": {"a": 4, "b": 8, "c": 9}})
    high, low = ranked[-1], ranked[0]
    evaluate(evaluation(world, mlflow_uri, high, "more"))
    run(config(world, mlflow_uri, "rows", low))
    result = run(config(world, mlflow_uri, "rows", high, "more"))
    assert "on the same 21 rows" in result.reason
    again = read_json(world / f"register-rows-more-{high}" / "champion" / "version-1" / "_catalog.json")
    candidate = read_json(world / f"evaluation-more-{high}" / "_catalog.json")
    assert again["dataset"]["split_fingerprint"] == candidate["dataset"]["split_fingerprint"]
    better = candidate["metrics"]["correct_rows"] > again["metrics"]["correct_rows"]
    assert result.champion_moved is better


def test_a_registered_package_answers_like_the_training_and_without_pickle(world: Path, mlflow_uri: str) -> None:
    run(config(world, mlflow_uri, "answers", 3))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    here = Predictor(load_package(str(world / "train-3"))).predict(pixels[None])[0]
    registered = load_package("models:/answers@champion", TrackingConfig(uri=mlflow_uri))
    assert (registered.name, registered.version) == ("answers", "1")
    np.testing.assert_array_equal(Predictor(registered).predict(pixels[None])[0], here)
    import mlflow

    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    with tracking.process_wide(mlflow_uri):
        served = mlflow.pyfunc.load_model("models:/answers@champion")
    answer = served.predict({"image": [encode(pixels, "PNG")]}, params={"top_k": 3}).iloc[0]
    expected = sorted(zip(-here, "abc", strict=True))
    assert answer["names"] == [name for _, name in expected]
    np.testing.assert_allclose(answer["probabilities"], [-value for value, _ in expected], atol=1e-6)


def test_the_version_names_the_run_that_made_it(world: Path, mlflow_uri: str, tmp_path: Path) -> None:
    store = TrackingConfig(uri=mlflow_uri)
    with RunLog.open(store, run_name="training") as log:
        log.log_metrics({"val_top1": 0.5}, 1)
    make_training(tmp_path / "train", seed=9, mlflow_run_id=log.run_id)
    measured = evaluation(world, mlflow_uri, 9).model_copy(
        update={"model": str(tmp_path / "train"), "out": str(tmp_path / "evaluation")}
    )
    evaluate(measured)
    client = tracking.open_client(mlflow_uri)
    finished = client.get_run(log.run_id)
    catalog = read_json(tmp_path / "evaluation" / "_catalog.json")
    assert finished.data.metrics["test_top1"] == catalog["metrics"]["top1"]
    assert finished.data.tags["resnet.test_rows"] == catalog["dataset"]["split_fingerprint"]
    assert finished.info.status == "FINISHED"
    names = {file.path for file in client.list_artifacts(log.run_id, "evaluate/test")}
    assert names == {f"evaluate/test/{name}" for name in ("confusion.png", "reliability.png", "mistakes.html")}
    run(
        config(
            world, mlflow_uri, "linked", 9,
            model=str(tmp_path / "train"), evaluation=str(tmp_path / "evaluation"), out=str(tmp_path / "register"),
        )
    )  # fmt: skip
    assert show_model("linked", store).versions[0].run_id == log.run_id
    # A model from the registry adds its figures to the same run.
    evaluate(measured.model_copy(update={"model": "models:/linked/1", "split": "val", "out": str(tmp_path / "val")}))
    assert "val_macro_f1" in client.get_run(log.run_id).data.metrics


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class FaultyClient:
    """A client that is killed at its n-th change, before it is made or before the answer arrives."""

    def __init__(self, client: Any, kill_at: int, *, after: bool) -> None:
        self._client, self._kill_at, self._after = client, kill_at, after
        self.changes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not name.startswith(("create_", "set_", "log_", "finalize_", "delete_")):
            return method

        def change(*args: Any, **kwargs: Any) -> Any:
            self.changes.append(name)
            is_last = len(self.changes) == self._kill_at
            if is_last and not self._after:
                raise Killed
            answer = method(*args, **kwargs)
            if is_last:
                raise Killed
            return answer

        return change


@pytest.mark.parametrize("after", [False, True], ids=["before", "answer-lost"])
def test_killed_at_every_change_and_run_again(
    world: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    store = TrackingConfig(uri=mlflow_uri)
    real = tracking.open_client(mlflow_uri)
    kills: list[str] = []
    for kill_at in range(1, 40):
        name = f"kill-{'after' if after else 'before'}-{kill_at}"
        faulty = FaultyClient(real, kill_at, after=after)
        monkeypatch.setattr(tracking, "open_client", lambda uri, faulty=faulty: faulty)
        wanted = config(world, mlflow_uri, name, 1)
        try:
            run(wanted)
            break
        except Killed:
            kills.append(faulty.changes[-1])
        assert not (Path(wanted.out) / "_catalog.json").exists()
        monkeypatch.setattr(tracking, "open_client", lambda uri: real)
        result = run(wanted)
        assert (result.version, result.champion_moved) == ("1", True), kills
        shown = show_model(name, store)
        assert (shown.num_versions, shown.aliases) == (1, {"champion": "1"}), kills
        assert not any(record.is_open for record in shown.audit), kills
    # The kills went through the whole road: files, version, figures, intent, alias, settled record.
    assert {
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "create_registered_model",
        "create_model_version",
        "set_registered_model_alias",
    } <= set(kills)
    assert kills[-1] == "set_registered_model_tag"


@pytest.fixture
def altered(world: Path, mlflow_uri: str, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A version, and the folder in which the registry keeps its files."""
    name = "altered-" + "".join(c for c in request.node.name if c.isalnum())[-40:]
    run(config(world, mlflow_uri, name, 2))
    client = tracking.open_client(mlflow_uri)
    model = client.get_logged_model(client.get_model_version(name, "1").source.rpartition("/")[2])
    return name, Path(model.artifact_location.removeprefix("file://"))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_the_weights_is_refused(altered: tuple[str, Path], mlflow_uri: str) -> None:
    name, folder = altered
    flip_bit(folder / "artifacts" / "weights.safetensors")
    with pytest.raises(InputError, match=r"weights\.safetensors has the hash [0-9a-f]{64}; model\.json names"):
        load_package(f"models:/{name}/1", TrackingConfig(uri=mlflow_uri))
    with pytest.raises(RegistryError) as caught:
        promote_version(name, "1", TrackingConfig(uri=mlflow_uri), alias="blessed")
    assert f"version 1 of {name} is not whole: artifacts/weights.safetensors was altered" in str(caught.value)


def test_a_damaged_version_is_mended_as_the_refusal_says(
    altered: tuple[str, Path], world: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    name, folder = altered
    flip_bit(folder / "artifacts" / "weights.safetensors")
    again = config(world, mlflow_uri, name, 2, out=str(tmp_path / "again"))
    with pytest.raises(RegistryError, match="delete that version in the MLflow UI and run the same command again"):
        run(again)
    tracking.open_client(mlflow_uri).delete_model_version(name, "1")
    assert run(again).version == "2"
    # Promoting fetches every file and compares it with its hash.
    assert promote_version(name, "2", TrackingConfig(uri=mlflow_uri), alias="blessed").moved


def test_an_altered_description_is_refused(altered: tuple[str, Path], mlflow_uri: str) -> None:
    name, folder = altered
    path = folder / "artifacts" / "model.json"
    path.write_text(path.read_text().replace('"a"', '"z"'))
    with pytest.raises(InputError, match=r"model\.json has the hash [0-9a-f]{64}; the registry names"):
        load_package(f"models:/{name}/1", TrackingConfig(uri=mlflow_uri))


def test_added_and_replaced_files_are_named_and_never_executed(
    altered: tuple[str, Path], mlflow_uri: str, tmp_path: Path
) -> None:
    name, folder = altered
    canary = tmp_path / "canary"
    (folder / "artifacts" / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'touch %s'\ntR." % str(canary).encode())
    (folder / "network.py").write_text(f"open({str(canary)!r}, 'w')\n")
    load_package(f"models:/{name}/1", TrackingConfig(uri=mlflow_uri))  # reads two files, whose hashes hold
    with pytest.raises(RegistryError) as caught:
        promote_version(name, "1", TrackingConfig(uri=mlflow_uri), alias="blessed")
    assert "artifacts/evil.pkl was added; network.py was altered" in str(caught.value)
    assert not canary.exists()
    assert show_model(name, TrackingConfig(uri=mlflow_uri)).aliases == {"champion": "1"}


def test_a_version_whose_files_are_gone_is_never_promoted(
    altered: tuple[str, Path], world: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    name, folder = altered
    shutil.rmtree(folder / "artifacts")
    with pytest.raises(RegistryError, match=r"is not whole: artifacts/model\.json is missing"):
        run(config(world, mlflow_uri, name, 2, out=str(tmp_path / "again")))
    # It holds the alias from before; a candidate cannot be compared with it and a person has to decide.
    result = run(
        config(world, mlflow_uri, name, 4, out=str(tmp_path / "next"), evaluation=str(_more(world, mlflow_uri)))
    )
    assert not result.champion_moved
    assert result.reason.startswith("version 1 holds the alias and cannot be measured on the same rows: ")


def _more(world: Path, uri: str) -> Path:
    if not (world / "other").exists():
        make_dataset(world / "other", counts={"train": {"a": 1, "b": 1, "c": 1}, "test": {"a": 3, "b": 3, "c": 4}})
    evaluate(evaluation(world, uri, 4, "other"))
    return world / "evaluation-other-4"


def test_rollback_by_hand(world: Path, mlflow_uri: str, ranked: list[int]) -> None:
    store = TrackingConfig(uri=mlflow_uri)
    run(config(world, mlflow_uri, "back", ranked[0]))
    run(config(world, mlflow_uri, "back", ranked[-1]))
    decision = promote_version("back", "1", store, reason="2 fails on night images")
    assert (decision.moved, decision.before, decision.champion) == (True, "2", "1")
    shown = show_model("back", store)
    assert shown.aliases == {"champion": "1"}
    assert (shown.audit[0].action, shown.audit[0].reason) == ("promote", "2 fails on night images")
    with pytest.raises(RegistryError) as caught:
        promote_version("back", "7", store)
    assert str(caught.value) == (
        f"RegistryError: back has no version 7\n  where: {mlflow_uri}\n  mend:  resnet models show back lists them"
    )


def test_listing_and_what_is_not_there(world: Path, mlflow_uri: str) -> None:
    store = TrackingConfig(uri=mlflow_uri)
    run(config(world, mlflow_uri, "listed", 0))
    tracking.open_client(mlflow_uri).create_registered_model("somebody's other")
    rows = {row.name: row for row in list_models(store)}
    assert (rows["listed"].aliases, rows["listed"].latest, rows["listed"].is_ours) == ({"champion": "1"}, "1", True)
    assert (rows["somebody's other"].num_versions, rows["somebody's other"].is_ours) == (0, False)
    with pytest.raises(RegistryError, match="the registry has no model 'nobody'"):
        show_model("nobody", store)
    with pytest.raises(ConfigError, match="is a database and has no address to open"):
        page_of(store, "listed")
    assert (
        page_of(TrackingConfig(uri="http://mlflow:5000"), "a b", "2") == "http://mlflow:5000/#/models/a%20b/versions/2"
    )


def test_an_evaluation_of_another_network_is_refused(world: Path, mlflow_uri: str) -> None:
    with pytest.raises(InputError, match=r"the evaluation measured another network \([0-9a-f]{12}\) than"):
        plan(config(world, mlflow_uri, "mixed", 0, evaluation=str(world / "evaluation-data-1")))


def test_an_evaluation_by_which_the_network_was_chosen_is_refused(world: Path, mlflow_uri: str) -> None:
    measured = evaluation(world, mlflow_uri, 0).model_copy(update={"split": "val", "out": str(world / "on-val")})
    evaluate(measured)
    with pytest.raises(
        InputError, match="the evaluation is of split 'val', by which the network was trained or chosen"
    ):
        plan(config(world, mlflow_uri, "val", 0, evaluation=str(world / "on-val")))


def test_what_is_no_evaluation_is_refused(world: Path, mlflow_uri: str) -> None:
    with pytest.raises(InputError, match="train-0 is no finished evaluation: it is an output of train"):
        plan(config(world, mlflow_uri, "wrong", 0, evaluation=str(world / "train-0")))
    with pytest.raises(InputError, match="data is no finished evaluation: it holds no catalog"):
        plan(config(world, mlflow_uri, "wrong", 0, evaluation=str(world / "data")))
    with pytest.raises(ConfigError, match=r"tracking\.enabled is false, and a registration needs the MLflow registry"):
        plan(config(world, mlflow_uri, "wrong", 0, tracking={"enabled": False}))
    with pytest.raises(InputError, match="models:/x/1 is registered already"):
        plan(config(world, mlflow_uri, "wrong", 0, model="models:/x/1"))


def test_another_registry_is_another_output(world: Path, mlflow_uri: str, tmp_path: Path) -> None:
    here = plan(config(world, mlflow_uri, "where", 0))
    there = plan(config(world, f"sqlite:///{tmp_path}/m.db", "where", 0))
    assert here.key != there.key
    assert plan(config(world, mlflow_uri, "where", 0, out="elsewhere")).key == here.key


def test_result_says_what_next(world: Path, mlflow_uri: str) -> None:
    result: RegisterResult = run(config(world, mlflow_uri, "next", 0))
    assert result.next_commands == (
        "resnet models show next",
        "resnet score ARCHIVE --model models:/next@champion",
    )
    assert result.figures["model"] == "models:/next/1"
