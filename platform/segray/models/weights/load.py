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
            lines.append(f"other number of classes, freshly drawn: {', '.join(self.reinitialised)}")
        if self.missing:
            lines.append(f"not in the file, freshly drawn: {', '.join(self.missing[:3])} ({len(self.missing)} in all)")
        if self.unexpected:
            lines.append(f"in the file, not used: {', '.join(self.unexpected[:3])} ({len(self.unexpected)} in all)")
        return "; ".join(lines)


@dataclass(frozen=True)
class _TensorSource:
    """The tensors of a file and the mapping from segray's names to them."""

    name: str
    state: State
    layout: str
    pieces: Callable[[str], list[TensorSlice] | None]
    extras: tuple[str, ...] = ()


def load_pretrained(
    model: SegmentationModel,
    source: str | Path,
    *,
    part: str = "model",
    allow_missing: Sequence[str] = (),
    allow_left_over: Sequence[str] = (),
) -> LoadReport:
    """Sets a model's parameters from a file, all or none, and returns a report of the loaded tensors.

    If the number of classes differs, the classifier keeps its values and the report lists it. The file formats do not
    store layer norm epsilons; they are set when the model is built (`build_segformer(norm_eps=...)`).

    Args:
        model: model that is modified in place.
        source: a .pth or .safetensors file, a folder that contains one, or a hub id.
        part: "model"; "encoder", which does not change the head; or "auto", which loads the parts in the file.
        allow_missing: patterns (`head.bn.*`) of segray names that may be missing in the file.
        allow_left_over: patterns of names in the file that the model may leave unused.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, is of another variant, lacks a tensor, contains an
            additional tensor, or contains a tensor of a different shape.
        ModelError: `part` is unknown, or the file's layout does not support the model's encoder or head.
    """
    if part not in PARTS:
        raise ModelError(f"part is {part!r}; expected one of {', '.join(PARTS)}{did_you_mean(part, PARTS)}.")
    found = _opened(model, source)
    part = _part(model, found, part)
    ours = {key: tensor for key, tensor in model.state_dict().items() if part == "model" or model.in_encoder(key)}
    tensors = {key: _theirs(found, key) for key in ours}
    missing = [key for key, tensor in tensors.items() if tensor is None]
    present = {key: _shaped(tensor, ours[key]) for key, tensor in tensors.items() if tensor is not None}
    classifier = tuple(
        key for key in _classifier_keys(model) if key in present and _other_classes(present[key], ours[key])
    )
    _check_shapes(found, {key: value for key, value in present.items() if key not in classifier}, ours)
    used = {piece.key for key in ours for piece in found.pieces(key) or ()}
    left_over = [key for key in found.state if key not in used]
    optional = (*allow_missing, f"*{COUNTER}", *(f"{prefix}*" for prefix in model.training_only))
    _check_missing(found, [key for key in missing if not _named(key, optional)])
    if part == "model":
        foreign = [key for key in left_over if not key.startswith((*found.extras, *model.training_only))]
        _check_left_over(found, [key for key in foreign if not _named(key, allow_left_over)])
    with torch.no_grad():
        for key, tensor in present.items():
            if key not in classifier:
                ours[key].copy_(tensor)
    loaded = tuple(key for key in present if key not in classifier)
    return LoadReport(found.layout, part, loaded, classifier, tuple(missing), tuple(left_over))


def _classifier_keys(model: SegmentationModel) -> list[str]:
    return [f"{module}.{leaf}" for module in model.classifiers for leaf in ("weight", "bias")]


def _opened(model: SegmentationModel, source: str | Path) -> _TensorSource:
    path = Path(source)
    if not path.exists() and isinstance(source, str) and hub.is_hub_id(source) and path.suffix not in files.SUFFIXES:
        path = hub.download(source)
    state = files.read_tensors(path)
    ours = model.state_dict()
    if any(key in state for key in ours):
        found = _TensorSource(str(source), state, SEGRAY, lambda key: [TensorSlice(key, 0, 1)])
    else:
        found = _foreign(model, str(source), state)
    if isinstance(model.encoder, Encoder):
        _check_variant(found, model.encoder)
    return found


def _foreign(model: SegmentationModel, source: str, state: State) -> _TensorSource:
    known = detect_layout(state)
    if known is None:
        raise CheckpointError(
            f"weights {source} name their tensors in no way known here ({', '.join(list(state)[:3])} ...); "
            f"expected a SegFormer of {', '.join((SEGRAY, *LAYOUTS))}."
        )
    name, prefix = known
    if not isinstance(model.encoder, Encoder):
        raise ModelError(f"weights {source} are of {name}, with a MiT encoder; the model's encoder is of another kind.")
    layout = LAYOUTS[name]
    # Covers the number of blocks of every variant, so that a file of another variant is detected.
    names = NameMap(layout, (MAX_BLOCKS,) * len(model.encoder.depths), prefix)
    return _TensorSource(source, state, name, names.slices_of, layout.extras)


def _check_variant(found: _TensorSource, encoder: Encoder) -> None:
    sizes = _sizes(found, len(encoder.depths))
    wanted = (encoder.dims, encoder.depths)
    if sizes != wanted and all(sizes[0]):
        raise CheckpointError(f"weights {found.name} are of {_described(*sizes)}; the model is {_described(*wanted)}.")


def _sizes(found: _TensorSource, num_stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the number of channels (0 for a missing stage) and the number of blocks of each stage in a file."""
    norms = [_theirs(found, f"encoder.stages.{stage}.norm.weight") for stage in range(num_stages)]
    blocks = [
        [_theirs(found, f"encoder.stages.{stage}.blocks.{block}.norm1.weight") for block in range(MAX_BLOCKS)]
        for stage in range(num_stages)
    ]
    dims = tuple(0 if norm is None else len(norm) for norm in norms)
    return dims, tuple(sum(block is not None for block in stage) for stage in blocks)


def _described(dims: tuple[int, ...], depths: tuple[int, ...]) -> str:
    for name, variant in VARIANTS.items():
        if (variant.dims, variant.depths) == (dims, depths):
            return f"a {name}"
    return f"an encoder of {dims} channels and {depths} blocks"


def _part(model: SegmentationModel, found: _TensorSource, part: str) -> str:
    heads = [key for key in model.state_dict() if not model.in_encoder(key) and not key.startswith(model.training_only)]
    has_head = any(_theirs(found, key) is not None for key in heads)
    if part == "auto":
        part = "model" if has_head else "encoder"
    if part == "model" and found.layout != SEGRAY and not isinstance(model.head, HEADS[_layout(found).head_kind]):
        kind = _layout(found).head_kind
        raise ModelError(
            f"weights {found.name} have the head of {found.layout}; the model's is a {type(model.head).__name__}; "
            f"build it with head={kind!r}, or load part='encoder' only."
        )
    if part == "model" and not has_head:
        raise CheckpointError(
            f"weights {found.name} hold an encoder and no decode head; load part='encoder' to start from them."
        )
    return part


def _layout(found: _TensorSource) -> Layout:
    return LAYOUTS[found.layout]


def _theirs(found: _TensorSource, key: str) -> Tensor | None:
    pieces = found.pieces(key)
    return None if pieces is None else assemble(pieces, found.state)


def _shaped(tensor: Tensor, ours: Tensor) -> Tensor:
    """Reshapes a linear layer stored as a 1x1 convolution, or the reverse, to segray's shape.

    Other tensors are returned unchanged.
    """
    longer, shorter = sorted((tuple(tensor.shape), tuple(ours.shape)), key=len, reverse=True)
    return tensor.view_as(ours) if longer == (*shorter, 1, 1) else tensor


def _other_classes(tensor: Tensor, ours: Tensor) -> bool:
    return tensor.shape[0] != ours.shape[0] and tensor.shape[1:] == ours.shape[1:]


def _named(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _check_shapes(found: _TensorSource, tensors: State, ours: State) -> None:
    wrong = [
        f"{key}: found {tuple(tensor.shape)}, expected {tuple(ours[key].shape)}"
        for key, tensor in tensors.items()
        if tensor.shape != ours[key].shape
    ]
    if wrong:
        raise CheckpointError(f"weights {found.name} have {len(wrong)} tensors of another shape:{format_list(wrong)}")


def _check_missing(found: _TensorSource, missing: Sequence[str]) -> None:
    if missing:
        raise CheckpointError(
            f"weights {found.name} ({found.layout}) lack {len(missing)} tensors of the model; name them in "
            f"allow_missing to go on without:{format_list(missing)}"
        )


def _check_left_over(found: _TensorSource, left_over: Sequence[str]) -> None:
    if left_over:
        raise CheckpointError(
            f"weights {found.name} ({found.layout}) hold {len(left_over)} tensors that the model has no use for; name "
            f"them in allow_left_over to go on without:{format_list(left_over)}"
        )
