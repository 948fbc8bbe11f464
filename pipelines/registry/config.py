"""What a registration may be told."""

from __future__ import annotations

from pydantic import Field

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.tracking import TrackingConfig

CHOSEN_BY = ("train", "val")
"""Splits by which a network was trained or chosen: an evaluation of them is no ground for registering it."""


class RegisterConfig(StrictModel):
    """Register one trained network, and let it become champion if it is strictly better."""

    model: str = runtime_field(min_length=1)
    """The network: the out folder of train or tune, or a package folder. The key holds what it computes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Registered name; its versions are models:/NAME/1, models:/NAME/2, ..."""

    evaluation: str = runtime_field(min_length=1)
    """The out folder of `evaluate` for this very network, on rows that nothing was chosen by."""

    alias: str = Field("champion", pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    """The alias that moves to the new version if it is strictly better on the evaluated rows than who holds it."""

    dataset: str = runtime_field("")
    """Where those rows are, for measuring the present champion on them; empty: where the evaluation found them."""

    out: str = runtime_field("")
    """Folder of the registration's catalog; empty: runs/register/KEY."""

    tracking: TrackingConfig = runtime_field(default_factory=TrackingConfig)
    """The MLflow store whose registry is meant. Its address is in the key: another registry is another output."""
