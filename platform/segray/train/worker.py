"""What one DDP worker does: stream its share of the plan, make steps, validate, hand over checkpoints."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.train.v2._internal import util as raising
from ray.train.v2._internal.execution import context as reporting
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from segray import checkpoint, losses, metrics
from segray.capacity import Placement
from segray.config import Config
from segray.data.augment import Augment
from segray.data.pieces import Source
from segray.data.plan import Plan, rows_of, slots_of
from segray.data.schema import Manifest
from segray.data.stream import Means, evaluation_rows, training_batches, window_steps
from segray.errors import DataError, SegrayError, TrainingError
from segray.loop import Meter, Step, steps
from segray.optim import adamw, lr_factor
from segray.predict import count
from segray.quiet import quieten


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to know; the same for every rank.

    Attributes:
        config: the run's.
        manifest: of its dataset.
        placement: what each rank gets.
        times: how often an epoch draws each row of the training split; none draws each once.
        init: the state dict to start from; none keeps what was drawn.
    """

    config: Config
    manifest: Manifest
    placement: Placement
    times: NDArray[np.float64] | None = None
    init: ray.ObjectRef | None = None


class BadRows:
    """What becomes of rows that cannot be decoded: the first ends the run, or they are counted.

    Attributes:
        count: rows left out since the worker started, each time they were met.
    """

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self.count = 0

    def __call__(self, error: DataError) -> None:
        """Raises the error, or counts it."""
        if self._setting == "fail":
            raise error
        self.count += 1
        logging.getLogger(__name__).warning("left out: %s", error)


@dataclass
class Rank:
    """One worker's part of the run: who it is, and what it trains."""

    job: Job
    rank: int
    world: int
    device: torch.device
    model: nn.Module
    optimiser: Optimizer
    bad: BadRows
    bad_val: BadRows

    @property
    def means(self) -> Means:
        """What this rank may use to make its batches."""
        return means(self.job.config, self.job.placement)


def means(config: Config, placement: Placement) -> Means:
    """Returns what a worker may use to make its batches."""
    tasks = 2 * max(1, int(placement.spare_cpus)) if config.data.decode == "cluster" else 0
    return Means(placement.read_cpus, placement.threads, tasks, placement.device == "cuda")


def work(settings: dict[str, Any]) -> None:
    """Trains to the last step; the function Ray Train runs on every worker.

    Args:
        settings: {"job": Job}; Ray Train passes a dict.
    """
    quieten()
    logging.getLogger(reporting.__file__).setLevel(logging.WARNING)  # it logs every report under its file's name
    warnings.filterwarnings("ignore", "Grad strides do not match")  # true of any channels-last convolution
    try:
        _train(settings["job"])
    except SegrayError:
        logging.getLogger(raising.__name__).setLevel(logging.CRITICAL)  # its traceback; the message says it all
        raise


def _train(job: Job) -> None:
    rank, start = _start(job)
    trained = _distributed(rank)
    meter = Meter()
    for step in _steps(rank, trained, start):
        meter.add(step)
        if _is_due(job, step.step):
            _report(rank, step, meter)


def _start(job: Job) -> tuple[Rank, int]:
    """Returns this rank with its model and optimiser, and the steps already made."""
    context = ray.train.get_context()
    config, rank = job.config, context.get_world_rank()
    device = ray.train.torch.get_device()
    torch.set_num_threads(job.placement.threads)
    torch.manual_seed(config.train.seed)  # the same weights on every rank
    model = checkpoint.build_model(config, job.manifest.classes)
    if job.init is not None:
        model.load_state_dict(ray.get(job.init))
    model.to(device)
    optimiser = adamw(model, config.optim)
    torch.manual_seed(config.train.seed * 1_000_003 + rank + 1)  # but dropout of its own
    start = _restore(model, optimiser)
    bad = (BadRows(config.data.bad_rows) for _ in range(2))
    return Rank(job, rank, context.get_world_size(), device, model, optimiser, *bad), start


def _restore(model: nn.Module, optimiser: Optimizer) -> int:
    """Loads the checkpoint that Ray Train restarts from, if any, and returns its step."""
    found = ray.train.get_checkpoint()
    if found is None:
        return 0
    with found.as_directory() as path:
        folder = Path(path)
        model.load_state_dict(checkpoint.load_weights(folder))
        optimiser.load_state_dict(checkpoint.load_state(folder)["optimiser"])
        return checkpoint.load_meta(folder).step


def _distributed(rank: Rank) -> nn.Module:
    if rank.world == 1:
        return rank.model
    devices = [rank.device] if rank.device.type == "cuda" else None
    # The batch norm keeps its running figures equal on all ranks by itself.
    return DistributedDataParallel(
        rank.model, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
    )


def _steps(rank: Rank, trained: nn.Module, start: int) -> Iterator[Step]:
    config, manifest = rank.job.config, rank.job.manifest
    source = Source(config.data.root, manifest.split(config.data.train_split))
    batches = training_batches(
        source,
        training_plan(source, config, rank.job.times),
        slots_of(rank.rank, rank.world, config.train.batch),
        start,
        config.train.steps,
        Augment(config.data, manifest.classes.ignore_id),
        rank.means,
        rank.bad,
    )
    return steps(
        trained,
        losses.named(config.model.loss),
        rank.optimiser,
        batches,
        lr_factor=partial(lr_factor, config=config.optim, steps=config.train.steps),
        ignore_id=manifest.classes.ignore_id,
        start=start,
    )


def training_plan(source: Source, config: Config, times: NDArray[np.float64] | None) -> Plan:
    """Returns the order of a run's rows."""
    batch = config.train.batch
    return Plan(source.group_rows(), batch, config.train.seed, window_steps(source, batch), times)


def _is_due(job: Job, step: int) -> bool:
    return step % job.config.train.log_every == 0 or validates(job.config, step)


def validates(config: Config, step: int) -> bool:
    """Returns whether a validation follows this step."""
    return step % config.train.val_every == 0 or step == config.train.steps


def _report(rank: Rank, step: Step, meter: Meter) -> None:
    """Reports the steps since the last report, and a validation with its checkpoint where one is due.

    Every rank reports at the same steps: the report is collective.
    """
    found: dict[str, Any] = {"step": step.step, "lr": step.lr, "meter": meter.take()}
    if not isfinite(loss := found["meter"]["loss"]):
        lr = rank.job.config.optim.lr
        raise TrainingError(f"the loss is {loss} at step {step.step}; lower optim.lr, now {lr:g}.")
    found["bad_rows"] = {"train": rank.bad.count}
    if not validates(rank.job.config, step.step):
        ray.train.report(found)
        return
    before = rank.bad_val.count
    counts = validate(rank)
    found["bad_rows"]["val"] = rank.bad_val.count - before
    scores = metrics.scores(counts.numpy(), rank.job.manifest.classes.names).named("val")
    name = f"step-{step.step:06d}"
    if rank.rank == 0:
        folder = _save(rank, step.step, scores, counts)
        made = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            found | scores,
            checkpoint=made,
            checkpoint_dir_name=name,
            delete_local_checkpoint_after_upload=True,
        )
    else:
        ray.train.report(found | scores, checkpoint_dir_name=name)
    meter.take()  # validating is not training


def validate(rank: Rank) -> Tensor:
    """Returns the confusion counts (K, K) int64 over the whole validation split, the same on every rank."""
    config, manifest = rank.job.config, rank.job.manifest
    source = Source(config.data.root, manifest.split(config.data.val_split))
    rows = evaluation_rows(
        source,
        rows_of(rank.rank, rank.world, source.split.rows),
        config.data.short_side,
        config.eval.align,
        rank.means,
        rank.bad_val,
    )
    classes = manifest.classes
    counts = count(rank.model, rows, classes.num_classes, classes.ignore_id, rank.job.placement.threads)
    if rank.world > 1:
        counts = counts.to(rank.device)
        dist.all_reduce(counts)
    return counts.cpu()


def _save(rank: Rank, step: int, scores: dict[str, float], counts: Tensor) -> str:
    folder = tempfile.mkdtemp(prefix="segray-checkpoint-")
    meta = checkpoint.Meta(
        step=step,
        metrics=scores,
        confusion=counts.tolist(),
        dataset_digest=rank.job.manifest.digest,
        versions=checkpoint.versions(),
    )
    state = {"optimiser": rank.optimiser.state_dict()}
    checkpoint.save(Path(folder), rank.model, state, rank.job.config, rank.job.manifest.classes, meta)
    return folder
