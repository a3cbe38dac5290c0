"""The checkpoint folder: weights, training state and metadata, without pickled code.

    model.safetensors  weights for inference: the moving average if training keeps one
    live.safetensors   weights being trained, if they differ from model.safetensors
    state.pt           optimiser, scale and progress; loads with `weights_only=True`
    config.json        complete Config
    classes.json       class names and palette
    meta.json          step, metrics, counts, dataset digest, versions; written last

A folder without `meta.json` is not a valid checkpoint, because writing it did not finish.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segray.config import Config
from segray.core.classes import Classes
from segray.core.errors import CheckpointError, format_list
from segray.models.architecture import SegmentationModel
from segray.models.build import build_model

FORMAT: Final = 2
ModelT = TypeVar("ModelT", bound=BaseModel)
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
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = FORMAT
    step: int
    metrics: dict[str, float] = {}
    confusion: list[list[int]] = []
    dataset_digest: str
    versions: dict[str, str]
    files: dict[str, int] = {}


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that affect the model's outputs."""
    found = {}
    for name in ("segray", "torch", "numpy", "ray"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


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
        files = {file.name: file.stat().st_size for file in folder.iterdir()}
        (folder / META).write_text(self.meta.model_copy(update={"files": files}).model_dump_json())


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
    used = model if average is None else average
    live = None if average is None else _copied(model.state_dict())
    return CheckpointContents(_copied(used.state_dict()), live, _copied(state), config, classes, meta)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(inner) for inner in value]
    return value


def load_meta(folder: Path) -> Meta:
    """Returns the metadata of the checkpoint in `folder`.

    Raises:
        CheckpointError: the folder does not exist, or it is not a complete checkpoint.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} is no folder; expected one that holds {META}.")
    if not (folder / META).exists():
        raise CheckpointError(
            f"{folder} holds no {META}: it is no checkpoint, or writing it was cut short; name another."
        )
    try:
        return Meta.model_validate_json((folder / META).read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{folder / META} is damaged or of another version ({error}).") from error


def verify_files(folder: Path, meta: Meta) -> None:
    """Raises CheckpointError if a file is missing or its size differs from the recorded size."""
    for name, size in meta.files.items():
        held = (folder / name).stat().st_size if (folder / name).exists() else None
        if held != size:
            found = "is not there" if held is None else f"holds {held} bytes"
            raise CheckpointError(f"{folder / name} {found}, of {size}: the checkpoint is damaged.")


def load_config(folder: Path) -> Config:
    """Returns the Config of the training run of a checkpoint."""
    return _parsed(Config, folder / CONFIG)


def load_classes(folder: Path) -> Classes:
    """Returns the classes of a checkpoint."""
    return _parsed(Classes, folder / CLASSES)


def _parsed(kind: type[ModelT], file: Path) -> ModelT:
    try:
        return kind.model_validate_json(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); the checkpoint is damaged, or of another version."
        ) from error


def load_weights(folder: Path, *, live: bool = False) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint on the CPU: those for inference, or with `live` those being trained."""
    file = folder / (LIVE if live and (folder / LIVE).exists() else WEIGHTS)
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}).") from error
    return weights


def load_state(folder: Path) -> dict[str, Any]:
    """Returns the training state of a checkpoint on the CPU."""
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # for an invalid file, torch may raise any exception type
        raise CheckpointError(f"{folder / STATE} cannot be read ({error}).") from error
    return state


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
        misfits = str(error).splitlines()[1:]
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit {CONFIG} beside it:{format_list([line.strip() for line in misfits], 5)}"
        ) from error
    return model.eval()
