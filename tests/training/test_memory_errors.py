"""Exhausted memory of a worker: the error names the phase of the run and the settings that need less memory in it."""

from pathlib import Path

import pytest
import torch

from segray import config
from segray.cluster.resources import WorkerResources
from segray.core.errors import OutOfMemoryError, StepOutOfMemoryError
from segray.training.fit import fit
from segray.training.memory_errors import out_of_memory_error
from segray.training.run_spec import RunSpec
from segray.training.worker import train_loop_per_worker

ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def error_in(phase, **settings):
    base = {"train": {"batch": 8, "workers": 2, "steps": 2}, "data.crop": 64, "optim.warmup_steps": 1}
    job = RunSpec(config.build(base | settings), None, WorkerResources(2, "cuda", 1, 1, 1, 0), Path("/run"))
    return out_of_memory_error(job, phase, ERROR)


@pytest.mark.parametrize("phase", ["forward", "backward", "update"])
def test_a_training_step_needs_less_memory_with_more_accumulation_steps(phase):
    error = error_in(phase)
    assert type(error) is StepOutOfMemoryError
    assert "a cuda worker does not have enough memory for 4 images of 64 px" in str(error)
    assert "use --train.accumulation_steps 2, or --model.activation_checkpointing." in str(error)
    assert "use a smaller data.crop" in str(error_in(phase, **{"train.accumulation_steps": 4}))


@pytest.mark.parametrize(
    ("mode", "hint"),
    [("whole", "use --eval.mode slide, .* --eval.crop"), ("slide", "use a smaller --eval.crop or --eval.window_batch")],
)
def test_a_validation_needs_less_memory_with_windows(mode, hint):
    error = error_in("validation", **{"eval.mode": mode})
    assert type(error) is OutOfMemoryError
    with pytest.raises(OutOfMemoryError, match=rf"memory for the validation \(CUDA out of memory\..*{hint}\.$"):
        raise error
    assert "accumulation" not in str(error)


@pytest.mark.parametrize("phase", ["start", "data", "checkpoint", "report"])
def test_other_phases_are_named(phase):
    error = error_in(phase)
    assert type(error) is OutOfMemoryError
    assert f"a cuda worker does not have enough memory in phase {phase} (CUDA out of memory." in str(error)
    assert "accumulation" not in str(error)


def test_memory_that_is_exhausted_before_the_specification_is_read_is_reported_as_such():
    class Settings(dict):
        def __getitem__(self, key):
            raise MemoryError(key)

    with pytest.raises(MemoryError):
        train_loop_per_worker(Settings())


HEAD_THAT_CANNOT_VALIDATE = """
import torch

from segray.models.segformer.heads import SegFormerHead


class Head(SegFormerHead):
    def forward(self, maps):
        if torch.is_inference_mode_enabled():
            maps[0].new_empty(2**48)  # no machine has this much memory
        return super().forward(maps)


def build(dims, strides, num_classes, dropout):
    return Head(dims, width=16, num_classes=num_classes, dropout=dropout)
"""


@pytest.fixture
def head_that_cannot_validate(plugins, monkeypatch):
    """Name of a head that exhausts the memory in a validation."""
    monkeypatch.syspath_prepend(plugins)
    (plugins / "head_that_cannot_validate.py").write_text(HEAD_THAT_CANNOT_VALIDATE)
    return "head_that_cannot_validate:build"


def test_a_validation_that_exhausts_the_memory_is_not_a_fault_of_the_training_step(
    ray_cluster, tiny, head_that_cannot_validate
):
    settings = config.build(config.flatten(tiny) | {"model.head": head_that_cannot_validate})
    with pytest.raises(OutOfMemoryError, match="enough memory for the validation .*--eval.mode slide") as raised:
        fit(settings, say=lambda _line: None)
    assert not isinstance(raised.value, StepOutOfMemoryError)
    assert f"; resume it with --resume {tiny.results}/" in str(raised.value)
