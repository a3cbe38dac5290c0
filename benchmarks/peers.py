"""Comparable models of segray and transformers: same weights, same images, same dropout rates."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segray.core.errors import ModelError
from segray.models.architecture import SegmentationModel
from segray.models.segformer.model import MEAN, STD, build_segformer
from segray.models.weights.save import save_weights
from segray.training.losses.build import cross_entropy

OURS, TRANSFORMERS = "segray", "transformers"
PEERS = (TRANSFORMERS,)
IGNORE_ID = 255
LR = 1e-5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """A measured case.

    Attributes:
        variant: "b0" to "b5".
        size: side of the square images in px.
        batch: number of images per step.
        classes: K.
        device: "cpu" or "cuda".
        dtype: "float32", or the dtype of autocast.
    """

    variant: str
    size: int
    batch: int
    classes: int
    device: str
    dtype: str

    def images(self) -> Tensor:
        """Returns the images (B, 3, H, W) uint8, identical for every call."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, 256, (self.batch, 3, self.size, self.size), dtype=torch.uint8, generator=generator)

    def masks(self) -> Tensor:
        """Returns the masks (B, H, W) int64, identical for every call."""
        generator = torch.Generator().manual_seed(2)
        return torch.randint(0, self.classes, (self.batch, self.size, self.size), generator=generator)


@dataclass(frozen=True)
class ImplementationSpec:
    """The name of an implementation, and whether it uses torch.compile."""

    name: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.name} compiled" if self.compiled else self.name


@dataclass(frozen=True)
class Implementation:
    """A model on its device with its input.

    Attributes:
        model: model.
        forward: function that computes the logits (B, K, H/4, W/4) of the images.
        loss: function that computes the loss of the images and masks.
        case: measured case.
    """

    model: nn.Module
    forward: Callable[[], Tensor]
    loss: Callable[[], Tensor]
    case: Case

    def forward_inference(self) -> Tensor:
        """Returns the logits, in eval mode and without gradients."""
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            return self.forward()

    def train_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Performs one training step: forward, loss, backward, AdamW."""
        self.model.train()
        with self._autocast():
            loss = self.loss()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def optimiser(self) -> torch.optim.Optimizer:
        """Returns a new optimiser for the model's parameters."""
        return torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.case.dtype]
        return torch.autocast(self.case.device, dtype, enabled=dtype is not torch.float32)


def build_implementation(spec: ImplementationSpec, case: Case) -> Implementation:
    """Builds an implementation with the random weights of `case`, sampled with a fixed seed.

    Raises:
        ModelError: the name is unknown, or the library is not installed.
    """
    torch.manual_seed(0)
    ours = build_segformer(case.variant, case.classes)
    if spec.name == OURS:
        return _ours(ours.to(case.device), spec, case)
    if spec.name == TRANSFORMERS:
        return _transformers(to_transformers(ours).to(case.device), spec, case)
    raise ModelError(f"--against is {spec.name!r}; expected one of {', '.join(PEERS)}.")


def _ours(model: nn.Module, spec: ImplementationSpec, case: Case) -> Implementation:
    forward: Callable[[Tensor], dict[str, Tensor]] = torch.compile(model) if spec.compiled else model
    images, batch = case.images().to(case.device), {"mask": case.masks().to(case.device)}

    def loss() -> Tensor:
        return cross_entropy(forward(images), batch, ignore_id=IGNORE_ID)[0]

    return Implementation(model, lambda: forward(images)["seg"], loss, case)


def _transformers(model: nn.Module, spec: ImplementationSpec, case: Case) -> Implementation:
    forward: Callable[..., Any] = torch.compile(model) if spec.compiled else model
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    pixels, masks = ((case.images() - mean) / std).to(case.device), case.masks().to(case.device)

    def loss() -> Tensor:
        total: Tensor = forward(pixel_values=pixels, labels=masks).loss
        return total

    return Implementation(model, lambda: forward(pixel_values=pixels).logits, loss, case)


def to_transformers(model: SegmentationModel) -> nn.Module:
    """Converts a segray model to a transformers model, through a temporary folder in transformers' layout.

    Raises:
        ModelError: transformers is not installed.
    """
    try:
        from transformers import SegformerForSemanticSegmentation  # noqa: PLC0415 - a peer, not a dependency
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"--against transformers needs transformers ({error}); run pip install transformers."
        ) from error
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        saved = save_weights(model, Path(folder) / "model", TRANSFORMERS)
        loaded: nn.Module = SegformerForSemanticSegmentation.from_pretrained(saved)
    return loaded


def count_macs(name: str, case: Case) -> int:
    """Returns the multiply-accumulates of the forward pass of one image, including attention products.

    The operations are counted on the meta device, which performs no computation and decomposes attention into its
    products.
    """
    model = (
        build_implementation(ImplementationSpec(name), replace(case, batch=1, device="cpu", dtype="float32"))
        .model.eval()
        .to("meta")
    )
    dtype = torch.uint8 if name == OURS else torch.float32
    images = torch.zeros(1, 3, case.size, case.size, dtype=dtype, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return int(counter.get_total_flops()) // 2


def max_relative_difference(ours: Implementation, peer: Implementation) -> float:
    """Returns the largest difference between the logits of two implementations, relative to the range of `peer`'s."""
    mine, other = ours.forward_inference().float(), peer.forward_inference().float()
    return float((mine - other).abs().max() / (other.max() - other.min()))
