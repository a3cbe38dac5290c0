"""Reads named tensors from weight files without executing code stored in them."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import CheckpointError, first_line
from segray.core.parsing import summarize_error

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
    file = _find_in_folder(path) if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"weights {path} do not exist; expected a .safetensors or .pth file, or a folder.")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"weights {file} contain no tensors; expected a state dict of a SegFormer.")
    return _strip_wrappers(tensors)


def _find_in_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"folder {folder} contains no weights; expected one of the files {', '.join(FOLDER_FILES)}.")


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):  # the file is not at fault
            raise
        reason = f"{_describe_text(file)} ({summarize_error(error)})"
        raise CheckpointError(
            f"weights {file} are not a complete safetensors file{reason}; download them again."
        ) from error


def _read_pickle(file: Path) -> dict[str, Any]:
    if text := _describe_text(file):
        raise CheckpointError(f"weights {file} are not a PyTorch file{text}; download the file itself.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"weights {file} contain more than tensors and plain values, and loading them could run code "
            f"({first_line(error)}); expected a state dict; if you trust the file, save its tensors as .safetensors."
        ) from error
    except Exception as error:  # for an invalid file, torch may raise any exception type
        if is_out_of_memory(error):  # the file is not at fault
            raise
        reason = f"{summarize_error(error)}, {file.stat().st_size} bytes"
        raise CheckpointError(
            f"weights {file} are damaged or not a PyTorch file ({reason}); download them again."
        ) from error
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise CheckpointError(f"weights {file} contain a {type(content).__name__}; expected a state dict.")
    return content


def _describe_text(file: Path) -> str:
    """Returns the start of a text file, such as a saved error page, for a message; an empty string for other files."""
    with file.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if not start.startswith(_TEXT_STARTS):
        return ""
    return f" but text that starts with {start[:24].decode('ascii', 'replace')!r}"


def _strip_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if all(key.startswith(wrapper) for key in tensors):
            return _strip_wrappers({key.removeprefix(wrapper): tensor for key, tensor in tensors.items()})
    return tensors
