"""Training through Ray Data and Ray Train beside the same steps on tensors that lie in memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import get_device

from segray import losses
from segray.benchmark import machine
from segray.benchmark.turns import Row, compared_rates
from segray.capacity import Placement
from segray.checkpoint import build_model
from segray.classes import Classes
from segray.config import Config
from segray.data.augment import Augment
from segray.data.pieces import Source
from segray.data.stream import Batch, training_batches
from segray.loop import steps
from segray.optim import adamw, lr_factor
from segray.quiet import quieten
from segray.train.job import means, training_plan
from segray.train.trainer import Trainer
from segray.update import Updater

IN_MEMORY = 4  # batches that the peer trains on, over and over


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        config: variant, crop, batch.
        source: the rows.
        classes: of the rows.
        times: how often an epoch draws each row.
        steps: of a turn.
        turns: that each gets, after one that is not counted.
        placement: what the worker gets.
    """

    config: Config
    source: Source
    classes: Classes
    times: NDArray[np.float64] | None
    steps: int
    turns: int
    placement: Placement


@dataclass(frozen=True)
class Report:
    """What one run measured; see `benchmark.ingest.Report`."""

    machine: dict[str, str | int]
    case: dict[str, str | int]
    rows: list[Row]


def measured(case: Case) -> Report:
    """Returns the images a second of one Ray Train worker, fed by the stream and from memory, in turns."""
    resources = {"CPU": case.placement.cpus} | ({"GPU": 1} if case.placement.gpus else {})
    with TemporaryDirectory() as folder:
        Trainer(
            _work,
            train_loop_config={"case": case, "folder": folder},
            scaling_config=ScalingConfig(
                num_workers=1, use_gpu=bool(case.placement.gpus), resources_per_worker=resources
            ),
            run_config=RunConfig(
                name="benchmark", storage_path=folder, logging_config=LoggingConfig(log_level="WARNING")
            ),
        ).fit()
        streamed, remembered = torch.load(Path(folder) / "rates.pt")
    config = case.config
    described: dict[str, str | int] = {
        "variant": config.model.variant,
        "crop": config.data.crop,
        "batch": config.train.batch,
        "decode": config.data.decode,
        "sampler": config.data.sampler,
        "steps_a_turn": case.steps,
        "placement": str(case.placement),
    }
    row = compared_rates("train_images", "in_memory", streamed, remembered, "images/s")
    return Report(machine.described(torch.device(case.placement.device)), described, [row])


def _work(settings: dict[str, Any]) -> None:
    """Takes the turns; the function Ray Train runs on its worker."""
    quieten()
    case: Case = settings["case"]
    torch.set_num_threads(case.placement.threads)
    torch.manual_seed(case.config.train.seed)
    model = build_model(case.config, case.classes).to(get_device())
    train = partial(
        steps,
        model,
        losses.build(case.config.loss, case.classes.num_classes),
        Updater(adamw(model, case.config.optim)),
        lr_factor=partial(lr_factor, config=case.config.optim, steps=case.config.train.steps),
        ignore_id=case.classes.ignore_id,
    )
    memory = list(islice(_stream(case, 0), IN_MEMORY))
    rates = []
    for turn in range(case.turns + 1):
        kept = (memory[index % IN_MEMORY] for index in range(case.steps + 1))
        rates.append([_rate(train, _stream(case, turn), case), _rate(train, kept, case)])
    torch.save(tuple(zip(*rates[1:], strict=True)), Path(settings["folder"]) / "rates.pt")


def _stream(case: Case, turn: int) -> Iterator[Batch]:
    config, source, batch = case.config, case.source, case.config.train.batch
    plan = training_plan(source, config, case.times)
    start = turn * (case.steps + 1)
    augment = Augment(config.data, case.classes.ignore_id)
    return training_batches(
        source, plan, range(batch), start, start + case.steps + 1, augment, means(config, case.placement)
    )


def _rate(train: Callable[[Iterable[Batch]], Iterable[Any]], batches: Iterable[Batch], case: Case) -> float:
    """Returns the images a second of the steps after the first, which waits for the stream to begin."""
    made = iter(train(batches))
    float(next(made).loss)
    start = perf_counter()
    for step in made:
        last = step
    float(last.loss)  # waits for the device
    return case.steps * case.config.train.batch / (perf_counter() - start)
