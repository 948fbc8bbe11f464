"""What an evaluation may be told."""

from __future__ import annotations

from pydantic import Field

from pipelines.config.strict import StrictModel, later_field, runtime_field
from pipelines.tracking import TrackingConfig


class ViewsConfig(StrictModel):
    """Test-time averaging: which views of an image the network answers from, its probabilities averaged."""

    flip: bool = False
    """Also from each view mirrored left to right; not for digits and letters."""

    shift_px: int = Field(0, ge=0, le=16)
    """Also from the image moved by so many pixels along both diagonals, the border mirrored: five views, or ten with
    `flip`; 0: not moved."""

    @property
    def is_on(self) -> bool:
        """Whether there is more than the image as it is."""
        return self.flip or self.shift_px > 0


class EvaluateConfig(StrictModel):
    """Measure one packaged network on one split of a dataset."""

    model: str = runtime_field(min_length=1)
    """The network: the out folder of train or tune, a package folder, models:/NAME/VERSION or models:/NAME@ALIAS. The
    key holds what it computes, not where it lies."""

    dataset: str = runtime_field(min_length=1)
    """Dataset folder or address, `@vN` for a version, else the newest. The key holds the split's fingerprint."""

    split: str = Field("test", min_length=1)
    """The split to measure on. A figure on `test` is worth reporting only if nothing was chosen by it."""

    views: ViewsConfig = later_field(ViewsConfig(), legacy=ViewsConfig().model_dump(mode="json"))
    """Test-time averaging, off by default: packages, scoring and the registry's gate answer from one view, so that an
    evaluation with it is no ground for registering. views.flip=true views.shift_px=1 costs ten times the time."""

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
