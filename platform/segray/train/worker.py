"""What one DDP worker does: stream its share of the plan, make steps, validate, keep checkpoints, report."""

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train.v2._internal import util as raising
from ray.train.v2._internal.execution import context as reporting
from torch import Tensor

from segray import losses, metrics
from segray.data.augment import Augment
from segray.data.pieces import Source
from segray.data.plan import slots_of
from segray.data.stream import training_batches
from segray.errors import SegrayError, TrainingError
from segray.loop import Meter, Step
from segray.quiet import quieten
from segray.store import SCORE, Writer
from segray.train.job import Job, means, training_plan
from segray.train.preemption import PreemptedError, is_announced
from segray.train.pulse import Beat
from segray.train.rank import seed_step, started, wrapped
from segray.train.report import RECENT, joined
from segray.train.system import Usage
from segray.train.validation import validate


def work(settings: dict[str, Any]) -> None:
    """Trains to the last step; the function Ray Train runs on every worker.

    Args:
        settings: {"job": Job}; Ray Train passes a dict.
    """
    quieten_worker()
    try:
        job: Job = settings["job"]
        beat = Beat(job.pulse, ray.train.get_context().get_world_rank(), job.config.train.hang_s)
        try:
            Worker(job, beat).train()
        finally:
            beat.stop()
    except (SegrayError, PreemptedError):
        logging.getLogger(raising.__name__).setLevel(logging.CRITICAL)  # its traceback; the message says it all
        raise


def quieten_worker() -> None:
    """Has a worker say what people need to know."""
    quieten()
    logging.getLogger(reporting.__file__).setLevel(logging.WARNING)  # it logs every report under its file's name
    warnings.filterwarnings("ignore", "Grad strides do not match")  # true of any channels-last convolution


class Worker:
    """One rank at work.

    Args:
        job: what the run is.
        beat: tells where this rank is.
    """

    def __init__(self, job: Job, beat: Beat) -> None:
        self._job, self._beat = job, beat
        self._rank = started(job)
        self._usage = Usage(self._rank.device)
        self._meter = Meter()
        self._writer: Writer | None = None
        if self._rank.rank == 0:
            self._writer = Writer(job.folder, job.config.train.keep_best, job.config.train.keep_every)

    def train(self) -> None:
        """Makes the steps that are left, and waits until their checkpoints are written."""
        for _ in self.steps():
            pass
        self._beat.stop()  # slow storage is no hang
        if self._writer is not None:
            self._writer.wait()

    def steps(self) -> Iterator[Step]:
        """Makes the steps that are left and yields each, once all that is due after it is done."""
        rank = self._rank
        if rank.recent:  # the controller may have died before it wrote them
            self._report()
        if rank.progress.is_over(self._job.config):
            return
        for step in self._steps():
            rank.progress.step = step.step
            self._meter.add(step)
            if step.noticed:
                self._stop_for_preemption(step)
            is_over = self._is_due(step.step) and self._conclude(step)
            yield step
            if is_over:
                return

    def _steps(self) -> Iterator[Step]:
        job, rank = self._job, self._rank
        config, classes = job.config, job.manifest.classes
        source = Source(config.data.root, job.manifest.split(config.data.train_split))
        batches = training_batches(
            source,
            training_plan(source, config, job.times),
            slots_of(rank.rank, rank.world, config.train.batch),
            rank.progress.step,
            config.train.steps,
            Augment(config.data, classes.ignore_id),
            means(config, job.placement),
            rank.bad,
        )
        return rank.learner.steps(
            wrapped(rank),
            losses.build(config.loss, classes.num_classes, source.split.class_pixels),
            batches,
            ignore_id=classes.ignore_id,
            start=rank.progress.step,
            before=self._before,
            at=self._beat,
        )

    def _before(self, step: int) -> bool:
        self._beat.step(step)
        seed_step(self._job.config.train.seed, step, self._rank.rank)
        return is_announced()

    def _is_due(self, step: int) -> bool:
        """Returns whether a report follows this step; every rank reports at the same ones."""
        return step % self._job.config.train.log_every == 0 or self._validates(step) or self._saves(step)

    def _validates(self, step: int) -> bool:
        train = self._job.config.train
        return step % train.val_every == 0 or step == train.steps

    def _saves(self, step: int) -> bool:
        every = self._job.config.train.checkpoint_every
        return every is not None and step % every == 0

    def _conclude(self, step: Step) -> bool:
        """Reports the steps since the last report, with what is due after this one; returns whether it was the last."""
        found, counts = self._found(step), None
        if self._validates(step.step):
            scores, counts = self._validate()
            found |= scores
            self._rank.progress.validated(scores[SCORE], self._job.config)
        values = self._joined(found)
        if counts is not None or self._saves(step.step):
            self._save(values, counts)
        self._report()
        return counts is not None and self._rank.progress.is_over(self._job.config)

    def _joined(self, found: dict[str, Any]) -> dict[str, float]:
        """Returns the metrics of this report, the same on every rank."""
        everyone = [found]
        if self._rank.world > 1:
            self._beat("report")
            everyone = [{} for _ in range(self._rank.world)]
            dist.all_gather_object(everyone, found)
        values = joined(everyone)
        self._rank.recent = [*self._rank.recent[-1:], (self._rank.progress.step, values)]
        return values

    def _found(self, step: Step) -> dict[str, Any]:
        taken = self._meter.take()
        train = self._job.config.train
        if len(self._meter.skipped) >= train.max_skipped:
            raise TrainingError(_diverged(self._meter.skipped, self._job))
        return {"lr": step.lr, "meter": taken, "system": self._usage(), "bad_rows": self._rank.bad.count}

    def _validate(self) -> tuple[dict[str, float], Tensor]:
        self._beat("validation")
        before = self._rank.bad_val.count
        counts = validate(self._rank, self._beat.sign)
        scores = metrics.scores(counts.numpy(), self._job.manifest.classes.names).named("val")
        return scores | {"bad_val_rows": self._rank.bad_val.count - before}, counts

    def _save(self, values: dict[str, float], counts: Tensor | None) -> None:
        if self._writer is not None:
            self._beat.sign()
            scores = {name: value for name, value in values.items() if name.startswith("val/")}
            self._writer.submit(self._rank.progress.step, self._rank.contents(scores, counts).write)

    def _report(self) -> None:
        self._beat("report")
        step, values = self._rank.recent[-1]
        ray.train.report({"step": step, **values, RECENT: self._rank.recent})
        self._meter.take()  # validating and reporting is not training

    def _stop_for_preemption(self, step: Step) -> None:
        """Keeps a checkpoint of this very step and ends this worker; the run goes on where it is placed anew."""
        self._save(self._joined(self._found(step)), None)
        if self._writer is not None:
            self._writer.wait()
        self._report()  # a barrier: no rank goes before the checkpoint is whole
        raise PreemptedError(f"a node is preempted; the run goes on from step {step.step}.")


def _diverged(skipped: range, job: Job) -> str:
    config = job.config
    if config.train.precision == "fp16":
        cause = "float16 cannot hold them; use --train.precision bf16"
    else:
        cause = f"the rate is too high for these weights; lower optim.lr, now {config.optim.lr:g}, or set optim.clip"
    return (
        f"loss or gradient was not finite in {len(skipped)} steps in a row, {skipped.start} to {skipped.stop - 1}; "
        f"the likely cause: {cause}."
    )
