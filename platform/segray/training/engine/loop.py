"""Training loop in plain torch over any iterable of batches, on any device, with or without DDP."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segray.training.engine.optimizer_step import OptimizerStepper
from segray.training.losses.build import Loss

Batch = Mapping[str, Any]
TOTAL_LOSS = "total"
AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """Result of one optimiser step. Reading one of its tensors synchronises with the device.

    Attributes:
        step: number of steps made so far, including this one.
        loss: mean loss over the share of this rank, detached, on the device.
        loss_parts: components of the loss by name, detached, on the device.
        lr_factor: factor applied to the peak learning rates.
        images: number of images of this rank.
        data_wait_s: seconds that this rank waited for its batch.
        grad_norm: norm of the gradient before clipping.
        was_applied: `True` if the update was made, which requires a finite loss and gradient on all ranks.
        stop_requested: `True` if any rank was requested to stop before this step started.
    """

    step: int
    loss: Tensor
    loss_parts: Mapping[str, Tensor]
    lr_factor: float
    images: int
    data_wait_s: float
    grad_norm: Tensor
    was_applied: Tensor
    stop_requested: Tensor


def train_steps(
    model: nn.Module,
    loss: Loss,
    updater: OptimizerStepper,
    batches: Iterable[Batch],
    *,
    lr_factor: Callable[[int], float],
    ignore_id: int,
    start: int = 0,
    precision: str = "fp32",
    parts: int = 1,
    frozen: Sequence[nn.Module] = (),
    before: Callable[[int], bool] = lambda _step: False,
    at: Callable[[str], None] = lambda _phase: None,
) -> Iterator[StepResult]:
    """Makes one optimiser step for each batch and yields its result.

    Args:
        model: `model(images) -> dict[str, Tensor]`, possibly wrapped in DDP, on its device.
        loss: `loss(outputs, batch, ignore_id=, normaliser=) -> (total, parts)`.
        updater: stepper for the parameters of the model; its optimiser's groups have a `peak_lr`.
        batches: `image` (B, 3, H, W) uint8 and `mask` (B, H, W) on any device; they are moved to the model's device.
        lr_factor: function from the 0-based step to the factor applied to the peak learning rates.
        ignore_id: mask value excluded from training.
        start: number of steps already made.
        precision: precision of the forward pass: "fp32", or "bf16" or "fp16" with autocast.
        parts: number of forward and backward passes per step; the gradient equals that of the complete batch.
        frozen: modules that stay in eval mode.
        before: function called with the 0-based step before it is made. Returning `True` requests a stop, which
            all ranks see in `stop_requested` of the step.
        at: callback that receives the name of the starting phase: "data", "forward", "backward" or "update".
    """
    device = next(model.parameters()).device
    asked = perf_counter()
    at("data")
    for index, moved in enumerate(prefetch_to_device(batches, device), start):
        waited = perf_counter() - asked
        at("forward")
        train_mode(model, frozen)
        factor = lr_factor(index)
        updater.start(factor)
        normaliser, noticed = reduce_normalizer(moved["mask"], ignore_id, before(index))
        losses: list[dict[str, Tensor]] = []
        for number, part in enumerate(_split(moved, parts), 1):
            at("forward")
            with _unsynced(model, number < parts), _autocast(device, precision):
                outputs = model(part["image"])
                total, made_of = loss(outputs, part, ignore_id=ignore_id, normaliser=normaliser)
            at("backward")
            with _unsynced(model, number < parts):
                updater.backward(total)
            losses.append({TOTAL_LOSS: total.detach(), **made_of})
        whole = {name: torch.stack([one[name] for one in losses]).sum() for name in losses[0]}
        at("update")
        updated = updater.apply()
        yield StepResult(index + 1, whole.pop(TOTAL_LOSS), whole, factor, len(moved["mask"]), waited, *updated, noticed)
        asked = perf_counter()
        at("data")


def train_mode(model: nn.Module, frozen: Sequence[nn.Module]) -> None:
    """Sets the model to training mode, except for its frozen modules."""
    model.train()
    for module in frozen:
        module.eval()


def _split(batch: Batch, parts: int) -> list[dict[str, Any]]:
    """Splits the batch into `parts` batches whose sizes differ by at most one."""
    if parts == 1:
        return [dict(batch)]
    pieces = {name: value.tensor_split(parts) for name, value in batch.items()}
    return [{name: piece[number] for name, piece in pieces.items()} for number in range(parts)]


def _unsynced(model: nn.Module, unsynced: bool) -> AbstractContextManager[Any]:
    """Returns a context without gradient synchronisation in DDP, used for all parts of a step except the last."""
    return model.no_sync() if unsynced and isinstance(model, DistributedDataParallel) else nullcontext()


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtype = AUTOCAST_DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def prefetch_to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yields the batches on the device. A GPU copies the next batch from pinned memory during computation."""
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
    """Returns the batch for use on the current stream, which waits for the copy."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for value in moved.values():
        value.record_stream(stream)  # allocated on the other stream; prevents early reuse of the memory
    return moved


def reduce_normalizer(mask: Tensor, ignore_id: int, notice: bool = False) -> tuple[Tensor, Tensor]:
    """Computes the divisor of a rank's summed loss, and combines the notices of all ranks.

    The divisor is the number of valid pixels in the global batch divided by the number of ranks. DDP averages the
    gradients over ranks, so with this divisor the average is the gradient of the global batch, even if images and
    ignored pixels are distributed unevenly. The pixel count is at least 1, so a fully ignored batch has loss 0.

    Returns:
        Divisor, and a bool tensor () that is true if `notice` is true on any rank.
    """
    told = torch.stack([(mask != ignore_id).sum(), torch.full((), int(notice), device=mask.device)])
    world = 1
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        dist.all_reduce(told)
    return told[0].clamp_min(1) / world, told[1] > 0


class TrainMeter:
    """Accumulates step results between two reports.

    Attributes:
        skipped_steps: longest run of consecutive steps without an update that overlaps the last flushed steps.
    """

    def __init__(self) -> None:
        self.skipped_steps = range(0)
        self._run = range(0)
        self._start()

    def _start(self) -> None:
        self._steps: list[StepResult] = []
        self._since = perf_counter()

    def add(self, step: StepResult) -> None:
        """Adds a step."""
        self._steps.append(step)

    def flush(self) -> dict[str, float]:
        """Returns the means, sums and elapsed seconds of this rank since the last call, and resets the meter.

        The loss, its components and the gradient norm are means over the steps with an update; NaN if there are none.
        """
        finite = torch.stack([step.was_applied for step in self._steps]).tolist() if self._steps else []
        made = [step for step, updated in zip(self._steps, finite, strict=True) if updated]
        self._follow(finite)
        first = self._steps[0].loss_parts if self._steps else {}
        taken = {
            "loss": _mean([step.loss for step in made]),
            **{f"loss/{name}": _mean([step.loss_parts[name] for step in made]) for name in first},
            "grad_norm": _mean([step.grad_norm for step in made]),
            "steps": float(len(self._steps)),
            "skipped": float(len(self._steps) - len(made)),
            "images": float(sum(step.images for step in self._steps)),
            "wait_s": sum(step.data_wait_s for step in self._steps),
            "elapsed_s": perf_counter() - self._since,
        }
        self._start()
        return taken

    def _follow(self, finite: Sequence[bool]) -> None:
        self.skipped_steps = range(0)
        for step, updated in zip(self._steps, finite, strict=True):
            self._run = range(0) if updated else range(self._run.start or step.step, step.step + 1)
            self.skipped_steps = max(self.skipped_steps, self._run, key=len)


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.stack(list(values)).double().mean()) if values else float("nan")
