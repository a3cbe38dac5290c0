"""Training loop of one DDP worker: loading, optimiser steps, validation, checkpoints and reports."""

import logging
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import ray
import ray.train
import torch.distributed as dist
from torch import Tensor

from segray.core.device_errors import is_out_of_memory
from segray.core.errors import RunStoppedError, SegrayError, TrainingError
from segray.core.logging import silence_libraries
from segray.data.augment.augmenter import Augmenter
from segray.data.loader import training_batches
from segray.data.reader import SplitReader
from segray.data.sampler import rank_slots
from segray.evaluation.metrics.scores import scores_from_confusion
from segray.training.checkpoint_store import CheckpointWriter
from segray.training.engine.loop import Hooks, StepResult, TrainMeter
from segray.training.failure_policy import PreemptedError, is_preemption_announced
from segray.training.heartbeat import HeartbeatSender
from segray.training.losses.build import build_loss
from segray.training.memory_errors import VALIDATION, out_of_memory_error
from segray.training.ray_internals import ERROR_LOGGER, REPORT_LOGGER
from segray.training.reporting import LATEST_CHECKPOINT, RECENT_REPORTS, aggregate_reports
from segray.training.run_spec import RunSpec, build_epoch_plan, loader_resources
from segray.training.score import MINIMISED
from segray.training.validation import validate
from segray.training.worker_state import SystemUsage, init_worker, resolve_device, seed_step, wrap_ddp


def train_loop_per_worker(settings: dict[str, Any]) -> None:
    """Trains to the last step. Ray Train runs this function on every worker.

    Args:
        settings: {"job": reference to a `RunSpec`}; Ray Train passes a dict.
    """
    configure_worker_logging()
    try:
        job: RunSpec = resolve_device(ray.get(settings["job"]))
        context = ray.train.get_context()
        heartbeat = HeartbeatSender(
            job.heartbeat_monitor, context.get_world_rank(), context.get_world_size(), job.config.train.hang_timeout_s
        )
        try:
            TrainWorker(job, heartbeat).train()
        except Exception as error:  # each library has its own error for exhausted memory
            if isinstance(error, SegrayError) or not is_out_of_memory(error):
                raise
            raise out_of_memory_error(job, heartbeat.phase, error) from error
        finally:
            heartbeat.stop()
    except (SegrayError, PreemptedError):
        _suppress_traceback()
        raise


def _suppress_traceback() -> None:
    logging.getLogger(ERROR_LOGGER).setLevel(logging.CRITICAL)  # the message is sufficient


def configure_worker_logging() -> None:
    """Limits the log output of a worker to messages that matter to the user."""
    silence_libraries()
    logging.getLogger(REPORT_LOGGER).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # applies to every channels-last convolution
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")  # plug-ins may use all of theirs


class TrainWorker:
    """Training loop of one rank.

    Args:
        job: specification of the run.
        heartbeat: heartbeat sender of this rank.
    """

    def __init__(self, job: RunSpec, heartbeat: HeartbeatSender) -> None:
        self._job, self._heartbeat = job, heartbeat
        self._state = init_worker(job)
        self._usage = SystemUsage(self._state.device)
        self._meter = TrainMeter()
        self._writer: CheckpointWriter | None = None
        if self._state.rank == 0:
            train = job.config.train
            self._writer = CheckpointWriter(job.folder, train.keep_best, train.keep_every, train.score)

    def train(self) -> None:
        """Makes the remaining steps and waits until their checkpoints are written."""
        for _ in self.steps():
            pass
        self._heartbeat.mark_idle()  # slow storage does not count as a hang
        if self._writer is not None:
            self._writer.wait()

    def steps(self) -> Iterator[StepResult]:
        """Makes the remaining steps.

        Yields each step after its report, validation and checkpoint, if any of these is due.
        """
        state = self._state
        if state.recent_reports:  # the controller may have died before writing them
            self._report()
        if state.progress.owed is not None:
            self._validate(state.progress.owed)
        if state.progress.is_over(self._job.config):
            return
        stop_requested: Tensor | None = None
        for step in self._steps():
            state.progress.step = step.step
            self._meter.add(step)
            # Check the flag of the previous step. Reading the flag of this step would stall the device.
            if stop_requested is not None and stop_requested:
                self._stop(step)
            stop_requested = step.stop_requested
            is_over = self._is_report_due(step.step) and self._finish_step(step)
            yield step
            if is_over:
                return

    def _steps(self) -> Iterator[StepResult]:
        job, state = self._job, self._state
        config, classes = job.config, job.manifest.classes
        source = SplitReader(config.data.root, job.manifest.split(config.data.train_split))
        batches = training_batches(
            source,
            build_epoch_plan(source, config, job.draws_per_row),
            rank_slots(state.rank, state.world, config.train.batch),
            state.progress.step,
            config.train.steps,
            Augmenter(config.data, classes.ignore_id, classes.num_classes),
            loader_resources(config, job.placement, job.shared_splits.get(config.data.train_split)),
            state.train_bad_rows,
        )
        return state.train_state.train_steps(
            wrap_ddp(state),
            build_loss(config.loss, classes.num_classes, source.split.class_pixels),
            batches,
            ignore_id=classes.ignore_id,
            start=state.progress.step,
            hooks=Hooks(self._start_step, self._heartbeat, self._must_stop),
        )

    def _start_step(self, step: int) -> None:
        self._heartbeat.step(step)
        seed_step(self._job.config.train.seed, step, self._state.rank)

    def _must_stop(self) -> bool:
        return self._heartbeat.stop_requested or is_preemption_announced()

    def _is_report_due(self, step: int) -> bool:
        """Returns `True` if a report follows this step. All ranks report at the same steps."""
        return (
            step % self._job.config.train.log_every == 0
            or self._is_validation_due(step)
            or self._is_checkpoint_due(step)
        )

    def _is_validation_due(self, step: int) -> bool:
        train = self._job.config.train
        return step % train.val_every == 0 or step == train.steps

    def _is_checkpoint_due(self, step: int) -> bool:
        every = self._job.config.train.checkpoint_every
        return every is not None and step % every == 0

    def _finish_step(self, step: StepResult) -> bool:
        """Reports the steps since the last report, and validates or saves a checkpoint if due.

        Returns:
            `True` if this was the last step.
        """
        values = self._aggregate_metrics(step)
        if self._is_validation_due(step.step):
            return self._validate(values)
        self._queue_report(values)
        if self._is_checkpoint_due(step.step):
            self._save({}, None)
        self._report()
        return False

    def _validate(self, values: dict[str, float]) -> bool:
        """Validates after the last step and reports the result.

        Args:
            values: other metrics of the step.

        Returns:
            `True` if the run is over.
        """
        progress, config = self._state.progress, self._job.config
        progress.owed = values
        self._heartbeat(VALIDATION)
        result = validate(self._state, self._heartbeat.beat, self._must_stop)
        if result is None:
            self._save_and_exit()
        scores = scores_from_confusion(result.counts.numpy(), self._job.manifest.classes.names).as_metrics("val")
        progress.validated(values | scores, config)
        self._queue_report(values | scores | ({"val/bad_rows": result.bad_rows} if result.bad_rows else {}))
        self._save(scores | {name: values[name] for name in MINIMISED if name in values}, result.counts)
        self._report()
        return progress.is_over(config)

    def _aggregate_metrics(self, step: StepResult) -> dict[str, float]:
        """Returns the metrics of the steps since the last report. They are equal on every rank."""
        report = self._local_report(step)
        reports = [report]
        if self._state.world > 1:
            self._heartbeat("report")
            reports = [{} for _ in range(self._state.world)]
            dist.all_gather_object(reports, report)
        return aggregate_reports(reports)

    def _local_report(self, step: StepResult) -> dict[str, Any]:
        meter = self._meter.flush()
        config = self._job.config
        if len(self._meter.skipped_steps) >= config.train.max_nonfinite_steps:
            raise TrainingError(_divergence_message(self._meter.skipped_steps, self._job))
        lr = config.optim.lr * step.lr_factor
        return {"lr": lr, "meter": meter, "system": self._usage(), "bad_rows": self._state.train_bad_rows.count}

    def _queue_report(self, values: dict[str, float]) -> None:
        """Queues metrics of the last step for the next report. The previous report is kept and sent again."""
        self._state.recent_reports = [*self._state.recent_reports[-1:], (self._state.progress.step, values)]

    def _save(self, scores: dict[str, float], counts: Tensor | None) -> None:
        self._heartbeat("checkpoint")
        if self._writer is not None:
            self._writer.submit(self._state.progress.step, self._state.checkpoint_contents(scores, counts).write)

    def _report(self) -> None:
        self._heartbeat("report")
        report: dict[str, Any] = {RECENT_REPORTS: self._state.recent_reports}
        if self._state.recent_reports:
            step, values = self._state.recent_reports[-1]
            report |= {"step": step, **values}
        if self._writer is not None:
            self._writer.raise_if_failed()
            report[LATEST_CHECKPOINT] = self._writer.latest_path
        ray.train.report(report)
        self._meter.flush()  # exclude validation and reporting from the training time

    def _stop(self, step: StepResult) -> NoReturn:
        """Ends this worker after a step because a stop was requested or a node is preempted."""
        values = self._aggregate_metrics(step)
        if self._is_validation_due(step.step):
            self._state.progress.owed = values
        else:
            self._queue_report(values)
        self._save_and_exit()

    def _save_and_exit(self) -> NoReturn:
        """Saves a checkpoint of the current step and ends this worker. The run resumes from that checkpoint."""
        self._save({}, None)
        if self._writer is not None:
            self._writer.wait()
        self._report()  # a barrier: no rank exits before the checkpoint is complete
        if self._heartbeat.stop_requested:
            raise RunStoppedError(f"stopped at step {self._state.progress.step}.")
        raise PreemptedError(f"a node is preempted; the run resumes from step {self._state.progress.step}.")


def _divergence_message(skipped: range, job: RunSpec) -> str:
    config = job.config
    if config.train.precision == "fp16":
        cause = "float16 cannot hold them; use --train.precision bf16"
    else:
        cause = f"the learning rate {config.optim.lr:g} is too high; use a lower optim.lr or set optim.max_grad_norm"
    return (
        f"loss or gradient was not finite in {len(skipped)} consecutive steps, {skipped.start} to {skipped.stop - 1}; "
        f"likely cause: {cause}."
    )
