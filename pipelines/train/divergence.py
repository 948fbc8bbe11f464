"""What is said of a training whose loss broke."""

from __future__ import annotations

from pipelines.errors import DataError
from pipelines.train.config import TrainConfig
from pipelines.train.state import Cursor


class Diverged(DataError):
    """The loss is no number, or jumped."""

    @classmethod
    def at(cls, cursor: Cursor, config: TrainConfig, loss: float, *, name: str = "the loss") -> Diverged:
        """Return the error of a run that is at `cursor`, where the figure `name` has become `loss`."""
        return cls(
            f"{name} became {loss:g} before step {cursor.step}, in epoch {cursor.epoch + 1}",
            mend=f"lower optimizer.lr ({config.optimizer.lr:g}), lengthen schedule.warmup_epochs,"
            " or clip gradients with optimizer.clip_norm=1.0",
        )


class Spiked(Diverged):
    """The mean loss of an epoch is far above that of the one before."""
