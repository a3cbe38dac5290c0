"""Whose fault an error is: an image's own is listed, every other one ends the job."""

import numpy as np
import pytest
import torch
from PIL import Image

from segray.core.errors import DataError, SegrayError
from segray.inference.batch import images as images_module
from segray.inference.batch.inputs import InputImage
from segray.inference.batch.outputs import Outputs
from segray.inference.batch.sources import open_inputs
from segray.inference.batch.worker import BatchTask, ChunkSegmenter
from segray.inference.predictor import Predictor

NAMES = [f"{number:02d}" for number in range(6)]


@pytest.fixture
def source(tmp_path):
    for name in NAMES:
        Image.fromarray(np.full((40, 40, 3), int(name), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "03.png").write_bytes(b"none")
    return tmp_path


class Segmenter:
    """A segmenter whose model calls `act` with the number of the call, from 1, before each forward pass."""

    def __init__(self, folder, source, out, act, concurrency):
        predictor, self.calls = Predictor(folder), 0

        def hook(*_):
            self.calls += 1
            act(self.calls)

        predictor._model.register_forward_pre_hook(hook)
        ((_, self.chunk),) = open_inputs(str(source)).shards[0].chunks(frozenset())
        task = BatchTask(predictor, False, Outputs(str(out), predictor.classes))
        self.segmenter, self.out = ChunkSegmenter(task, concurrency=concurrency), out

    def __call__(self):
        return self.segmenter("part", self.chunk)

    def masks(self):
        return sorted(path.stem for path in self.out.rglob("*.png"))


MEMORY_ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=["host", "torch", "cpu", "cublas"])
def test_an_image_that_exhausts_memory_beside_others_is_tried_again_alone(folder, source, tmp_path, error, concurrency):
    def exhaust_once(call):
        if call == 2:
            raise error

    segment = Segmenter(folder, source, tmp_path / "out", exhaust_once, concurrency)
    result = segment()
    assert segment.calls == 6  # five images, one of them twice
    assert (result.images, len(result.problems)) == (5, 1)
    assert segment.masks() == [name for name in NAMES if name != "03"]


def test_an_image_that_exhausts_memory_alone_ends_the_job_and_is_named(folder, source, tmp_path):
    def exhaust(call):
        raise MemoryError

    segment = Segmenter(folder, source, tmp_path / "out", exhaust, 1)
    with pytest.raises(SegrayError, match=r"^00 exhausts the memory .*MemoryError.*--eval\.mode slide"):
        segment()
    assert segment.calls == 6  # the others were tried as well, and 00 once more


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), TypeError("a defect"), OSError("a library")]
)
def test_every_other_error_of_the_model_ends_the_job(folder, source, tmp_path, error, concurrency):
    def fail_from_the_third_call(call):
        if call >= 3:
            raise error

    segment = Segmenter(folder, source, tmp_path / "out", fail_from_the_third_call, concurrency)
    with pytest.raises(SegrayError, match=rf"^0\d cannot be segmented \({type(error).__name__}: {error}\)") as ended:
        segment()
    assert not isinstance(ended.value, DataError)
    assert ended.value.__cause__ is error


def test_an_image_that_no_model_accepts_is_a_problem_of_its_own(folder, tmp_path):
    segment = Segmenter(folder, _one_image(tmp_path, (40, 50)), tmp_path / "out", lambda call: None, 1)
    segment.segmenter._predictor.config = segment.segmenter._predictor.config.model_copy(
        update={"data": segment.segmenter._predictor.config.data.model_copy(update={"short_side": 5000})}
    )
    result = segment()
    assert result.images == 0
    assert result.problems[0].startswith("image: the image is 50x40")


def _one_image(folder, size):
    (folder / "source").mkdir()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / "source/image.png")
    return folder / "source"


class Store:
    """An object store whose reads fail."""

    def __init__(self, error):
        self.error = error

    def open_input_stream(self, path):
        raise self.error


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("s3://b/x", OSError("timeout")),
        ("/", OSError(12, "no memory")),
        ("/", OSError(5, "disk")),
        ("/", OSError(116, "stale file handle")),
        ("/nonexistent", FileNotFoundError("the folder is visible on another node only")),
        ("/nonexistent", PermissionError("no")),
    ],
)
def test_a_store_that_fails_is_not_a_problem_of_the_image(monkeypatch, source, error):
    shard = images_module.ImageFiles(source, (_file("a"),))
    monkeypatch.setattr(images_module, "filesystem", lambda _: (Store(error), ""))
    with pytest.raises(DataError, match=r"a\.png cannot be read .* the same command resumes"):
        list(shard.chunks(frozenset()))


@pytest.mark.parametrize(
    ("source", "error"),
    [("s3://b/x", FileNotFoundError("gone")), ("/", PermissionError("no")), ("/", FileNotFoundError("gone"))],
)
def test_a_file_that_cannot_be_read_is_a_problem_of_its_own(monkeypatch, source, error):
    shard = images_module.ImageFiles(source, (_file("a"),))
    monkeypatch.setattr(images_module, "filesystem", lambda _: (Store(error), ""))
    ((_, (image,)),) = shard.chunks(frozenset())
    assert image == InputImage("a", b"", f"a.png cannot be read ({error})")


def _file(name):
    file = object.__new__(images_module.ImageFile)
    file.name, file.path, file.version = name, f"{name}.png", "1"
    return file
