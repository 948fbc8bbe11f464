"""What an evaluation may be told."""

from __future__ import annotations

from pydantic import Field

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.tracking import TrackingConfig


class EvaluateConfig(StrictModel):
    """Measure one packaged network on one split of a dataset."""

    model: str = runtime_field(min_length=1)
    """The network: the out folder of train or tune, a package folder, models:/NAME/VERSION or models:/NAME@ALIAS. The
    key holds what it computes, not where it lies."""

    dataset: str = runtime_field(min_length=1)
    """Dataset folder or address, `@vN` for a version, else the newest. The key holds the split's fingerprint."""

    split: str = Field("test", min_length=1)
    """The split to measure on. A figure on `test` is worth reporting only if nothing was chosen by it."""

    num_bins: int = Field(15, ge=2, le=100)
    """Bins of confidence in the calibration error and its picture."""

    num_mistakes: int = Field(60, ge=0, le=400)
    """How many of the surest mistakes are listed and shown."""

    out: str = runtime_field("")
    """Folder of the evaluation; empty: runs/evaluate/KEY."""

    batch_size: int = runtime_field(128, ge=1, le=8192)
    """Images a forward pass; another size changes probabilities by rounding alone (below 1e-5)."""

    device: str = runtime_field("auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")
    """cpu, cuda, cuda:1 or mps; auto: a GPU when torch can use one, else the CPU. The arithmetic is float32."""

    tracking: TrackingConfig = runtime_field(default_factory=TrackingConfig)
    """Where `models:/` addresses are looked up, and where the figures are added to the model's run."""
