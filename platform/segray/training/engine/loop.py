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


@dataclass(frozen=True)
class StepConfig:
    """Settings of the optimiser steps.

    Attributes:
        ignore_id: mask value excluded from training.
        precision: precision of the forward pass: "fp32", or "bf16" or "fp16" with autocast.
        accumulation_steps: number of forward and backward passes per step; the gradient equals that of the complete
            batch.
        frozen_modules: modules that stay in eval mode.
    """

    ignore_id: int
    precision: str = "fp32"
    accumulation_steps: int = 1
    frozen_modules: Sequence[nn.Module] = ()


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the training loop.

    Attributes:
        on_step_start: receives the 0-based number of each step before it is made.
        on_phase: receives the name of the starting phase: "data", "forward", "backward" or "update".
        is_stop_requested: returns `True` if this rank must stop. Called once per step; all ranks see the result in
            `stop_requested` of that step.
    """

    on_step_start: Callable[[int], None] = lambda _step: None
    on_phase: Callable[[str], None] = lambda _phase: None
    is_stop_requested: Callable[[], bool] = lambda: False


NO_HOOKS = Hooks()


def train_steps(
    model: nn.Module,
    loss: Loss,
    stepper: OptimizerStepper,
    batches: Iterable[Batch],
    config: StepConfig,
    *,
    lr_factor: Callable[[int], float],
    start: int = 0,
    hooks: Hooks = NO_HOOKS,
) -> Iterator[StepResult]:
    """Makes one optimiser step for each batch and yields its result.

    Args:
        model: `model(images) -> dict[str, Tensor]`, possibly wrapped in DDP, on its device.
        loss: `loss(outputs, batch, ignore_id=, normaliser=) -> (total, parts)`.
        stepper: stepper for the parameters of the model; its optimiser's groups have a `peak_lr`.
        batches: `image` (B, 3, H, W) uint8 and `mask` (B, H, W) on any device; they are moved to the model's device.
        config: settings of the steps.
        lr_factor: function from the 0-based step to the factor applied to the peak learning rates.
        start: number of steps already made.
        hooks: callbacks.
    """
    device = next(model.parameters()).device
    requested_at = perf_counter()
    hooks.on_phase("data")
    for index, batch in enumerate(prefetch_to_device(batches, device), start):
        data_wait_s = perf_counter() - requested_at
        hooks.on_phase("forward")
        train_mode(model, config.frozen_modules)
        factor = lr_factor(index)
        stepper.start(factor)
        hooks.on_step_start(index)
        normaliser, stop_requested = reduce_normalizer(batch["mask"], config.ignore_id, hooks.is_stop_requested())
        losses = _accumulate_gradients(model, loss, stepper, batch, normaliser, config, hooks.on_phase)
        hooks.on_phase("update")
        update = stepper.apply()
        yield StepResult(
            step=index + 1,
            loss=losses.pop(TOTAL_LOSS),
            loss_parts=losses,
            lr_factor=factor,
            images=len(batch["mask"]),
            data_wait_s=data_wait_s,
            grad_norm=update.norm,
            was_applied=update.finite,
            stop_requested=stop_requested,
        )
        requested_at = perf_counter()
        hooks.on_phase("data")


def _accumulate_gradients(
    model: nn.Module,
    loss: Loss,
    stepper: OptimizerStepper,
    batch: Batch,
    normaliser: Tensor,
    config: StepConfig,
    on_phase: Callable[[str], None],
) -> dict[str, Tensor]:
    """Computes the gradients of a batch in several passes. Returns the total loss and its parts, detached."""
    device, num_passes = normaliser.device, config.accumulation_steps
    losses: list[dict[str, Tensor]] = []
    for number, chunk in enumerate(_split(batch, num_passes), 1):
        is_last = number == num_passes
        on_phase("forward")
        with _gradient_sync(model, is_last), _autocast(device, config.precision):
            total, parts = loss(model(chunk["image"]), chunk, ignore_id=config.ignore_id, normaliser=normaliser)
        on_phase("backward")
        with _gradient_sync(model, is_last):
            stepper.backward(total)
        losses.append({TOTAL_LOSS: total.detach(), **parts})
    return {name: torch.stack([values[name] for values in losses]).sum() for name in losses[0]}


def train_mode(model: nn.Module, frozen: Sequence[nn.Module]) -> None:
    """Sets the model to training mode, except for its frozen modules."""
    model.train()
    for module in frozen:
        module.eval()


def _split(batch: Batch, count: int) -> list[dict[str, Any]]:
    """Splits a batch into `count` batches whose sizes differ by at most one."""
    if count == 1:
        return [dict(batch)]
    chunks = {name: value.tensor_split(count) for name, value in batch.items()}
    return [{name: values[index] for name, values in chunks.items()} for index in range(count)]


def _gradient_sync(model: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
    """Returns a context in which DDP averages gradients over ranks only if enabled: in the last pass of a step."""
    return nullcontext() if enabled or not isinstance(model, DistributedDataParallel) else model.no_sync()


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtype = AUTOCAST_DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def prefetch_to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yields the batches on the device. A GPU copies the next batch from pinned memory during computation."""
    if device.type != "cuda":
        for batch in batches:
            yield _to_device(batch, device)
        return
    copy_stream = torch.cuda.Stream(device)
    upcoming: tuple[dict[str, Any], torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            following = _to_device(batch, device), copy_stream.record_event()
        if upcoming is not None:
            yield _after_copy(*upcoming)
        upcoming = following
    if upcoming is not None:
        yield _after_copy(*upcoming)


def _to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _after_copy(batch: dict[str, Any], copied: torch.cuda.Event) -> dict[str, Any]:
    """Returns the batch for use on the current stream, which waits for the copy."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for value in batch.values():
        value.record_stream(stream)  # allocated on the other stream; prevents early reuse of the memory
    return batch


def reduce_normalizer(mask: Tensor, ignore_id: int, stop_requested: bool = False) -> tuple[Tensor, Tensor]:
    """Computes the divisor of a rank's summed loss, and combines the stop requests of all ranks.

    The divisor is the number of valid pixels in the global batch divided by the number of ranks. DDP averages the
    gradients over ranks, so with this divisor the average is the gradient of the global batch, even if images and
    ignored pixels are distributed unevenly. The pixel count is at least 1, so a fully ignored batch has loss 0.

    Returns:
        Divisor, and a bool tensor () that is true if any rank must stop.
    """
    sums = torch.stack([(mask != ignore_id).sum(), torch.full((), int(stop_requested), device=mask.device)])
    world = 1
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        dist.all_reduce(sums)
    return sums[0].clamp_min(1) / world, sums[1] > 0


class TrainMeter:
    """Accumulates step results between two reports.

    Attributes:
        skipped_steps: longest run of consecutive steps without an update that overlaps the last flushed steps.
    """

    def __init__(self) -> None:
        self.skipped_steps = range(0)
        self._current_run = range(0)
        self._reset()

    def _reset(self) -> None:
        self._steps: list[StepResult] = []
        self._start_time = perf_counter()

    def add(self, step: StepResult) -> None:
        """Adds a step."""
        self._steps.append(step)

    def flush(self) -> dict[str, float]:
        """Returns the means, sums and elapsed seconds of this rank since the last call, and resets the meter.

        The loss, its components and the gradient norm are means over the steps with an update; NaN if there are none.
        """
        applied = torch.stack([step.was_applied for step in self._steps]).tolist() if self._steps else []
        updates = [step for step, was_applied in zip(self._steps, applied, strict=True) if was_applied]
        self._find_skipped(applied)
        loss_names = self._steps[0].loss_parts if self._steps else {}
        values = {
            "loss": _mean([step.loss for step in updates]),
            **{f"loss/{name}": _mean([step.loss_parts[name] for step in updates]) for name in loss_names},
            "grad_norm": _mean([step.grad_norm for step in updates]),
            "steps": float(len(self._steps)),
            "skipped": float(len(self._steps) - len(updates)),
            "images": float(sum(step.images for step in self._steps)),
            "wait_s": sum(step.data_wait_s for step in self._steps),
            "elapsed_s": perf_counter() - self._start_time,
        }
        self._reset()
        return values

    def _find_skipped(self, applied: Sequence[bool]) -> None:
        self.skipped_steps = range(0)
        for step, was_applied in zip(self._steps, applied, strict=True):
            run_start = self._current_run.start or step.step
            self._current_run = range(0) if was_applied else range(run_start, step.step + 1)
            self.skipped_steps = max(self.skipped_steps, self._current_run, key=len)


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.stack(list(values)).double().mean()) if values else float("nan")
