"""The checkpoint folder: weights, training state and metadata, without pickled code.

    model.safetensors  weights for inference: the moving average if training keeps one
    live.safetensors   weights being trained, if they differ from model.safetensors
    state.pt           optimiser, scale and progress; loads with `weights_only=True`
    config.json        complete Config
    classes.json       class names and palette
    meta.json          step, metrics, counts, dataset digest, versions; written last

A folder without `meta.json` is not a valid checkpoint, because writing it did not finish. `meta.json` holds the size
and the SHA-256 checksum of each other file. A listing compares the sizes; a function that loads a file its checksum.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segray.config import Config
from segray.config.renamed import use_current_names
from segray.core.classes import Classes
from segray.core.device_errors import is_out_of_memory
from segray.core.errors import CheckpointError, format_list
from segray.core.parsing import parse_json, summarize_error
from segray.models.architecture import SegmentationModel
from segray.models.build import build_model

FORMAT: Final = 2
WEIGHTS, LIVE, STATE, CONFIG, CLASSES, META = (
    "model.safetensors",
    "live.safetensors",
    "state.pt",
    "config.json",
    "classes.json",
    "meta.json",
)


class Meta(BaseModel):
    """Metadata of a checkpoint.

    Attributes:
        format: version of the folder layout.
        step: number of optimiser steps.
        metrics: validation metrics at this step, by metric name; empty if there was no validation.
        confusion: confusion matrix (K, K) that the metrics were computed from; rows are the truth.
        dataset_digest: digest of the manifest of the training dataset.
        versions: versions of the libraries that wrote the checkpoint.
        files: size in bytes of each of the other files.
        checksums: hexadecimal SHA-256 of each of the other files; empty in checkpoints of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = FORMAT
    step: int
    metrics: dict[str, float] = {}
    confusion: list[list[int]] = []
    dataset_digest: str
    versions: dict[str, str]
    files: dict[str, int] = {}
    checksums: dict[str, str] = {}


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that affect the model's outputs."""
    versions = {}
    for name in ("segray", "torch", "numpy", "ray"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@dataclass(frozen=True)
class CheckpointContents:
    """The contents of a checkpoint, copied to separate memory so that training can continue while they are written."""

    weights: dict[str, Tensor]
    training_weights: dict[str, Tensor] | None
    state: dict[str, Any]
    config: Config
    classes: Classes
    meta: Meta

    def write(self, folder: Path) -> None:
        """Writes a checkpoint to an existing folder."""
        save_file(self.weights, folder / WEIGHTS)
        if self.training_weights is not None:
            save_file(self.training_weights, folder / LIVE)
        torch.save(self.state, folder / STATE)
        (folder / CONFIG).write_text(self.config.model_dump_json(indent=2))
        (folder / CLASSES).write_text(self.classes.model_dump_json(indent=2))
        written = sorted(folder.iterdir())
        update = {
            "files": {file.name: file.stat().st_size for file in written},
            "checksums": {file.name: _checksum(file) for file in written},
        }
        (folder / META).write_text(self.meta.model_copy(update=update).model_dump_json())


def snapshot(
    model: nn.Module,
    state: dict[str, Any],
    config: Config,
    classes: Classes,
    meta: Meta,
    average: nn.Module | None = None,
) -> CheckpointContents:
    """Returns CPU copies of the contents of a checkpoint.

    Args:
        model: bare model, without the DDP wrapper.
        state: tensors, numbers and strings in dicts and lists, which `weights_only=True` can load.
        config: Config of the run.
        classes: classes of the logits' channels.
        meta: metadata, written last.
        average: moving average of the model, if training keeps one.
    """
    weights = _to_cpu((model if average is None else average).state_dict())
    training_weights = None if average is None else _to_cpu(model.state_dict())
    return CheckpointContents(weights, training_weights, _to_cpu(state), config, classes, meta)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: _to_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_cpu(inner) for inner in value]
    return value


def load_meta(folder: Path) -> Meta:
    """Returns the metadata of the checkpoint in `folder`.

    Raises:
        CheckpointError: the folder does not exist, or it is not a complete checkpoint.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} is not a folder; expected a folder that contains {META}.")
    if not (folder / META).is_file():
        checkpoints = sorted(file.parent.name for file in folder.glob(f"*/{META}"))
        reason = "it is not a checkpoint, or its writing was interrupted; choose another"
        if checkpoints:
            reason = f"choose one of the checkpoints in it, for example {folder / checkpoints[-1]}"
        raise CheckpointError(f"{folder} contains no {META}; {reason}.")
    try:
        return Meta.model_validate_json((folder / META).read_bytes())
    except (OSError, ValidationError) as error:
        if is_out_of_memory(error):  # the file is not at fault
            raise
        raise CheckpointError(
            f"{folder / META} is damaged or has another format version ({summarize_error(error)})."
        ) from error


def verify_files(folder: Path, meta: Meta) -> None:
    """Raises CheckpointError if a file is missing or its size differs from the recorded size."""
    for name, size in meta.files.items():
        file = folder / name
        if not file.exists():
            raise CheckpointError(f"{file} is missing; the checkpoint is damaged.")
        if file.stat().st_size != size:
            raise CheckpointError(
                f"{file} has {file.stat().st_size} bytes; expected {size}; the checkpoint is damaged."
            )


def verify_checksums(folder: Path, meta: Meta) -> None:
    """Checks the size and the checksum of each file, as far as the metadata has them. Reads the whole checkpoint.

    Raises:
        CheckpointError: a file is missing, or its size or checksum differs from the recorded one.
        OSError: a file cannot be read.
    """
    verify_files(folder, meta)
    for name in meta.checksums:
        _verify_checksum(folder / name, meta)


def _verify_checksum(file: Path, meta: Meta) -> None:
    expected = meta.checksums.get(file.name)
    if expected is not None and (actual := _checksum(file)) != expected:
        raise CheckpointError(
            f"{file} has the SHA-256 checksum {actual[:12]}...; {META} expects {expected[:12]}...; the checkpoint is "
            "damaged: restore the file from a copy, or use another checkpoint of the run."
        )


def _verify_before_loading(file: Path) -> None:
    """Checks the checksum of a file, if the folder is a checkpoint whose metadata has one."""
    if (file.parent / META).exists():
        try:
            _verify_checksum(file, load_meta(file.parent))
        except OSError as error:
            if is_out_of_memory(error):  # the file is not at fault
                raise
            raise CheckpointError(f"{file} cannot be read ({error}).") from error


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_config(folder: Path) -> Config:
    """Returns the Config of the training run of a checkpoint. Earlier names of settings are replaced by today's."""
    with _reading(folder / CONFIG) as text:
        return Config.model_validate_json(json.dumps(use_current_names(parse_json(text))))


def load_classes(folder: Path) -> Classes:
    """Returns the classes of a checkpoint."""
    with _reading(folder / CLASSES) as text:
        return Classes.model_validate_json(text)


@contextmanager
def _reading(file: Path) -> Iterator[str]:
    """Yields the text of a file, and converts errors of reading and parsing it."""
    _verify_before_loading(_require_file(file))
    try:
        yield file.read_text(encoding="utf-8")
    except (OSError, ValueError, AttributeError) as error:
        if is_out_of_memory(error):  # the file is not at fault
            raise
        reason = summarize_error(error)
        raise CheckpointError(
            f"{file} cannot be read ({reason}); the checkpoint is damaged or has another format version."
        ) from error


def load_weights(folder: Path, *, live: bool = False) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint on the CPU: those for inference, or with `live` those being trained."""
    file = folder / (LIVE if live and (folder / LIVE).exists() else WEIGHTS)
    _verify_before_loading(_require_file(file))
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):  # the file is not at fault
            raise
        raise CheckpointError(f"{file} cannot be read ({summarize_error(error)}).") from error
    return weights


def load_state(folder: Path) -> dict[str, Any]:
    """Returns the training state of a checkpoint on the CPU."""
    _verify_before_loading(_require_file(folder / STATE))
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # for an invalid file, torch may raise any exception type
        if is_out_of_memory(error):  # the file is not at fault
            raise
        raise CheckpointError(f"{folder / STATE} cannot be read ({summarize_error(error)}).") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE} contains a {type(state).__name__}; expected a dict.")
    return state


def _require_file(file: Path) -> Path:
    """Returns the path of a file of a checkpoint.

    Raises:
        CheckpointError: the file is missing, or is a folder, a pipe or a device.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing or not a regular file; the checkpoint is damaged.")
    return file


def load_model(folder: Path) -> SegmentationModel:
    """Returns the model of a checkpoint with its weights, in eval mode, on the CPU.

    Raises:
        CheckpointError: the folder is not a complete checkpoint, or its weights do not match its config.
    """
    load_meta(folder)
    model = build_model(load_config(folder), load_classes(folder))
    try:
        model.load_state_dict(load_weights(folder))
    except RuntimeError as error:
        if is_out_of_memory(error):  # the file is not at fault
            raise
        mismatches = str(error).splitlines()[1:]
        raise CheckpointError(
            f"{folder / WEIGHTS} does not match its {CONFIG}:{format_list([line.strip() for line in mismatches], 5)}"
        ) from error
    return model.eval()
