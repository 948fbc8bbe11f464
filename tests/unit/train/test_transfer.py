"""Starting from another run's weights: what is copied, refused, kept still, and what the stage's key holds of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config.load import load_config
from pipelines.config.strict import output_values
from pipelines.errors import ConfigError, DataError, InputError
from pipelines.image.preprocess import Preprocess
from pipelines.package.describe import PackageDescription, write_package
from pipelines.package.load import load_package
from pipelines.storage import Storage
from pipelines.train import stage
from pipelines.train.checkpoint import load_latest
from pipelines.train.config import OptimizerConfig, TrainConfig
from pipelines.train.initial import keep_copy
from pipelines.train.loop import fit, fit_local
from pipelines.train.model import write_model
from pipelines.train.optimizer import make_optimizer, set_rate
from pipelines.train.plan import plan
from pipelines.train.state import AVERAGE, OPTIMIZER, WEIGHTS
from pipelines.train.transfer import differences, freeze, rate_scales, set_training
from pipelines.train.transforms import sample_keys
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import unpack_weights
from resnet_models.zoo import named_spec
from tests.unit.train.awaited import die_after_checkpoint
from tests.unit.train.starts import CLASSES, SPEC, write_start
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "run")


def start_from(dataset: str, source: str, **changes: Any) -> TrainConfig:
    init = {"from": source, **changes.pop("init", {})}
    return make_config(dataset, init=init, **changes)


def weights_of(run: Storage) -> dict[str, torch.Tensor]:
    newest = load_latest(run)
    assert newest is not None
    return unpack_weights(newest.files[WEIGHTS])


def weights_at_start(config: TrainConfig, run: Storage) -> dict[str, torch.Tensor]:
    """Return the weights after a step of no length: what the run started from."""
    values = json.loads(config.model_dump_json())
    values |= {"epochs": 1, "optimizer": {"lr": 1e-30, "weight_decay": 0.0}}
    fit_local(TrainConfig.model_validate_json(json.dumps(values)), run, device="cpu")
    return weights_of(run)


def test_all_weights_are_taken_where_the_classes_are_the_same(dataset: str, run: Storage, tmp_path: Path) -> None:
    source = write_start(tmp_path / "start")
    began = weights_at_start(start_from(dataset, source), run)
    for name, tensor in load_package(source).network.named_parameters():
        assert torch.equal(began[name], tensor), name


@pytest.mark.parametrize("classes", [("x", "y", "z"), ("a", "c", "b"), tuple("abcde")])
def test_the_head_is_new_where_the_classes_differ(
    dataset: str, run: Storage, tmp_path: Path, classes: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec(stem="cifar", depths=(1, 1), channels=(8, 16), num_classes=len(classes))
    source = write_start(tmp_path / "start", spec, classes)
    with caplog.at_level(logging.INFO):
        began = weights_at_start(start_from(dataset, source), run)
    theirs = load_package(source).network.state_dict()
    assert torch.equal(began["stem.conv.weight"], theirs["stem.conv.weight"])
    assert torch.equal(began["head.weight"], build(SPEC, seed=0).head.weight)
    words = f"{len(classes)} classes there, {'other names' if len(classes) == 3 else 3} here"
    assert f"starting from {source}, head new: {words}" in caplog.text


def test_a_network_left_out_is_the_packages(dataset: str, run: Storage, tmp_path: Path) -> None:
    source = write_start(tmp_path / "start")
    config = start_from(dataset, source, model={})
    began = weights_at_start(config, run)
    assert began["stages.1.0.conv1.weight"].shape == (16, 8, 3, 3)
    assert torch.equal(began["head.weight"], load_package(source).network.head.weight)


def test_the_first_tensor_that_differs_is_named_with_the_settings_that_fit(
    dataset: str, run: Storage, tmp_path: Path
) -> None:
    source = write_start(tmp_path / "start")
    model = {"depth": 8, "width": 0.5, "stem": "cifar"}
    with pytest.raises(ConfigError) as caught:
        fit_local(start_from(dataset, source, model=model), run, device="cpu")
    assert str(caught.value) == (
        "ConfigError: the weights that init.from names do not fit this network: stages.2.0.conv1.weight is not there "
        "and has shape [32, 16, 3, 3] here\n  where: init.from\n  mend:  leave model out, and the network is theirs; "
        "or set model.depths=[1,1] model.channels=[8,16] model.strides=[1,2] model.depth=0 model.width=1.0"
    )


def test_a_misfit_is_refused_before_anything_is_started(dataset: str, tmp_path: Path) -> None:
    source = write_start(tmp_path / "start")
    config = start_from(dataset, source, model={"depth": 8, "stem": "cifar"}, out=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"stem.conv.weight has shape \[8, 3, 3, 3\] there and \[16, 3, 3, 3\]"):
        stage.run(config)
    assert not (tmp_path / "run").exists()
    preact = {"depths": [1, 1], "channels": [8, 16], "stem": "cifar", "block": "preact_basic"}
    with pytest.raises(ConfigError, match=r"stages.1.0.norm1.weight has shape \[16\] there and \[8\] here"):
        stage.run(start_from(dataset, source, model=preact, out=str(tmp_path / "run")))


def test_a_stem_for_other_images_is_refused(dataset: str, run: Storage, tmp_path: Path) -> None:
    spec = ModelSpec(stem="imagenet", depths=(1, 1), channels=(8, 16), num_classes=3)
    source = write_start(tmp_path / "start", spec)
    model = {"depths": [1, 1], "channels": [8, 16]}
    with pytest.raises(ConfigError, match=r"stem.conv.weight has shape \[8, 3, 7, 7\] there") as caught:
        fit_local(start_from(dataset, source, model=model), run, device="cpu")
    assert "or set model.stem=imagenet" in str(caught.value)


def test_equal_shapes_of_another_network_are_warned_of(
    dataset: str, run: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec("bottleneck", depths=(1, 1), channels=(4, 8), stem="cifar", stride_placement="v1", num_classes=3)
    source = write_start(tmp_path / "start", spec)
    model = {"block": "bottleneck", "depths": [1, 1], "channels": [4, 8], "stem": "cifar"}
    weights_at_start(start_from(dataset, source, model=model), run)
    assert "trained in another network: stride_placement v1 there and v1.5 here" in caplog.text


def test_one_network_has_one_spelling() -> None:
    by_depth = ModelSpec(stem="cifar", depth=8, num_classes=3, drop_path_rate=0.1)
    listed = ModelSpec(stem="cifar", depths=(1, 1, 1), channels=(16, 32, 64), num_classes=7)
    assert differences(by_depth, listed) == {}
    spelled = ModelSpec(ordering="original", stem_pool="max", norm="group", norm_size=32)
    assert differences(spelled, ModelSpec(norm="group")) == {}
    assert differences(named_spec("resnet50"), named_spec("resnet50_v1")) == {"stride_placement": ("v1.5", "v1")}


@pytest.mark.parametrize(("until", "last"), [("stage1", "stem"), ("stage2", "stages.0"), ("head", "stages.1")])
def test_what_is_frozen_keeps_weights_and_statistics(
    dataset: str, run: Storage, tmp_path: Path, until: str, last: str
) -> None:
    source = write_start(tmp_path / "start")
    fit_local(start_from(dataset, source, init={"freeze_until": until}), run, device="cpu")
    ended, began = weights_of(run), load_package(source).network.state_dict()
    parts = ["stem", "stages.0", "stages.1", "head"]
    for name, tensor in began.items():
        part = next(part for part in parts if name.startswith(f"{part}."))
        is_kept = parts.index(part) <= parts.index(last)
        assert torch.equal(ended[name], tensor) == is_kept, name


def test_frozen_parts_of_preactivation_networks_include_the_last_norm() -> None:
    network = build(named_spec("wrn16_8", width=0.25, num_classes=3))
    frozen = freeze(network, "head")
    set_training(network, frozen)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias"}
    assert network.training
    assert network.norm is not None
    assert not network.norm.training


def test_early_exits_are_not_trained_and_so_refused(dataset: str, run: Storage, tmp_path: Path) -> None:
    model = {"depths": [1, 1], "channels": [8, 16], "stem": "cifar", "exits": [1]}
    with pytest.raises(ConfigError, match=r"model\.exits is \[1\]; a run gives early exits no loss"):
        fit_local(make_config(dataset, model=model), run, device="cpu")
    spec = ModelSpec(stem="cifar", depths=(1, 1), channels=(8, 16), num_classes=3, exits=(1,))
    config = start_from(dataset, write_start(tmp_path / "start", spec), model={})
    initial = plan(config).initial
    assert initial is not None
    assert initial.describe(CLASSES).endswith("start, early exits left out, head kept")
    assert not [name for name in weights_at_start(config, run) if name.startswith("exits.")]


def test_a_stage_that_is_not_there_is_refused(dataset: str, tmp_path: Path) -> None:
    source = write_start(tmp_path / "start")
    with pytest.raises(ConfigError) as caught:
        plan(start_from(dataset, source, init={"freeze_until": "stage3"}))
    assert str(caught.value) == (
        "ConfigError: init.freeze_until is stage3; the network has 2 stages\n  mend:  use one of stage1, stage2, head"
    )
    with pytest.raises(ConfigError, match="freeze_until is stage2 and there is no from, so random weights would be"):
        load_config(TrainConfig, None, ["init.freeze_until=stage2"])


def test_rates_fall_from_the_head_to_the_stem() -> None:
    network = build(SPEC)
    optimizer = make_optimizer(network, OptimizerConfig(lr=0.1), rate_scales(network, 0.5))
    set_rate(optimizer, 0.08)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    assert by_name["head.weight"] == by_name["head.bias"] == 0.08
    assert by_name["stages.1.0.norm1.weight"] == by_name["stages.1.0.conv1.weight"] == 0.04
    assert by_name["stages.0.0.conv2.weight"] == 0.02
    assert by_name["stem.conv.weight"] == 0.01
    assert optimizer.param_groups[0]["lr"] == 0.08  # what records call the run's rate


def test_one_rate_for_all_makes_the_groups_of_old() -> None:
    network = build(SPEC)
    optimizer = make_optimizer(network, OptimizerConfig(), rate_scales(network, 1.0))
    assert len(optimizer.param_groups) == 2


class Killed(BaseException):
    """Ends a run where it stands."""


def test_a_resumed_transfer_ends_on_the_same_bits(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_start(tmp_path / "start")
    init = {"freeze_until": "stage1", "lr_decay_by_depth": 0.7}
    config = start_from(dataset, source, init=init, checkpoint_every_s=0.0, ema_decay=0.9)
    straight, broken = Storage.open(tmp_path / "straight"), Storage.open(tmp_path / "broken")
    fit_local(config, straight, device="cpu")
    die_after_checkpoint(monkeypatch, 1, Killed())
    with pytest.raises(Killed):
        fit_local(config, broken, device="cpu")
    monkeypatch.undo()
    fit_local(config, broken, device="cpu")
    one, two = load_latest(straight), load_latest(broken)
    assert one is not None
    assert two is not None
    for name in (WEIGHTS, OPTIMIZER, AVERAGE):
        assert one.files[name] == two.files[name], name


def test_a_run_that_began_from_other_weights_is_not_gone_on_with(dataset: str, run: Storage, tmp_path: Path) -> None:
    source = write_start(tmp_path / "start")
    config = start_from(dataset, source)
    fit_local(config, run, device="cpu", on_epoch=lambda _: False)
    write_start(tmp_path / "start", network=build(SPEC, seed=5))
    with pytest.raises(DataError, match="the checkpoint of step 4 is of init "):
        fit_local(config, run, device="cpu")


def test_the_key_holds_the_weights_not_the_address(dataset: str, tmp_path: Path) -> None:
    plain = plan(make_config(dataset))
    source, copy = write_start(tmp_path / "start"), write_start(tmp_path / "copy")
    other = write_start(tmp_path / "other", network=build(SPEC, seed=5))
    key = plan(start_from(dataset, source)).key
    assert key == plan(start_from(dataset, copy)).key
    keys = {
        plain.key,
        key,
        plan(start_from(dataset, other)).key,
        plan(start_from(dataset, source, model={})).key,
        plan(start_from(dataset, source, init={"freeze_until": "stage1"})).key,
        plan(start_from(dataset, source, init={"lr_decay_by_depth": 0.5})).key,
    }
    assert len(keys) == 6
    assert set(plain.inputs) == {"dataset", "preprocess"}
    assert "init" not in output_values(make_config(dataset))


def test_a_run_keeps_its_own_copy(tmp_path: Path, dataset: str, run: Storage) -> None:
    source = write_start(tmp_path / "start")
    initial = plan(start_from(dataset, source)).initial
    assert initial is not None
    config = make_config(dataset)
    copy = keep_copy(initial, run, config.tracking)
    assert load_package(copy).weights_sha256 == initial.resolved.weights_sha256
    assert plan(start_from(dataset, copy)).key == plan(start_from(dataset, source)).key


def test_a_licence_travels_with_the_weights(dataset: str, run: Storage, tmp_path: Path) -> None:
    origin = {"licence": "CC-BY-NC-4.0", "source": "https://example.org/w", "file": "w.pth"}
    config = start_from(dataset, write_start(tmp_path / "start", origin=origin), epochs=1)
    description = write_model(config, run, fit_local(config, run, device="cpu").best)
    assert description["origin"]["licence"] == "CC-BY-NC-4.0"
    assert description["origin"]["source"] == "https://example.org/w"
    assert description["origin"]["init_head"] == "kept"
    again = start_from(dataset, str(Path(run.uri) / "model"))
    initial = plan(again).initial
    assert initial is not None
    assert initial.to_json(CLASSES)["licence"] == "CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda state: state | {"head.bias": torch.full((3,), torch.nan)},
            "head.bias holds 3 values that are infinite or not",
        ),
        (lambda state: state | {"head.bias": state["head.bias"].half()}, "head.bias is torch.float16; the network's"),
        (lambda state: {k: v for k, v in state.items() if k != "head.bias"}, "the weights lack head.bias"),
        (lambda state: state | {"more": torch.zeros(1)}, "the weights hold more, which the network lacks"),
    ],
)
def test_damaged_weights_are_refused(dataset: str, run: Storage, tmp_path: Path, damage: Any, message: str) -> None:
    description = PackageDescription(SPEC, CLASSES, Preprocess().to_json(), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    write_package(Storage.open(tmp_path / "start"), "", damage(build(SPEC).state_dict()), description)
    with pytest.raises(InputError, match=message):
        fit_local(start_from(dataset, str(tmp_path / "start")), run, device="cpu")


def test_a_half_written_package_is_refused(dataset: str, run: Storage, tmp_path: Path) -> None:
    source = write_start(tmp_path / "start")
    weights = tmp_path / "start" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"weights.safetensors has the hash \w+; model.json names"):
        fit_local(start_from(dataset, source), run, device="cpu")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pth.tar", "w.ckpt", "w.safetensors"])
def test_a_bare_file_of_weights_names_the_import(dataset: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(start_from(dataset, str(tmp_path / name)))
    assert f"resnet models import {tmp_path / name} --arch NAME --licence" in str(caught.value)


def test_keys_of_samples_are_their_own() -> None:
    import numpy as np

    hashes = np.arange(1, 9, dtype=np.uint64) << np.uint64(60)
    keys = sample_keys(hashes, seed=1, epoch=2)
    assert keys.dtype == torch.int64
    assert len(set(keys.tolist())) == 8
    assert torch.equal(sample_keys(hashes[3:5], seed=1, epoch=2), keys[3:5])
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert not set(sample_keys(hashes, **other).tolist()) & set(keys.tolist())


def test_what_is_dropped_does_not_depend_on_the_number_of_workers(dataset: str, tmp_path: Path) -> None:
    model = {"depths": [2, 2], "channels": [8, 16], "stem": "cifar", "drop_path_rate": 0.5, "head_dropout": 0.2}
    config = make_config(dataset, model=model, epochs=2)
    runs = {}
    for size in (1, 2):
        run = Storage.open(tmp_path / f"run-{size}")
        outcomes = in_threads(size, lambda world, run=run: fit(config, run, world=world, device=torch.device("cpu")))
        runs[size] = outcomes[0].records
    for one, two in zip(runs[1], runs[2], strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, rel=1e-4)
        assert one.val_loss == pytest.approx(two.val_loss, rel=1e-3)
    still = fit_local(
        make_config(dataset, model=model | {"drop_path_rate": 0.0}, epochs=2),
        Storage.open(tmp_path / "still"),
        device="cpu",
    )
    assert still.records[0].train_loss != pytest.approx(runs[1][0].train_loss, rel=1e-3)


def test_a_whitening_stem_learns_its_directions_from_the_data(dataset: str, tmp_path: Path) -> None:
    model = {"depths": [1, 1], "channels": [8, 16], "stem": "whitening"}
    config = make_config(dataset, model=model, epochs=1)
    found = []
    for size in (1, 2):
        run = Storage.open(tmp_path / f"run-{size}")
        in_threads(size, lambda world, run=run: fit(config, run, world=world, device=torch.device("cpu")))
        found.append(weights_of(run)["stem.whitening.directions"])
    assert torch.equal(*found)
    assert not torch.equal(
        found[0],
        build(ModelSpec(depths=(1, 1), channels=(8, 16), stem="whitening", num_classes=3)).stem.whitening.directions,
    )


def test_ghost_batches_hold_the_same_rows_on_any_number_of_workers(dataset: str, tmp_path: Path) -> None:
    model = {"depths": [1, 1], "channels": [8, 16], "stem": "cifar", "norm": "ghost", "norm_size": 6}
    config = make_config(dataset, model=model, epochs=1, global_batch_size=24)  # 72 rows: three full batches
    losses = []
    for size in (1, 2, 4):
        run = Storage.open(tmp_path / f"run-{size}")
        outcomes = in_threads(size, lambda world, run=run: fit(config, run, world=world, device=torch.device("cpu")))
        losses.append(outcomes[0].records[0].train_loss)
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    with pytest.raises(ConfigError, match="ghost batches of 6 rows do not divide the global batch size 20"):
        fit_local(make_config(dataset, model=model), Storage.open(tmp_path / "odd"), device="cpu")
    with pytest.raises(ConfigError, match=r"num_workers is 5; .* is shared by 4 at most, one ghost batch each"):
        stage.run(make_config(dataset, model=model, global_batch_size=24, num_workers=5))
