"""A file of weights from elsewhere, safetensors or pickle, as named tensors. The only place that reads pickles.

A pickle is a program. torch reads it here with `weights_only`, which knows tensors and plain containers and refuses
everything else, from a memory-mapped file; what comes out is written as safetensors once, and read as that ever after.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LFS = b"version https://git-lfs"
_CONTAINERS = ("state_dict", "model_state_dict", "model", "model_ema", "state_dict_ema", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_MAX_NESTING = 4
"""Checkpoints within checkpoints: a pickle may hold itself, and would be opened for ever."""


def read_weights_file(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a file of weights by name, and what was peeled off to find them, in words.

    Raises:
        InputError: there is no such file, it is cut short, it is no file of weights, or it holds more than tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", mend="check the path") from None
    if head.startswith((_ZIP, _PICKLE)):
        return _peeled(_read_pickle(path, is_zip=head.startswith(_ZIP)), path)
    if head[8:9] == b"{":
        return _peeled(_read_safetensors(path), path)
    if head.startswith(_LFS):
        raise InputError(f"{path} is a pointer of Git LFS, not the weights", mend="fetch the file itself: git lfs pull")
    raise InputError(
        f"{path} is neither a safetensors file nor what torch.save writes; it begins with {head[:8]!r}",
        mend="check the download: a page that asks for a login is often saved in a file's place",
    )


def _read_safetensors(path: Path) -> Any:
    from resnet_models.state_dict import WeightsError, unpack_weights

    try:
        return unpack_weights(path.read_bytes())
    except WeightsError as error:
        raise InputError(str(error), where=str(path), mend="fetch the file again: it was cut or damaged") from error


def _read_pickle(path: Path, *, is_zip: bool) -> Any:
    import torch

    if is_zip:
        _refuse_compressed(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_zip else None)
    except Exception as error:  # noqa: BLE001 - a stranger's file can make the reader raise anything
        text = " ".join(str(error).split())
        if found := re.search(r"(?:GLOBAL|global:?|class) `?([\w.]*\w\.\w+)`?", text):
            raise InputError(
                f"{path} holds more than tensors: it names {found[1]}, which reading it would have to import and run",
                mend="do not load it; ask its author for a state dict (torch.save(model.state_dict(), FILE)) or for "
                "safetensors",
            ) from None
        raise InputError(
            f"{path} is no whole file of tensors: {text[:200]}", mend="fetch the file again: it was cut or damaged"
        ) from None


def _refuse_compressed(path: Path) -> None:
    """Refuse an archive that grows when it is read: `torch.save` compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    except zipfile.BadZipFile:
        return  # a cut file: torch's reader says so
    if packed:
        raise InputError(
            f"{path} is compressed: its {packed[0].filename} grows to {packed[0].file_size} bytes when it is read",
            mend="do not load it; what torch.save writes is not compressed",
        )


def _peeled(value: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the state dict inside a checkpoint, without the prefixes that wrappers put before every name."""
    notes: list[str] = []
    while isinstance(value, dict):
        inner = next((name for name in _CONTAINERS if isinstance(value.get(name), dict)), None)
        if inner is None:
            break
        if len(notes) == _MAX_NESTING:
            raise InputError(
                f"{path} holds checkpoints within checkpoints, more than {_MAX_NESTING} deep",
                mend="give a file with a state dict alone",
            )
        notes.append(f"taken from its {inner}")
        value = value[inner]
    if not isinstance(value, dict) or not value:
        raise InputError(
            f"{path} holds a {type(value).__name__}, not tensors by name", mend="give a file with a state dict"
        )
    state = {str(name): tensor for name, tensor in value.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            notes.append(f"prefix {prefix} taken off")
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        _check_tensor(name, tensor, path)
    return state, tuple(notes)


def _check_tensor(name: str, tensor: Any, path: Path) -> None:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise InputError(
            f"{path} holds a {type(tensor).__name__} under {name!r}, where a tensor belongs",
            mend="give a file with a state dict alone",
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{name} in {path} is a {tensor.layout} tensor; weights are dense", mend="save it dense")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{name} in {path} claims {tensor.numel()} values and brings {tensor.untyped_storage().nbytes()} bytes",
            mend="do not use the file: its tensors would grow in memory when they are copied",
        )
