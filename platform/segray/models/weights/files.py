"""Reads named tensors from weight files without executing code stored in them."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segray.core.errors import CheckpointError

# File names that are searched for in a folder, in order of preference.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Keys under which training scripts store the weights, and prefixes that wrappers add to every name.
NESTED = ("state_dict", "model_state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.", "model.")
_TEXT_STARTS = (b"<!doctype", b"<html", b"<?xml", b"version https://git-lfs", b"{")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the named tensors of a file or folder, on the CPU, with wrapper prefixes removed.

    Raises:
        CheckpointError: the file is missing, of an unknown format or damaged, or it contains more than plain data.
    """
    file = _in_folder(path) if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"weights {path} are not there; expected a .safetensors or .pth file, or a folder.")
    found = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"weights {file} hold no tensors; expected a state dict of a SegFormer.")
    return _unwrapped(tensors)


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"folder {folder} holds no weights; expected one of {', '.join(FOLDER_FILES)} in it.")


def _safetensors(file: Path) -> dict[str, Any]:
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"weights {file} are no whole safetensors file{_looks_like(file)} ({error}); fetch them again."
        ) from error


def _pickled(file: Path) -> dict[str, Any]:
    if text := _looks_like(file):
        raise CheckpointError(f"weights {file} are no PyTorch file{text}; fetch the file itself.")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"weights {file} hold more than tensors and plain values, and may run code when read; they were not "
            f"({reason}); expected a state dict; save its tensors as .safetensors where you trust it."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"weights {file} are damaged or no PyTorch file ({reason}, {file.stat().st_size} bytes); fetch them again."
        ) from error
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        raise CheckpointError(f"weights {file} hold a {type(found).__name__}; expected a state dict of a SegFormer.")
    return found


def _looks_like(file: Path) -> str:
    """Returns `, but ...` for text files, such as a saved error page; otherwise an empty string."""
    with file.open("rb") as opened:
        start = opened.read(64).lstrip().lower()
    if not start.startswith(_TEXT_STARTS):
        return ""
    return f", but text that starts with {start[:24].decode('ascii', 'replace')!r}"


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if all(key.startswith(wrapper) for key in tensors):
            return _unwrapped({key.removeprefix(wrapper): tensor for key, tensor in tensors.items()})
    return tensors
