"""The training loop: plain torch over any iterable of batches, on any device, with or without DDP."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from segray.losses import Loss
from segray.optim import set_lr

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One optimiser step that was made.

    Attributes:
        step: steps made so far, this one included.
        loss: mean loss over this rank's share, detached, on the device: reading it waits for the device.
        parts: what the loss is made of, by name, likewise.
        lr: the encoder's learning rate of this step.
        images: images this rank contributed.
        wait_s: seconds this rank waited for its batch.
    """

    step: int
    loss: Tensor
    parts: Mapping[str, Tensor]
    lr: float
    images: int
    wait_s: float


def steps(
    model: nn.Module,
    loss: Loss,
    optimiser: Optimizer,
    batches: Iterable[Batch],
    *,
    lr_factor: Callable[[int], float],
    ignore_id: int,
    start: int = 0,
) -> Iterator[Step]:
    """Makes one optimiser step for each batch and yields it.

    Args:
        model: `model(images) -> dict[str, Tensor]`, possibly wrapped in DDP, on its device.
        loss: `loss(outputs, batch, ignore_id=, normaliser=) -> (total, parts)`.
        optimiser: over the model's parameters; its groups bear `peak_lr`.
        batches: `image` (B, 3, H, W) uint8 and `mask` (B, H, W), anywhere; they are moved to the model.
        lr_factor: from the 0-based step to what the peak rates are multiplied with.
        ignore_id: mask value that is not trained on.
        start: steps that were made before.
    """
    device = next(model.parameters()).device
    model.train()
    asked = perf_counter()
    for index, moved in enumerate(on_device(batches, device), start):
        waited = perf_counter() - asked
        factor = lr_factor(index)
        set_lr(optimiser, factor)
        normaliser = global_pixels(moved["mask"], ignore_id)
        total, parts = loss(model(moved["image"]), moved, ignore_id=ignore_id, normaliser=normaliser)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        lr = optimiser.param_groups[0]["lr"]
        yield Step(index + 1, total.detach(), parts, lr, len(moved["mask"]), waited)
        model.train()
        asked = perf_counter()


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yields the batches on the device; a GPU copies the next one, out of pinned memory, while it computes."""
    if device.type != "cuda":
        for batch in batches:
            yield _moved(batch, device)
        return
    copying = torch.cuda.Stream(device)
    upcoming: tuple[dict[str, Any], torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            following = _moved(batch, device), copying.record_event()
        if upcoming is not None:
            yield _arrived(*upcoming)
        upcoming = following
    if upcoming is not None:
        yield _arrived(*upcoming)


def _moved(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _arrived(moved: dict[str, Any], copied: torch.cuda.Event) -> dict[str, Any]:
    """Returns the batch for use on the current stream, which waits for its copy."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for value in moved.values():
        value.record_stream(stream)  # its memory was taken on the other stream, and must not be given away too early
    return moved


def global_pixels(mask: Tensor, ignore_id: int) -> Tensor:
    """Returns what a rank divides its summed loss by: the global batch's valid pixels over the number of ranks.

    DDP averages the ranks' gradients; so divided, their mean is that of the global batch, however unevenly the
    images and the ignored pixels are spread. At least one pixel, so that an ignored batch gives 0.
    """
    pixels = (mask != ignore_id).sum().float()
    world = 1
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        dist.all_reduce(pixels)
    return pixels.clamp_min(1) / world


class Meter:
    """Sums steps up between two reports."""

    def __init__(self) -> None:
        self._losses: list[dict[str, Tensor]] = []
        self._images = 0
        self._wait_s = 0.0
        self._since = perf_counter()

    def add(self, step: Step) -> None:
        """Counts a step in."""
        self._losses.append({"loss": step.loss} | {f"loss/{name}": part for name, part in step.parts.items()})
        self._images += step.images
        self._wait_s += step.wait_s

    def take(self) -> dict[str, float]:
        """Returns this rank's mean loss and parts of it, images and seconds since the last call, and starts anew."""
        names = self._losses[0] if self._losses else {}
        taken = {
            **{name: float(torch.stack([losses[name] for losses in self._losses]).mean()) for name in names},
            "images": float(self._images),
            "wait_s": self._wait_s,
            "elapsed_s": perf_counter() - self._since,
        }
        self.__init__()  # type: ignore[misc]
        return taken
