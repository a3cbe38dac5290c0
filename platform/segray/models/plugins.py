"""User-defined encoders and decode heads, referenced by `module:attribute`.

The contract:

- The encoder attribute is called with `drop_path` (a rate) and returns a module. The module has the attributes `dims`
  (channels of its maps) and `strides` (image pixels per map cell: 4, 8, 16, 32). It converts a normalised float image
  (B, 3, H, W) to one map (B, C_i, ceil(H / s_i), ceil(W / s_i)) per stride, finest first.
- The head attribute is called with `dims`, `strides`, `num_classes` and `dropout` and returns a module. The module
  converts the maps to logits (B, K, ceil(H / 4), ceil(W / 4)), or to a dict that contains the logits as "seg" and any
  other outputs that the user's loss reads ("aux", "depth", ...).
- The encoder may order its layers for layer-wise learning rate decay; see `models.architecture.LayeredEncoder`.
- Parameters whose name contains `norm` are excluded from weight decay. Head parameters have a higher learning rate
  than encoder parameters.

See: docs/plugins.md for a worked example.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segray.config import Config
from segray.core.errors import ModelError, RegistryError
from segray.core.imports import import_callable, is_import_path

ALLOWED_VARIABLE = "SEGRAY_PLUGINS"
"""Environment variable: comma-separated modules that a registered version may name as encoder or head."""
STRIDES = (4, 8, 16, 32)
PROBE_PX = (64, 96)


def require_allowed_modules(config: Config, subject: str) -> None:
    """Checks that the encoder and the head of a registered version are segray's, or of an allowed module.

    The settings of a version come from the registry, and an import runs code. The user's own settings and checkpoint
    folders need no permission.

    Args:
        config: settings of the version.
        subject: name of the version, for the error message.

    Raises:
        RegistryError: a module is not in the environment variable SEGRAY_PLUGINS.
    """
    allowed = {name.strip() for name in os.environ.get(ALLOWED_VARIABLE, "").split(",")}
    for setting, reference in (("model.encoder", config.model.encoder), ("model.head", config.model.head)):
        module = reference.partition(":")[0]
        if is_import_path(reference) and module not in allowed:
            raise RegistryError(
                f"{subject} cannot be loaded: its {setting} is {reference!r}, and loading it runs the code of the "
                f"module {module}; if you trust that module, set {ALLOWED_VARIABLE}={module} (comma-separated modules)."
            )


def build_encoder(reference: str, drop_path: float) -> tuple[nn.Module, tuple[int, ...]]:
    """Builds the encoder for a reference and checks its output on a small image.

    Returns:
        The encoder and the numbers of channels of its maps.

    Raises:
        ModelError: the encoder does not satisfy the contract.
    """
    encoder = _build_module("model.encoder", reference, drop_path=drop_path)
    dims, strides = getattr(encoder, "dims", None), getattr(encoder, "strides", None)
    if dims is None or strides is None:
        raise ModelError(
            f"model.encoder {reference} has no attributes `dims` and `strides`; expected both, finest map first."
        )
    if tuple(strides) != STRIDES:
        raise ModelError(f"model.encoder {reference} has the strides {tuple(strides)}; expected {STRIDES}.")
    shapes = _map_shapes(_run_probe(encoder, torch.zeros(1, 3, *PROBE_PX)))
    expected = [(1, dim, *_probe_size(stride)) for dim, stride in zip(dims, strides, strict=True)]
    if shapes != expected:
        raise ModelError(
            f"model.encoder {reference} returns maps of shapes {shapes} for a {PROBE_PX[0]}x{PROBE_PX[1]} image; "
            f"expected {expected}, according to its dims and strides."
        )
    return encoder, tuple(dims)


def build_head(reference: str, dims: Sequence[int], num_classes: int, dropout: float) -> nn.Module:
    """Builds the head for a reference and checks its output on small maps.

    Raises:
        ModelError: the head does not satisfy the contract.
    """
    arguments = {"dims": tuple(dims), "strides": STRIDES, "num_classes": num_classes, "dropout": dropout}
    head = _build_module("model.head", reference, **arguments)
    outputs = _run_probe(
        head, [torch.zeros(1, dim, *_probe_size(stride)) for dim, stride in zip(dims, STRIDES, strict=True)]
    )
    if isinstance(outputs, Mapping):
        outputs = outputs.get("seg")
    expected = (1, num_classes, *_probe_size(STRIDES[0]))
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
        actual = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(
            f"model.head {reference} returns {actual}; expected logits {expected}, or a dict that contains them as "
            '"seg".'
        )
    return head


def _build_module(setting: str, reference: str, **arguments: Any) -> nn.Module:
    factory = import_callable(setting, reference, ModelError)
    try:
        module = factory(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{setting} {reference} does not accept the arguments {', '.join(arguments)} ({error})."
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{setting} {reference} returns a {type(module).__name__}; expected a torch.nn.Module.")
    return module


@torch.no_grad()
def _run_probe(module: nn.Module, inputs: Tensor | list[Tensor]) -> object:
    was_training = module.training
    outputs: object = module.eval()(inputs)
    module.train(was_training)
    return outputs


def _map_shapes(maps: object) -> list[tuple[int, ...]]:
    return [tuple(level.shape) for level in maps] if isinstance(maps, Sequence) else []


def _probe_size(stride: int) -> tuple[int, int]:
    return -(-PROBE_PX[0] // stride), -(-PROBE_PX[1] // stride)
