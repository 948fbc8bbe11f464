"""The network's description, fitted to the data. No torch here, since a driver checks it before Ray starts."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.errors import ConfigError, InputError
from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec


def settle_spec(spec: ModelSpec, classes: Sequence[str], image_shape: tuple[int, int]) -> ModelSpec:
    """Return the spec with its stem and number of classes filled in from the data.

    Raises:
        InputError: the data has fewer than two classes.
        ConfigError: the spec does not fit the data, or cannot be built.
    """
    if len(classes) < 2:
        raise InputError(
            f"the dataset has {len(classes)} class ({', '.join(classes)}); telling classes apart takes at least two",
            mend="ingest images of another class as well",
        )
    if spec.in_channels != 3:
        raise ConfigError(
            f"model.in_channels is {spec.in_channels}; datasets hold RGB images, grey ones included",
            mend="leave model.in_channels at 3",
        )
    if spec.exits:
        raise ConfigError(
            f"model.exits is {list(spec.exits)}; a run gives early exits no loss, so they would stay as drawn",
            mend="leave model.exits out; resnet_models.adaptive.exit_logits trains them in a loop of your own",
        )
    try:
        return spec.for_images(image_size_px=min(image_shape), num_classes=len(classes))
    except SpecError as error:
        # the size is the dataset's, not a field of the model
        what = "the images' shorter side" if error.field == "image_size_px" else f"model.{error.field}"
        raise ConfigError(f"{what} is {error.value!r}: {error.reason}", mend=error.cure) from error


def draws_by_sample(spec: ModelSpec) -> bool:
    """Return whether the network drops something at random in training, and so wants the samples' keys."""
    return max(spec.drop_path_rate, spec.drop_block_rate, spec.block_dropout, spec.head_dropout) > 0.0
