"""The schema of sweeps: both spellings of a space, and a clear word for each mistake."""

import pytest

from pipelines.config.load import load_config
from pipelines.errors import ConfigError
from pipelines.tune.config import TuneConfig, tunable_paths


def load(*overrides: str) -> TuneConfig:
    return load_config(TuneConfig, None, overrides)


def test_dotted_and_nested_keys_are_one_spelling() -> None:
    dotted = load("space={optimizer.lr: {loguniform: [0.01, 1]}, model.depth: {choice: [8, 14]}}")
    nested = load("space.optimizer.lr.loguniform=[0.01, 1.0]", "space.model.depth.choice=[8, 14]")
    assert dotted.space == nested.space
    assert dotted.space["optimizer.lr"].loguniform == (0.01, 1.0)
    assert dotted.space["model.depth"].choice == (8, 14)


def test_values_keep_their_types() -> None:
    space = load("space={model.depths: {choice: [[1, 1], [2, 2]]}, augment.flip: {choice: [true, false]}}").space
    assert space["model.depths"].choice == ((1, 1), (2, 2))
    assert space["augment.flip"].choice == (True, False)
    assert load("space={model.width: {choice: [1, 0.5]}}").space["model.width"].choice == (1, 0.5)


@pytest.mark.parametrize(
    ("override", "what", "mend"),
    [
        (
            "space={model.dept: {choice: [8]}}",
            "space names model.dept, which is nothing that a training can vary",
            "did you mean model.depth?",
        ),
        (
            "space={dataset: {choice: [a]}}",
            "space names dataset, which is nothing that a training can vary",
            "one of model.block, model.depth",
        ),
        (
            "space={model.depth: {choice: []}}",
            "space.model.depth: nothing is given",
            "give exactly one of choice, uniform, loguniform, integer",
        ),
        (
            "space={model.width: {choice: [1, 2], uniform: [1, 2]}}",
            "space.model.width: choice and uniform is given",
            "give exactly one of choice, uniform, loguniform, integer",
        ),
        (
            "space={optimizer.lr: {loguniform: [0, 1]}}",
            "space.optimizer.lr: loguniform is [0.0, 1.0]",
            "give bounds above 0, or use uniform",
        ),
        (
            "space={optimizer.lr: {uniform: [1, 0.5]}}",
            "space.optimizer.lr: uniform is [1.0, 0.5]",
            "give the lower bound first, then a higher one",
        ),
        ("space={model.depth: {choice: [8, 8]}}", "space.model.depth: choice is [8, 8]", "name each value once"),
        ("space={model.depth: {choise: [8]}}", "unknown key space.model.depth.choise", "space.model.depth.choice?"),
        (
            "train.max_hours=2.0",
            "train.max_hours is given",
            "leave train.max_hours out",
        ),
        (
            "train.divergence.rollbacks=2",
            "train.divergence.rollbacks is given",
            "leave train.divergence.rollbacks out",
        ),
        (
            "train.find_batch_size=true",
            "train.find_batch_size is true, which only a training by itself can do",
            "leave train.find_batch_size out, and vary global_batch_size in the space",
        ),
        ("train.local=true", "train.local is true", "leave train.local out"),
        (
            "space={find_batch_size: {choice: [false, true]}}",
            "space names find_batch_size",
            "did you mean global_batch_size?",
        ),
        (
            "space={divergence.rollbacks: {choice: [0, 3]}}",
            "space names divergence.rollbacks, which is nothing that a training can vary",
            "one of model.block, ",
        ),
        (
            "grace_epochs=31",
            "grace_epochs is 31 and train.epochs is 30",
            "lower grace_epochs, or use scheduler=none",
        ),
        ("scheduler=hyperband", 'scheduler is "hyperband"', "scheduler=asha"),
    ],
)
def test_mistakes_are_named_with_their_cure(override: str, what: str, mend: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert what in caught.value.what
    assert mend in caught.value.mend


def test_only_what_changes_the_outcome_can_be_varied() -> None:
    paths = tunable_paths(TuneConfig().train)
    assert {"model.depth", "model.width", "optimizer.lr", "global_batch_size", "seed", "augment.shift_px"} <= set(paths)
    assert not {"dataset", "out", "num_workers", "epochs", "model.num_classes", "tracking.uri"} & set(paths)
