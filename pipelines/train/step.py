"""One optimiser step on a global batch, of which this process holds a share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from pipelines.train.batch import Batch
from pipelines.train.batch_norm import has_global_norms
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.ghosts import GhostStatistics
from pipelines.train.inputs import mixed, moved, sized
from pipelines.train.losses import RowLoss, rows_right
from pipelines.train.memory import MemoryShortage, is_out_of_memory, memory_for, reason_of
from pipelines.train.optimizer import set_rate
from pipelines.train.precision import Precision
from pipelines.train.state import TrainState
from pipelines.train.transforms import Normalise, sample_keys

_LOGGER = logging.getLogger(__name__)


class Step:
    """Forward, backward, sum of gradients, update.

    Args:
        config: the recipe.
        state: what changes.
        world: the processes that share the batch.
        precision: type of the products.
        normalise: from pixels to the network's input, on its device.
        row_loss: the loss of each row.
        channels_last: memory layout of the images.
        draws_by_sample: whether the network drops something, and so wants the samples' keys.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        world: World,
        precision: Precision,
        normalise: Normalise,
        row_loss: RowLoss,
        *,
        channels_last: bool,
        draws_by_sample: bool,
    ) -> None:
        self._config, self._state, self._world = config, state, world
        self._precision, self._normalise, self._row_loss = precision, normalise, row_loss
        self._channels_last, self._draws_by_sample = channels_last, draws_by_sample
        self._buffers: list[Tensor] = []
        self._ghosts = GhostStatistics(state.network, world)
        self.may_halve = True
        """Whether a share that does not fit into memory is cut smaller; else that is an error."""

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Take the step at a fraction of the peak rate; return this share's sum of losses and right answers, (2,)."""
        set_rate(self._state.optimizer, self._config.optimizer.lr * rate)
        self._state.optimizer.zero_grad(set_to_none=True)
        with self._precision.products():
            figures = self._gradients(batch)
        self._update()
        return torch.stack(figures).sum(0)

    @memory_for("the update of the weights")
    def _update(self) -> None:
        """Change weights by the gradient of all workers: a flat copy and the first momentum need memory too."""
        config, state = self._config, self._state
        self._ghosts.settle()
        self._world.sum_gradients(state.network)
        if config.optimizer.clip_norm:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.optimizer.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average:
            state.average.update(state.network, state.cursor.step + 1)

    @property
    def pieces(self) -> int:
        """In how many pieces a share is computed now: `accumulate`, or more where memory was short."""
        return max(self._config.accumulate, self._state.cursor.pieces)

    def _gradients(self, batch: Batch) -> list[Tensor]:
        """Add up the gradient of the share; return figures of its pieces, which are halved while memory is short."""
        while True:
            # What norms have seen in a forward pass that failed must not count twice.
            self._keep_buffers()
            try:
                return [self._gradient(piece) for piece in self._cut(batch)]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            # Outside the except block, whose exception holds on to the tensors of the pass that failed.
            self._take_smaller_pieces(batch, reason)

    def _cut(self, batch: Batch) -> list[Batch]:
        """Return the pieces of a share; one without rows only where other workers' norms wait for it."""
        pieces = _pieces(batch, self.pieces)
        if len(pieces) > 1 and not has_global_norms(self._state.network):
            pieces = [piece for piece in pieces if len(piece.targets)] or pieces[:1]
        return pieces

    def _take_smaller_pieces(self, batch: Batch, reason: str) -> None:
        """Halve the pieces, and forget what the share has added up so far.

        Raises:
            MemoryShortage: there is nothing to halve, or workers that look at a batch together would part.
        """
        state, before = self._state, self.pieces
        per_piece = _largest(batch, before)
        if not self.may_halve or per_piece <= 1:
            raise MemoryShortage(
                f"a step of {per_piece} images does not fit into memory: {reason}",
                mend="take a smaller network or smaller images, or a machine with more memory",
            )
        if self._world.size > 1 and has_global_norms(state.network):
            raise MemoryShortage(
                f"a share of {per_piece} images does not fit into memory, and batch norm looks at the batch of all"
                f" workers, which must take as many pieces each: {reason}",
                mend=f"accumulate={2 * before}, or more workers",
            )
        state.optimizer.zero_grad(set_to_none=True)
        self._ghosts.forget()
        self._restore_buffers()
        if self._normalise.device.type == "cuda":
            torch.cuda.empty_cache()
        state.cursor.pieces = 2 * before
        while _largest(batch, state.cursor.pieces) >= per_piece:  # of few ghosts, each is one piece of many
            state.cursor.pieces *= 2
        cuts_ghosts = self._ghosts.are_there and state.cursor.pieces > batch.num_units
        norms_see_pieces = has_global_norms(state.network) or cuts_ghosts
        _LOGGER.warning(
            "memory is short: worker %d computes its share of a batch in %d pieces from step %d on, the batch of %d"
            " images as before%s (%s)",
            *(self._world.rank, state.cursor.pieces, state.cursor.step + 1, self._config.global_batch_size),
            *("; batch norm sees a piece at a time" if norms_see_pieces else "", reason),
        )

    def _keep_buffers(self) -> None:
        buffers = list(self._state.network.buffers())
        if len(self._buffers) != len(buffers):
            self._buffers = [torch.empty_like(buffer) for buffer in buffers]
        for kept, buffer in zip(self._buffers, buffers, strict=True):
            kept.copy_(buffer)

    def _restore_buffers(self) -> None:
        with torch.no_grad():
            for kept, buffer in zip(self._buffers, self._state.network.buffers(), strict=True):
                buffer.copy_(kept)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, W) and targets (N,) or (N, classes) on the device."""
        return self.images(batch.pixels), self._moved(batch.targets)

    def images(self, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
        """Return uint8 (N, H, W, 3) as the network's input (N, 3, H, W), on the device."""
        return self._normalise(self._moved(pixels), channels_last=self._channels_last)

    def _sized(self, images: Tensor) -> Tensor:
        """Return images (N, 3, H, W) at the size of the running epoch."""
        return sized(images, self._config, epoch=self._state.cursor.epoch + 1)

    def _gradient(self, batch: Batch) -> Tensor:
        """Add the gradient of a piece; return its sum of losses and right answers."""
        images, targets = self._sized(self.images(batch.pixels)), self._moved(batch.targets)
        with self._ghosts.cut(batch.ghost_rows):
            with self._precision.autocast():
                if batch.partner_pixels is None:
                    logits = self._logits(images, batch)
                    losses = self._row_loss(logits, targets)
                else:
                    logits, losses = self._mixed(batch, images, targets)
            # Divided by the rows of the global batch, so that the sum over workers is the gradient of its mean loss.
            self._state.scaler.scale(losses.sum() / batch.global_rows).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return torch.stack([losses.sum(), rows_right(logits, targets).sum()])

    def _logits(self, images: Tensor, batch: Batch) -> Tensor:
        """Return the network's answer, what it drops at random keyed by the samples."""
        network: Callable[..., Tensor] = self._state.network
        if not self._draws_by_sample:
            return network(images)
        keys = sample_keys(batch.hashes, seed=self._config.seed, epoch=self._state.cursor.epoch + 1)
        return network(images, sample_keys=moved(keys, images.device))

    def _mixed(self, batch: Batch, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and row losses of images blended with their partners."""
        assert batch.partner_pixels is not None
        assert batch.partner_targets is not None
        partners, epoch = self._sized(self.images(batch.partner_pixels)), self._state.cursor.epoch + 1
        blended, shares = mixed(images, partners, batch.hashes, self._config, epoch=epoch)
        logits = self._logits(blended, batch)
        own = self._row_loss(logits, targets)
        other = self._row_loss(logits, self._moved(batch.partner_targets))
        return logits, shares * own + (1 - shares) * other

    def _moved(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
        """Return an array as a tensor on the device."""
        return moved(torch.from_numpy(array), self._normalise.device)


def _pieces(batch: Batch, number: int) -> list[Batch]:
    """Cut a share into so many pieces, some of them empty where it has little.

    Which piece a row is in hangs on its place in its lane, then on its lane, and on no number of workers: the pieces of
    all workers together hold the same rows, so that batch norm sees the same, and each worker has as much of each.
    With ghosts a piece holds whole ones; where there are fewer ghosts than pieces, each is cut into as many parts as
    makes at least that number of pieces, and a part is normalised as a ghost of its own.
    """
    if number == 1:
        return [batch]
    if batch.ghost_rows:
        return _pieces_of_ghosts(batch, number)
    if batch.num_units:
        rows = np.asarray(batch.unit_rows)
        lane, place = np.repeat(batch.units, rows), np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        in_all = -(-batch.global_rows // batch.num_units) * batch.num_units  # a lane gives one row less, or none
        piece = (place * batch.num_units + lane) * number // in_all
    else:
        piece = np.arange(len(batch.targets)) * number // max(1, len(batch.targets))
    return [batch.part(np.flatnonzero(piece == index)) for index in range(number)]


def _pieces_of_ghosts(batch: Batch, number: int) -> list[Batch]:
    parts = -(-number // batch.num_units)
    if parts > 1:
        number = parts * batch.num_units
    rows_of: list[list[int]] = [[] for _ in range(number)]
    for ghost, rows in zip(batch.units, batch.unit_rows, strict=True):
        for part in range(parts):
            piece = (ghost * parts + part) * number // (batch.num_units * parts)
            rows_of[piece].append(rows * (part + 1) // parts - rows * part // parts)
    ends = [0, *accumulate(sum(rows) for rows in rows_of)]
    return [
        replace(batch.part(slice(*span)), ghost_rows=tuple(rows))
        for rows, span in zip(rows_of, pairwise(ends), strict=True)
    ]


def _largest(batch: Batch, number: int) -> int:
    """Return the rows of the largest of so many pieces."""
    return max(len(piece.targets) for piece in _pieces(batch, number))
