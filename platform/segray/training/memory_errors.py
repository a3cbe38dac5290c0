"""Errors of a worker whose memory is exhausted: the phase of the run, and the settings that need less memory in it."""

from segray.core.errors import OutOfMemoryError, StepOutOfMemoryError, first_line
from segray.training.run_spec import RunSpec

STEP_PHASES = ("forward", "backward", "update")
VALIDATION = "validation"


def out_of_memory_error(job: RunSpec, phase: str, error: Exception) -> OutOfMemoryError:
    """Returns the error of a run whose worker ran out of memory.

    Args:
        job: specification of the run.
        phase: phase of the worker, as in its heartbeats.
        error: error of the library.

    Returns:
        A `StepOutOfMemoryError` for a phase of a training step, which needs less memory with more accumulation steps;
        an `OutOfMemoryError` for any other phase.
    """
    worker = f"a {job.placement.device} worker does not have enough memory"
    if phase in STEP_PHASES:
        return StepOutOfMemoryError(f"{worker} for {_describe_step(job)}.")
    if phase == VALIDATION:
        return OutOfMemoryError(f"{worker} for the validation ({first_line(error)}); {_validation_hint(job)}.")
    return OutOfMemoryError(
        f"{worker} in phase {phase} ({first_line(error)}); use a smaller model.variant or train.batch, or nodes with "
        "more memory."
    )


def _describe_step(job: RunSpec) -> str:
    train = job.config.train
    images = -(-train.batch // (train.workers * train.accumulation_steps))
    max_steps = train.batch // train.workers
    hint = (
        f"use --train.accumulation_steps {min(2 * train.accumulation_steps, max_steps)}"
        if train.accumulation_steps < max_steps
        else "use a smaller data.crop"
    )
    return (
        f"{images} images of {job.config.data.crop} px "
        f"({job.config.model.variant}, train.batch {train.batch}, {train.workers} workers, "
        f"{train.accumulation_steps} accumulation steps); {hint}, or --model.activation_checkpointing"
    )


def _validation_hint(job: RunSpec) -> str:
    if job.config.eval.mode == "whole":
        return "its images are not cropped: use --eval.mode slide, whose windows have the size --eval.crop"
    return "use a smaller --eval.crop or --eval.window_batch"
