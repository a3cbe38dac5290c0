"""An encoder or a decode head of the user's own, named by `module:attribute`.

The contract:

- An encoder is what the attribute returns when called with `drop_path` (a rate): a module with the attributes `dims`
  (channels of its maps) and `strides` (image pixels per cell of its maps: 4, 8, 16, 32), which turns a normalised float
  image (B, 3, H, W) into as many maps (B, C_i, ceil(H / s_i), ceil(W / s_i)), finest first.
- A head is what the attribute returns when called with `dims`, `strides`, `num_classes` and `dropout`: a module
  which turns those maps into logits (B, K, ceil(H / 4), ceil(W / 4)), or into a dict that holds them as "seg" beside
  whatever else the user's loss reads ("aux", "depth", ...).
- A parameter whose name contains `norm` is not decayed; the head's parameters learn faster than the encoder's.

See: docs/plugins.md for a worked example.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segray.core.errors import ModelError
from segray.core.imports import import_callable

STRIDES = (4, 8, 16, 32)
PROBE_PX = (64, 96)


def build_encoder(reference: str, drop_path: float) -> tuple[nn.Module, tuple[int, ...]]:
    """Returns the encoder that a reference names, after trying it on a small image, and its maps' channels.

    Raises:
        ModelError: it does not keep the contract.
    """
    encoder = _module("model.encoder", reference, drop_path=drop_path)
    dims, strides = getattr(encoder, "dims", None), getattr(encoder, "strides", None)
    if dims is None or strides is None:
        raise ModelError(
            f"model.encoder {reference} has no attributes `dims` and `strides`; expected both, finest first."
        )
    if tuple(strides) != STRIDES:
        raise ModelError(f"model.encoder {reference} has the strides {tuple(strides)}; expected {STRIDES}.")
    shapes = _shapes(_probed(encoder, torch.zeros(1, 3, *PROBE_PX)))
    wanted = [(1, dim, *_cells(stride)) for dim, stride in zip(dims, strides, strict=True)]
    if shapes != wanted:
        raise ModelError(
            f"model.encoder {reference} makes maps of the shapes {shapes} of a {PROBE_PX[0]}x{PROBE_PX[1]} image; "
            f"its dims and strides promise {wanted}."
        )
    return encoder, tuple(dims)


def build_head(reference: str, dims: Sequence[int], num_classes: int, dropout: float) -> nn.Module:
    """Returns the head that a reference names, after trying it on small maps.

    Raises:
        ModelError: it does not keep the contract.
    """
    arguments = {"dims": tuple(dims), "strides": STRIDES, "num_classes": num_classes, "dropout": dropout}
    head = _module("model.head", reference, **arguments)
    outputs = _probed(head, [torch.zeros(1, dim, *_cells(stride)) for dim, stride in zip(dims, STRIDES, strict=True)])
    if isinstance(outputs, Mapping):
        outputs = outputs.get("seg")
    wanted = (1, num_classes, *_cells(STRIDES[0]))
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != wanted:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(
            f'model.head {reference} returns {found}; expected logits {wanted}, or a dict with them as "seg".'
        )
    return head


def _module(setting: str, reference: str, **arguments: Any) -> nn.Module:
    make = import_callable(setting, reference, ModelError)
    try:
        module = make(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{setting} {reference} does not take the arguments {', '.join(arguments)} ({error})."
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{setting} {reference} returns a {type(module).__name__}; expected a torch.nn.Module.")
    return module


@torch.no_grad()
def _probed(module: nn.Module, inputs: Tensor | list[Tensor]) -> object:
    was_training = module.training
    outputs: object = module.eval()(inputs)
    module.train(was_training)
    return outputs


def _shapes(maps: object) -> list[tuple[int, ...]]:
    return [tuple(level.shape) for level in maps] if isinstance(maps, Sequence) else []


def _cells(stride: int) -> tuple[int, int]:
    return -(-PROBE_PX[0] // stride), -(-PROBE_PX[1] // stride)
