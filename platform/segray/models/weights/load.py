"""Loads the parameters of a model from weights in any supported layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from segray.core.errors import CheckpointError, ModelError, did_you_mean, format_list
from segray.models.architecture import SegmentationModel
from segray.models.segformer.encoder import Encoder
from segray.models.segformer.model import HEADS, VARIANTS
from segray.models.weights import files, hub
from segray.models.weights.layouts import (
    LAYOUTS,
    SEGRAY,
    Layout,
    NameMap,
    State,
    TensorSlice,
    assemble,
    detect_layout,
)

PARTS = ("model", "encoder", "auto")
# Batch norm counter that is missing in old files and is not used.
COUNTER = ".num_batches_tracked"
MAX_BLOCKS = 64


@dataclass(frozen=True)
class LoadReport:
    """The result of loading a file into a model.

    Attributes:
        layout: layout of the names in the file.
        part: "model", or "encoder" if the head was not changed.
        loaded: segray names of the tensors that were set.
        reinitialised: segray names of the classifier tensors, if the file has a different number of classes; they keep
            their previous values, which are random in a new model.
        missing: segray names of tensors that are missing in the file and were permitted to be.
        unexpected: names in the file of tensors that the model does not use and that were permitted.
    """

    layout: str
    part: str
    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors of the {self.part} from {self.layout} weights"]
        if self.reinitialised:
            lines.append(f"different number of classes, not loaded: {', '.join(self.reinitialised)}")
        if self.missing:
            lines.append(f"missing in the file: {', '.join(self.missing[:3])} ({len(self.missing)} in total)")
        if self.unexpected:
            lines.append(f"unused in the file: {', '.join(self.unexpected[:3])} ({len(self.unexpected)} in total)")
        return "; ".join(lines)


@dataclass(frozen=True)
class _TensorSource:
    """The tensors of a file and the mapping from segray's names to them."""

    name: str
    state: State
    layout: str
    slices_of: Callable[[str], list[TensorSlice] | None]
    extras: tuple[str, ...] = ()


def load_pretrained(
    model: SegmentationModel,
    source: str | Path,
    *,
    part: str = "model",
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> LoadReport:
    """Sets a model's parameters from a file, all or none, and returns a report of the loaded tensors.

    If the number of classes differs, the classifier keeps its values and the report lists it. The file formats do not
    store layer norm epsilons; they are set when the model is built (`build_segformer(norm_eps=...)`).

    Args:
        model: model that is modified in place.
        source: a .pth or .safetensors file, a folder that contains one, or a hub id.
        part: "model"; "encoder", which does not change the head; or "auto", which loads the parts in the file.
        allow_missing: patterns (`head.bn.*`) of segray names that may be missing in the file.
        allow_unexpected: patterns of names in the file that the model may leave unused.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, is of another variant, lacks a tensor, contains an
            additional tensor, or contains a tensor of a different shape.
        ModelError: `part` is unknown, or the file's layout does not support the model's encoder or head.
    """
    if part not in PARTS:
        raise ModelError(f"part is {part!r}; expected one of {', '.join(PARTS)}{did_you_mean(part, PARTS)}.")
    weights = _open_source(model, source)
    part = _resolve_part(model, weights, part)
    ours = {key: tensor for key, tensor in model.state_dict().items() if part == "model" or model.in_encoder(key)}
    tensors = {key: _assemble_tensor(weights, key) for key in ours}
    missing = [key for key, tensor in tensors.items() if tensor is None]
    present = {key: _match_shape(tensor, ours[key]) for key, tensor in tensors.items() if tensor is not None}
    classifier = tuple(
        key for key in _classifier_names(model) if key in present and _has_other_classes(present[key], ours[key])
    )
    _require_same_shapes(weights, {key: value for key, value in present.items() if key not in classifier}, ours)
    used = {tensor_slice.key for key in ours for tensor_slice in weights.slices_of(key) or ()}
    unexpected = [key for key in weights.state if key not in used]
    optional = (*allow_missing, f"*{COUNTER}", *(f"{prefix}*" for prefix in model.training_only))
    _require_no_missing(weights, [key for key in missing if not _matches(key, optional)])
    if part == "model":
        foreign = [key for key in unexpected if not key.startswith((*weights.extras, *model.training_only))]
        _require_no_unexpected(weights, [key for key in foreign if not _matches(key, allow_unexpected)])
    with torch.no_grad():
        for key, tensor in present.items():
            if key not in classifier:
                ours[key].copy_(tensor)
    loaded = tuple(key for key in present if key not in classifier)
    return LoadReport(weights.layout, part, loaded, classifier, tuple(missing), tuple(unexpected))


def _classifier_names(model: SegmentationModel) -> list[str]:
    return [f"{module}.{leaf}" for module in model.classifiers for leaf in ("weight", "bias")]


def _open_source(model: SegmentationModel, source: str | Path) -> _TensorSource:
    path = Path(source)
    if not path.exists() and isinstance(source, str) and hub.is_hub_id(source) and path.suffix not in files.SUFFIXES:
        path = hub.download(source)
    state = files.read_tensors(path)
    ours = model.state_dict()
    if any(key in state for key in ours):
        weights = _TensorSource(str(source), state, SEGRAY, lambda key: [TensorSlice(key, 0, 1)])
    else:
        weights = _open_foreign(model, str(source), state)
    if isinstance(model.encoder, Encoder):
        _require_same_variant(weights, model.encoder)
    return weights


def _open_foreign(model: SegmentationModel, source: str, state: State) -> _TensorSource:
    detected = detect_layout(state)
    if detected is None:
        raise CheckpointError(
            f"weights {source} have tensor names of an unknown layout ({', '.join(list(state)[:3])} ...); "
            f"expected one of the layouts {', '.join((SEGRAY, *LAYOUTS))}."
        )
    name, prefix = detected
    if not isinstance(model.encoder, Encoder):
        raise ModelError(
            f"weights {source} have the layout {name}, which requires a MiT encoder; the model has another encoder."
        )
    layout = LAYOUTS[name]
    # Covers the number of blocks of every variant, so that a file of another variant is detected.
    names = NameMap(layout, (MAX_BLOCKS,) * len(model.encoder.depths), prefix)
    return _TensorSource(source, state, name, names.slices_of, layout.extras)


def _require_same_variant(weights: _TensorSource, encoder: Encoder) -> None:
    sizes = _encoder_sizes(weights, len(encoder.depths))
    expected = (encoder.dims, encoder.depths)
    if sizes != expected and all(sizes[0]):
        raise CheckpointError(
            f"weights {weights.name} belong to {_describe_sizes(*sizes)}; the model is {_describe_sizes(*expected)}."
        )


def _encoder_sizes(weights: _TensorSource, num_stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the number of channels (0 for a missing stage) and the number of blocks of each stage in a file."""
    norms = [_assemble_tensor(weights, f"encoder.stages.{stage}.norm.weight") for stage in range(num_stages)]
    blocks = [
        [
            _assemble_tensor(weights, f"encoder.stages.{stage}.blocks.{block}.norm1.weight")
            for block in range(MAX_BLOCKS)
        ]
        for stage in range(num_stages)
    ]
    dims = tuple(0 if norm is None else len(norm) for norm in norms)
    return dims, tuple(sum(block is not None for block in stage) for stage in blocks)


def _describe_sizes(dims: tuple[int, ...], depths: tuple[int, ...]) -> str:
    for name, variant in VARIANTS.items():
        if (variant.dims, variant.depths) == (dims, depths):
            return f"a {name}"
    return f"an encoder of {dims} channels and {depths} blocks"


def _resolve_part(model: SegmentationModel, weights: _TensorSource, part: str) -> str:
    heads = [key for key in model.state_dict() if not model.in_encoder(key) and not key.startswith(model.training_only)]
    has_head = any(_assemble_tensor(weights, key) is not None for key in heads)
    if part == "auto":
        part = "model" if has_head else "encoder"
    if part == "model" and weights.layout != SEGRAY and not isinstance(model.head, HEADS[_layout(weights).head_kind]):
        kind = _layout(weights).head_kind
        raise ModelError(
            f"weights {weights.name} have the head of {weights.layout}; the model has a {type(model.head).__name__}; "
            f"build the model with head={kind!r}, or load only part='encoder'."
        )
    if part == "model" and not has_head:
        raise CheckpointError(f"weights {weights.name} contain an encoder but no decode head; load part='encoder'.")
    return part


def _layout(weights: _TensorSource) -> Layout:
    return LAYOUTS[weights.layout]


def _assemble_tensor(weights: _TensorSource, key: str) -> Tensor | None:
    slices = weights.slices_of(key)
    return None if slices is None else assemble(slices, weights.state)


def _match_shape(tensor: Tensor, ours: Tensor) -> Tensor:
    """Reshapes a linear layer stored as a 1x1 convolution, or the reverse, to segray's shape.

    Other tensors are returned unchanged.
    """
    longer, shorter = sorted((tuple(tensor.shape), tuple(ours.shape)), key=len, reverse=True)
    return tensor.view_as(ours) if longer == (*shorter, 1, 1) else tensor


def _has_other_classes(tensor: Tensor, ours: Tensor) -> bool:
    return tensor.shape[0] != ours.shape[0] and tensor.shape[1:] == ours.shape[1:]


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _require_same_shapes(weights: _TensorSource, tensors: State, ours: State) -> None:
    mismatches = [
        f"{key}: found {tuple(tensor.shape)}, expected {tuple(ours[key].shape)}"
        for key, tensor in tensors.items()
        if tensor.shape != ours[key].shape
    ]
    if mismatches:
        raise CheckpointError(
            f"weights {weights.name} have {len(mismatches)} tensors with other shapes:{format_list(mismatches)}"
        )


def _require_no_missing(weights: _TensorSource, missing: Sequence[str]) -> None:
    if missing:
        raise CheckpointError(
            f"weights {weights.name} ({weights.layout}) lack {len(missing)} tensors of the model; list them in "
            f"allow_missing to load without them:{format_list(missing)}"
        )


def _require_no_unexpected(weights: _TensorSource, unexpected: Sequence[str]) -> None:
    if unexpected:
        raise CheckpointError(
            f"weights {weights.name} ({weights.layout}) contain {len(unexpected)} tensors that the model does not use; "
            f"list them in allow_unexpected to ignore them:{format_list(unexpected)}"
        )
