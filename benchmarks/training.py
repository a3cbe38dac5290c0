"""Benchmark of the complete training loop. The baselines are a loop on tensors in memory and transformers' Trainer."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from ray.train import LoggingConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import get_device
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import hf_trainer, machine
from benchmarks.interleave import Row, rate_row
from segray.cluster.resources import WorkerResources
from segray.data.augment.augmenter import Augmenter
from segray.data.crops import Batch
from segray.data.loader import training_batches
from segray.data.reader import SplitReader
from segray.data.sampler import rank_slots
from segray.models.build import build_model
from segray.models.checkpoint import CONFIG
from segray.training.heartbeat import HeartbeatSender
from segray.training.losses.build import cross_entropy
from segray.training.ray_trainer import SegrayTrainer
from segray.training.reporting import JournalCallback
from segray.training.run_spec import RunSpec, build_epoch_plan, loader_resources
from segray.training.worker import TrainWorker, configure_worker_logging

IN_MEMORY = 4  # number of batches that the bare loop trains on repeatedly
WARM_UP = 5  # untimed steps per turn, which consume prefetched batches
UNREACHABLE_STEP = 1_000_000
RESULTS = "results.pt"
PLATFORM, BARE_LOOP, HF_TRAINER = "segray", "bare_loop", "hf_trainer"
PEERS = (BARE_LOOP, HF_TRAINER)


@dataclass(frozen=True)
class TrainingCase:
    """A measured training run.

    Attributes:
        job: specification of the run; its steps, validations and checkpoints are not used.
        steps: number of steps per turn.
        turns: number of timed turns of each candidate, after one warm-up turn.
        peers: baselines, from PEERS.
    """

    job: RunSpec
    steps: int
    turns: int
    peers: Sequence[str]


@dataclass(frozen=True)
class TrainingReport:
    """The results of the benchmark.

    Attributes:
        machine: description of the machine.
        case: description of the training run.
        rows: measurements of segray compared with each peer.
        phases: fraction of the step time on rank 0, by phase.
    """

    machine: dict[str, str | int]
    case: dict[str, str | int]
    rows: list[Row]
    phases: dict[str, float]


class PhaseTimer(HeartbeatSender):
    """A heartbeat sender that accumulates the time of each phase.

    Attributes:
        seconds: seconds of each phase since the last reset.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(None, 0, 1, 1.0)
        self._device = device
        self._current_phase, self._since = "", perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.synchronizes = False

    def __call__(self, phase: str) -> None:
        """Ends the previous phase and starts `phase`. Synchronises the device first if `synchronizes` is set."""
        if self.synchronizes and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = perf_counter()
        self.seconds[self._current_phase] += now - self._since
        self._current_phase, self._since = phase, now


def run_benchmark(case: TrainingCase) -> TrainingReport:
    """Measures the images per second of all candidates, in alternating turns in the same workers."""
    placement = case.job.placement
    with TemporaryDirectory(prefix="segray-benchmark-") as folder:
        # Workers recognise a shared run folder by this file.
        (Path(folder) / CONFIG).write_text(case.job.config.model_dump_json())
        run_case = replace(case, job=replace(case.job, folder=Path(folder)))
        _trainer(run_case, placement, folder).fit()
        results = torch.load(Path(folder) / RESULTS)
    rates = results["rates"]
    rows = [rate_row("train_images", peer, rates[PLATFORM], rates[peer], "images/s") for peer in case.peers]
    total = sum(results["phases"].values())
    phases = {name: value / total for name, value in results["phases"].items()}
    return TrainingReport(machine.describe_machine(torch.device(placement.device)), _describe(case), rows, phases)


def _trainer(case: TrainingCase, placement: WorkerResources, folder: str) -> SegrayTrainer:
    resources = {"CPU": placement.cpus} | ({"GPU": placement.gpus} if placement.gpus else {})
    return SegrayTrainer(
        _work,
        train_loop_config={"case": case, "folder": folder},
        scaling_config=ScalingConfig(
            num_workers=placement.workers, use_gpu=placement.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="benchmark",
            storage_path=folder,
            callbacks=[JournalCallback(folder)],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _describe(case: TrainingCase) -> dict[str, str | int]:
    config = case.job.config
    return {
        "variant": config.model.variant,
        "crop": config.data.crop,
        "batch": config.train.batch,
        "decode": config.data.augment_on,
        "sampler": config.data.sampler,
        "log_every": config.train.log_every,
        "steps_a_turn": case.steps,
        "placement": str(case.job.placement),
    }


def _work(settings: dict[str, Any]) -> None:
    """Runs the turns. Ray Train calls this function on every worker."""
    configure_worker_logging()
    case: TrainingCase = settings["case"]
    timer = PhaseTimer(get_device())
    platform = TrainWorker(case.job, timer).steps()
    builders: dict[str, Callable[[], Callable[[], float]]] = {
        PLATFORM: lambda: partial(_rate, platform, case),
        BARE_LOOP: lambda: partial(_rate, _bare_loop(case.job), case),
        HF_TRAINER: lambda: _peer_trainer(case, settings["folder"]),
    }
    candidates = {name: builders[name]() for name in (PLATFORM, *case.peers)}
    rounds = [{name: turn() for name, turn in candidates.items()} for _ in range(case.turns + 1)]
    rates = {name: [turn_rates[name] for turn_rates in rounds[1:]] for name in candidates}
    timer.synchronizes = True
    list(islice(platform, WARM_UP))
    timer.seconds.clear()
    list(islice(platform, case.steps))
    if get_context().get_world_rank() == 0:
        torch.save({"rates": rates, "phases": dict(timer.seconds)}, Path(settings["folder"]) / RESULTS)


def _peer_trainer(case: TrainingCase, folder: str) -> Callable[[], float]:
    config, manifest = case.job.config, case.job.manifest
    source = SplitReader(config.data.root, manifest.split(config.data.train_split))
    ranks = get_context().get_world_size()
    return hf_trainer.build_hf_run(
        config, source, manifest.classes.num_classes, ranks, WARM_UP, case.steps, Path(folder) / HF_TRAINER
    )


def _bare_loop(job: RunSpec) -> Iterator[torch.Tensor]:
    """Yields the loss of each step of a minimal training loop without a platform."""
    device, classes = get_device(), job.manifest.classes
    model: nn.Module = build_model(job.config, classes).to(device).train()
    if dist.is_initialized():
        model = DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    memory = [{name: value.to(device) for name, value in batch.items()} for batch in islice(_stream(job), IN_MEMORY)]
    for batch in cycle(memory):
        loss, _ = cross_entropy(model(batch["image"]), batch, ignore_id=classes.ignore_id)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        yield loss.detach()


def _stream(job: RunSpec) -> Iterator[Batch]:
    config, context = job.config, get_context()
    source = SplitReader(config.data.root, job.manifest.split(config.data.train_split))
    slots = rank_slots(context.get_world_rank(), context.get_world_size(), config.train.batch)
    plan = build_epoch_plan(source, config, job.draws_per_row)
    augment = Augmenter(config.data, job.manifest.classes.ignore_id)
    return training_batches(source, plan, slots, 0, IN_MEMORY, augment, loader_resources(config, job.placement))


def _rate(steps: Iterator[Any], case: TrainingCase) -> float:
    """Returns the images per second of the global batch in one turn."""
    list(islice(steps, WARM_UP))
    _synchronize()
    start = perf_counter()
    list(islice(steps, case.steps))
    _synchronize()
    return case.steps * case.job.config.train.batch / (perf_counter() - start)


def _synchronize() -> None:
    if get_device().type == "cuda":
        torch.cuda.synchronize()
