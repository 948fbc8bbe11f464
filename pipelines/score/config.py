"""What a scoring run may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.ray_runtime import RayConfig
from pipelines.tracking import TrackingConfig


class ScoreConfig(StrictModel):
    """Score every image of an archive or folder with one packaged network."""

    archive: str = runtime_field(min_length=1)
    """Where the images are: a folder, a .zip or a .tar, local or in an object store. Its listing is in the key."""

    source_name: str = runtime_field("")
    """Name of the source, part of every image_id; empty: the last component of `archive`. The key holds the name."""

    model: str = runtime_field(min_length=1)
    """The network: models:/NAME@ALIAS, models:/NAME/VERSION or a package folder. The key holds the version's hash."""

    model_sha256: str = runtime_field("", pattern="^([0-9a-f]{64})?$")
    """Expected SHA-256 of the weights; empty: whatever the registry names. With a version in `model` and this set,
    planning asks no registry."""

    out: str = runtime_field("")
    """Folder of the predictions; empty: runs/score/KEY."""

    top_k: int = Field(default=5, ge=1, le=1000)
    """How many classes a row names, most probable first."""

    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the forward pass; probabilities are float32 either way."""

    max_unscored_fraction: float = runtime_field(1.0, ge=0.0, le=1.0)
    """Largest share of members without a prediction that may still be published."""

    batch_size: int = runtime_field(64, ge=1, le=8192)
    """Images a forward pass; another size changes probabilities by rounding alone (below 1e-5)."""

    num_actors: int = runtime_field(0, ge=0, le=10000)
    """Scoring processes; 0: one for each CPU of the cluster (one for each GPU with `use_gpu`)."""

    use_gpu: bool = runtime_field(False)
    """Whether each process takes a GPU; refused where the cluster has none."""

    tracking: TrackingConfig = runtime_field(default_factory=TrackingConfig)
    """Where `models:/` addresses are looked up."""

    ray: RayConfig = runtime_field(default_factory=RayConfig)
    """The Ray cluster that does the work."""
