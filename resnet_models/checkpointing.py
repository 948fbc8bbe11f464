"""Trading time for memory: activations inside the stem and the blocks are computed again for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_models.resnet import ResNet


def checkpoint_activations(network: ResNet, enabled: bool = True) -> None:
    """Let the stem and every block of `network` keep their input only, and compute the rest again for gradients.

    Chen et al. 2016, arXiv:1604.06174, with the blocks as segments: about a third more computing for a third of the
    activations. Results are the same to the bit: outputs, gradients, and running statistics, which move once and
    not again in the recomputation. What is dropped at random is dropped alike: by the samples' keys, or by torch's
    generator, whose state is put back. Names and values of the state dict stay; copies of the network stay
    checkpointed. Without gradients nothing changes.

    Args:
        network: Changed in place.
        enabled: False puts the blocks back as they were.
    """
    blocks = [block for stage in network.stages for block in stage.children()]
    for segment in (network.stem, *blocks):
        plain = _plain(type(segment))
        # By class, not by an own `forward` on the block: a copied block would go on calling the original's.
        segment.__class__ = _recomputing(plain) if enabled else plain


def is_checkpointed(network: ResNet) -> bool:
    """Return whether `checkpoint_activations` is on."""
    return any(isinstance(module, _Recomputing) for module in network.modules())


def saved_activation_bytes(network: nn.Module, images: Tensor) -> int:
    """Return the bytes that one forward of `network`, as it is, keeps for its backward pass.

    Each memory counts once, whoever shares it; parameters, buffers and the images themselves do not count. While a
    checkpointed block is recomputed, that block's own come on top. Running statistics move as in any forward.

    Args:
        network: In train mode, to see what training keeps.
        images: (N, C, H, W).
    """
    own = {_address(tensor) for tensor in (*network.parameters(), *network.buffers(), images)}
    kept: dict[int, Tensor] = {}  # the tensors, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            kept[_address(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(images)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del logits
    return total


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Recomputing(nn.Module):
    """Marks a block whose forward is checkpointed."""

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        """Say how to make it again: its class has no address that pickle could look up."""
        return _blank_recomputing, (_plain(type(self)),), self.__dict__


def _plain(kind: type[nn.Module]) -> type[nn.Module]:
    return kind.__mro__[2] if issubclass(kind, _Recomputing) else kind


_RECOMPUTING: dict[type[nn.Module], type[nn.Module]] = {}


def _recomputing(plain: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a block's class that recomputes, always the same one."""
    if plain not in _RECOMPUTING:
        _RECOMPUTING[plain] = _make_recomputing(plain)
    return _RECOMPUTING[plain]


def _blank_recomputing(plain: type[nn.Module]) -> nn.Module:
    kind = _recomputing(plain)
    return kind.__new__(kind)


def _make_recomputing(plain: type[nn.Module]) -> type[nn.Module]:

    def forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain.forward(self, *inputs, **options)
        if torch.compiler.is_compiling():  # recomputes values only, never what is written to buffers
            return checkpoint(plain.forward, self, *inputs, use_reentrant=False, **options)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _buffers_aside(self)

        return checkpoint(plain.forward, self, *inputs, use_reentrant=False, context_fn=contexts, **options)

    return type(plain.__name__, (_Recomputing, plain), {"forward": forward, "__doc__": plain.__doc__})


@contextmanager
def _buffers_aside(block: nn.Module) -> Iterator[None]:
    """Give the block copies of its buffers for a while: what a recomputation adds to them is thrown away."""
    owners = [(module, dict(module._buffers)) for module in block.modules() if module._buffers]
    for module, buffers in owners:
        for name, buffer in buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for module, buffers in owners:
            module._buffers.update(buffers)
