"""Search for the largest batch that fits on a device. Training steps run in processes that may run out of memory."""

import os
import resource
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import psutil
import torch

from benchmarks import machine
from benchmarks.memory import can_measure, fresh_process, peak_added_bytes
from segray.config import Config
from segray.core.classes import Classes
from segray.core.errors import ModelError
from segray.core.numbers import GIB
from segray.models.build import build_model
from segray.training.engine.train_state import build_train_state
from segray.training.losses.build import build_loss

STEPS = 2  # the optimiser state exists from the second step on
USABLE_FRACTION = 0.9  # usable fraction of the free memory; other parts of a worker need the rest
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "could not create a memory")


@dataclass(frozen=True)
class MaxBatchReport:
    """The results of the search.

    Attributes:
        machine: description of the machine.
        case: description of the training settings.
        peaks: peak memory in bytes of the batches that fit, by number of images.
        too_many: size of the smallest tested batch that does not fit; `None` if all fit.
        budget: available memory in bytes.
    """

    machine: dict[str, str | int]
    case: dict[str, str | int | bool]
    peaks: dict[int, int]
    too_many: int | None
    budget: int

    @property
    def largest(self) -> int:
        """Size of the largest batch that fits."""
        return max(self.peaks)


def run_benchmark(
    config: Config, num_classes: int, device: torch.device, max_images: int, log: Callable[[str], None]
) -> MaxBatchReport:
    """Searches the largest batch that fits, by doubling and then by bisection.

    Args:
        config: training configuration; gradient accumulation is disabled.
        num_classes: K.
        device: training device.
        max_images: upper bound of the batch size.
        log: callback that receives progress messages.

    Raises:
        ModelError: a batch of one image does not fit, a step fails for another reason, or the system does not report
            the memory use.
    """
    if not can_measure(device):
        raise ModelError("this system does not report the peak memory of a process; expected Linux or a GPU.")
    budget, peaks = _budget(device), dict[int, int]()
    single = config.model_copy(update={"train": config.train.model_copy(update={"accumulation_steps": 1})})

    def fits(images: int) -> bool:
        peak = _try_batch(single, num_classes, images, device, budget)
        log(f"{images:>5} images: " + ("do not fit" if peak is None else f"{peak / GIB:.2f} GiB"))
        if peak is not None:
            peaks[images] = peak
        return peak is not None

    too_many = smallest_failing(fits, max_images)
    if not peaks:
        raise ModelError(
            f"a batch of one {config.data.crop}x{config.data.crop} image does not fit in {budget / GIB:.1f} GiB; "
            f"use --model.activation_checkpointing true, a smaller data.crop or a smaller model.variant."
        )
    return MaxBatchReport(machine.describe_machine(device), _describe(config, num_classes), peaks, too_many, budget)


def smallest_failing(fits: Callable[[int], bool], max_images: int) -> int | None:
    """Returns the smallest count that does not fit, within a sixteenth, or `None` if `most` fits.

    The search assumes that all counts below one that fits also fit.
    """
    fitting, candidate = 0, 1
    while fits(candidate):
        fitting = candidate
        if candidate == max_images:
            return None
        candidate = min(2 * candidate, max_images)
    while candidate - fitting > max(1, fitting // 16):
        middle = (fitting + candidate) // 2
        fitting, candidate = (middle, candidate) if fits(middle) else (fitting, middle)
    return candidate


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available * USABLE_FRACTION)


def _try_batch(config: Config, num_classes: int, images: int, device: torch.device, budget: int) -> int | None:
    """Returns the peak memory in bytes of a few steps, or `None` if they do not fit."""
    try:
        with fresh_process() as pool:
            return pool.submit(_peak, config, num_classes, images, device, budget).result()
    except BrokenProcessPool:
        return None  # the system killed the process


def _peak(config: Config, num_classes: int, images: int, device: torch.device, budget: int) -> int | None:
    if device.type == "cpu":
        # The limit makes this process fail before the system's out-of-memory killer selects another process.
        current_bytes = psutil.Process(os.getpid()).memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (current_bytes + budget, current_bytes + budget))
    try:
        return peak_added_bytes(lambda: _train(config, num_classes, images, device), device)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(marker in str(error).lower() for marker in OUT_OF_MEMORY):
            return None
        raise ModelError(f"a training step with {images} images fails: {error}") from error


def _train(config: Config, num_classes: int, images: int, device: torch.device) -> None:
    classes = Classes.from_names([f"class_{k}" for k in range(num_classes)])
    train_state = build_train_state(config, build_model(config, classes), device)
    loss = build_loss(config.loss, num_classes, [1] * num_classes)
    size = (config.data.crop, config.data.crop)
    batch = {
        "image": torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8),
        "mask": torch.randint(0, num_classes, (images, *size)),
        "row": torch.arange(images),
    }
    for _ in train_state.train_steps(train_state.training_model, loss, [batch] * STEPS, ignore_id=classes.ignore_id):
        pass


def _describe(config: Config, num_classes: int) -> dict[str, str | int | bool]:
    return {
        "variant": config.model.variant,
        "crop": config.data.crop,
        "classes": num_classes,
        "precision": config.train.precision,
        "checkpointing": config.model.activation_checkpointing,
        "ema": config.train.ema_decay > 0,
        "aux_head": config.model.aux_head,
    }
