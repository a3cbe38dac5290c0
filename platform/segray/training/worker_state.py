"""Model and mutable training state of one rank: creation, restore and checkpoint contents."""

import logging
import math
import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import psutil
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segray.cluster.doctor.node_probe import VISIBILITY_TIMEOUT_S
from segray.config import Config
from segray.core.errors import ClusterError
from segray.core.imports import is_import_path
from segray.core.logging import warn_on_error
from segray.core.numbers import GIB
from segray.data.sampler import row_seed
from segray.models import checkpoint
from segray.models.architecture import SegmentationModel
from segray.models.build import build_model
from segray.training import checkpoint_store
from segray.training.engine.train_state import TrainState, build_train_state
from segray.training.run_spec import BadRowPolicy, RunSpec
from segray.training.score import DEFAULT_SCORE, signed_score

NVML_INSTALLED = find_spec("pynvml") is not None
"""Whether nvidia-ml-py, which is optional, is installed. torch needs it to read the utilisation of a GPU."""
FAKE_CLUSTER_VARIABLE = "RAY_FAKE_CLUSTER"
"""Variable that Ray sets on nodes that its fake autoscaler starts on one machine for testing."""


@dataclass
class RunProgress:
    """Progress of a run.

    Attributes:
        step: number of optimiser steps made.
        best: best value of the score so far; negated if lower is better.
        stale: number of validations since the last improvement.
        owed: metrics of the current step, if its validation is pending because a preemption interrupted it.
        score: metric that `best` is a value of.
    """

    step: int = 0
    best: float = float("-inf")
    stale: int = 0
    owed: dict[str, float] | None = None
    score: str = DEFAULT_SCORE

    def validated(self, metrics: Mapping[str, float], config: Config) -> None:
        """Records the metrics of a validation. If the score of a resumed run has changed, its comparison restarts.

        A validation without a finite value of the score is no improvement.
        """
        train = config.train
        if self.score != train.score:
            self.score, self.best, self.stale = train.score, float("-inf"), 0
        value = signed_score(metrics, train.score)
        is_better = value is not None and (value > self.best + train.min_delta or self.best == float("-inf"))
        self.best = self.best if value is None else max(value, self.best)
        self.stale = 0 if is_better else self.stale + 1
        self.owed = None

    def is_over(self, config: Config) -> bool:
        """Returns `True` if training is complete: all steps are made, or the patience is exhausted."""
        train = config.train
        has_patience = train.patience is None or self.stale < train.patience or self.step < train.min_steps
        return self.owed is None and (self.step >= train.steps or not has_patience)


@dataclass
class WorkerState:
    """State of one worker of a run.

    Attributes:
        job: specification of the run.
        rank, world: rank of this worker and number of ranks.
        device: device that computes.
        train_state: model and its training state.
        progress: progress of the run.
        recent_reports: step and metrics of the last two reports.
        train_bad_rows, val_bad_rows: policies for rows that cannot be decoded.
    """

    job: RunSpec
    rank: int
    world: int
    device: torch.device
    train_state: TrainState
    progress: RunProgress = field(default_factory=RunProgress)
    recent_reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    train_bad_rows: BadRowPolicy = field(default_factory=lambda: BadRowPolicy("fail"))
    val_bad_rows: BadRowPolicy = field(default_factory=lambda: BadRowPolicy("fail"))

    def checkpoint_contents(self, metrics: dict[str, float], counts: Tensor | None) -> checkpoint.CheckpointContents:
        """Returns the contents of a checkpoint of the current state.

        Args:
            metrics: metrics of the validation at this step; empty if there was none.
            counts: (K, K) confusion counts of that validation; `None` if there was none.
        """
        meta = checkpoint.Meta(
            step=self.progress.step,
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},  # JSON has no NaN
            confusion=[] if counts is None else counts.tolist(),
            dataset_digest=self.job.manifest.digest,
            versions=checkpoint.library_versions(),
        )
        state = {**self.train_state.state_dict(), "progress": asdict(self.progress), "recent": self.recent_reports}
        model, ema = self.train_state.model, self.train_state.ema
        ema_model = None if ema is None else ema.model
        return checkpoint.snapshot(model, state, self.job.config, self.job.manifest.classes, meta, ema_model)

    def restore(self, folder: Path) -> None:
        """Restores the state from a checkpoint."""
        state = checkpoint.load_state(folder)
        self.train_state.load_state_dict(
            checkpoint.load_weights(folder, live=True), checkpoint.load_weights(folder), state
        )
        self.progress = RunProgress(**state["progress"])
        self.recent_reports = state["recent"]


def init_worker(job: RunSpec) -> WorkerState:
    """Returns the state of this worker, restored from the last complete checkpoint of the run, if any."""
    context = ray.train.get_context()
    config = job.config
    _check_storage(job)
    device = ray.train.torch.get_device() if job.placement.device == "cuda" else torch.device("cpu")
    torch.set_num_threads(job.placement.threads)
    if config.train.deterministic:
        enable_determinism()
    state = WorkerState(
        job,
        context.get_world_rank(),
        context.get_world_size(),
        device,
        build_train_state(config, _model(job), device),
        train_bad_rows=BadRowPolicy(config.data.bad_rows),
        val_bad_rows=BadRowPolicy(config.data.bad_rows),
    )
    folder = _select_checkpoint(state)
    if folder is not None:
        state.restore(folder)
    return state


def resolve_device(job: RunSpec) -> RunSpec:
    """Returns the run specification with a device that this node supports.

    A GPU run stays on the GPU if torch sees one. On a fake Ray cluster, whose GPUs exist only as numbers, it moves to
    the CPU.

    Raises:
        ClusterError: Ray assigned a GPU that torch does not see.
    """
    if job.placement.device != "cuda" or torch.cuda.is_available():
        return job
    if FAKE_CLUSTER_VARIABLE in os.environ:
        return replace(job, placement=replace(job.placement, device="cpu"))
    raise ClusterError(
        f"torch {torch.__version__} detects no GPU on node {ray.util.get_node_ip_address()}, although Ray assigned "
        "one; check nvidia-smi and that torch was built for CUDA."
    )


def _check_storage(job: RunSpec) -> None:
    """Checks that this node sees the run folder. A node that joined after the run started may not.

    Raises:
        ClusterError: the node does not see the run folder.
    """
    deadline = monotonic() + VISIBILITY_TIMEOUT_S
    while not (job.folder / checkpoint.CONFIG).exists():
        if monotonic() > deadline:
            raise ClusterError(
                f"results is {job.config.results}, and node {ray.util.get_node_ip_address()} does not see run "
                f"{job.folder.name} there; expected storage that all nodes share, such as NFS."
            )
        sleep(0.1)


def _model(job: RunSpec) -> SegmentationModel:
    """Returns the model with the initial weights, which are equal on every rank."""
    config = job.config
    torch.manual_seed(config.train.seed)
    model = build_model(config, job.manifest.classes)
    if job.initial_weights is not None:
        model.load_state_dict(ray.get(job.initial_weights))
    return model


def _select_checkpoint(state: WorkerState) -> Path | None:
    """Returns the checkpoint to resume from, as selected by rank 0, or `None`.

    Rank 0 decides for all ranks because the storage of other ranks may lag.
    """
    latest: list[Path | None] = [None]
    if state.rank == 0:
        info = checkpoint_store.latest_checkpoint(state.job.folder, logging.getLogger(__name__).warning)
        if info is not None:
            checkpoint_store.set_aside_damaged(state.job.folder, info)
            latest = [info.folder]
    if state.world > 1:
        dist.broadcast_object_list(latest, src=0, device=state.device)
    return latest[0]


def wrap_ddp(state: WorkerState) -> nn.Module:
    """Returns the model used for training: wrapped in DDP if there are several ranks."""
    model = state.train_state.training_model
    if state.world == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[state.device] if state.device.type == "cuda" else None,
        forward_sync_buffers=False,  # batch norm already keeps its running moments equal on all ranks
        gradient_as_bucket_view=True,
        # Only parts of the user may leave a parameter without a gradient. The search for them takes time in every step.
        find_unused_parameters=_has_user_parts(state.job.config),
    )


def _has_user_parts(config: Config) -> bool:
    return any(
        is_import_path(name) for name in (config.model.encoder, config.model.head, *config.loss.weight_by_loss())
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds the random generators for a step on a rank, so that a resumed run samples the same values."""
    step_seed = row_seed(seed, step, rank, copy=-1)  # copy -1 is not used by any row
    torch.manual_seed(step_seed)
    np.random.seed(step_seed)
    random.seed(step_seed)


def enable_determinism() -> None:
    """Makes torch use deterministic kernels and raise an error if an operation has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


class SystemUsage:
    """Measures the resource usage of this process.

    CPU usage is in percent of one core since the last call. Memory is in GiB. On a GPU, memory and utilisation of the
    device are also measured. Values that cannot be measured are left out, with one warning.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the reference time

    def __call__(self) -> dict[str, float]:
        """Returns the current values by name."""
        usage: dict[str, float] = {}
        with warn_on_error("the usage of the CPU cannot be measured"):
            usage["cpu_percent"] = self._process.cpu_percent()
            usage["memory_gib"] = self._process.memory_info().rss / GIB
        if self._device.type == "cuda":
            with warn_on_error("the memory of the GPU cannot be measured"):
                free, total = torch.cuda.mem_get_info(self._device)
                usage["gpu_memory_gib"] = (total - free) / GIB
            if NVML_INSTALLED:
                with warn_on_error("the utilisation of the GPU cannot be measured"):  # e.g. of a MIG instance
                    usage["gpu_percent"] = float(torch.cuda.utilization(self._device))
        return usage
