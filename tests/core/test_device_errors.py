"""Classification of errors: exhausted memory and unusable devices, by the texts of the libraries that raise them."""

import errno
import os

import cv2
import numpy as np
import pyarrow as pa
import pytest
import ray.exceptions
import torch

from segray.config import DataConfig
from segray.core.device_errors import is_device_failure, is_out_of_memory
from segray.core.errors import DataError, OutOfMemoryError
from segray.data.augment.augmenter import Augmenter, CropDraw
from segray.data.convert.shards import _read

OUT_OF_MEMORY = [
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "NCCL error in: ProcessGroupNCCL.cpp:2035, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    "[enforce fail at alloc_cpu.cpp:85] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
]
DEVICE_FAILURES = [
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: unknown error",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "NCCL error in: NCCLUtils.cpp:78, unhandled cuda error\nCuda failure 'an illegal memory access was encountered'",
]
OTHER = [
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "CUDA error: invalid configuration argument",
    "Given groups=1, weight of size [8, 3, 3, 3], expected input[1, 1, 8, 8] to have 3 channels",
]


@pytest.mark.parametrize("text", OUT_OF_MEMORY)
def test_texts_of_exhausted_memory(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_device_failure(RuntimeError(text))


@pytest.mark.parametrize("text", DEVICE_FAILURES)
def test_texts_of_an_unusable_device(text):
    assert is_device_failure(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", OTHER)
def test_other_errors_are_neither(text):
    assert not is_out_of_memory(RuntimeError(text))
    assert not is_device_failure(RuntimeError(text))


def _raise_torch():
    torch.empty(2**46, dtype=torch.uint8)


def _raise_numpy():
    np.ones(2**46, dtype=np.uint8)


def _raise_opencv():
    cv2.resize(np.zeros((8, 8, 3), np.uint8), (2**22, 2**22))


def _raise_arrow():
    pa.allocate_buffer(2**62)


def _raise_os():
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize("allocate", [_raise_torch, _raise_numpy, _raise_opencv, _raise_arrow, _raise_os])
def test_allocations_that_libraries_refuse(allocate):
    with pytest.raises(Exception) as raised:  # noqa: PT011 each library raises its own type
        allocate()
    assert is_out_of_memory(raised.value), repr(raised.value)


def test_the_cause_of_a_remote_error_counts_and_its_traceback_text_does_not():
    memory, other = MemoryError("no"), ValueError("wrong")
    text = "Traceback ...\n    raise_if('CUDA out of memory')"
    assert is_out_of_memory(ray.exceptions.RayTaskError("f", text, memory).as_instanceof_cause())
    assert not is_out_of_memory(ray.exceptions.RayTaskError("f", text, other).as_instanceof_cause())


def test_the_explicit_cause_counts_and_an_error_met_on_the_way_does_not():
    memory = RuntimeError("CUDA out of memory")
    wrapped, unrelated = ValueError("x"), ValueError("y")
    wrapped.__cause__, unrelated.__context__ = memory, memory
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(unrelated)


def test_a_user_error_that_quotes_the_text_is_not_memory():
    assert is_out_of_memory(OutOfMemoryError("a cpu worker has not enough memory"))
    assert not is_out_of_memory(DataError("image 'CUDA out of memory.png' cannot be decoded."))


def _augment():
    augmenter = Augmenter(DataConfig(crop=32), ignore_id=255)
    augmenter._crop_row = lambda *_: _raise_opencv()
    augmenter([(b"", b"")], CropDraw((0,)))


def _read_source():
    _read(_raise_numpy, "a.png")


@pytest.mark.parametrize("read", [_augment, _read_source])
def test_exhausted_memory_does_not_count_as_a_damaged_row(read):
    with pytest.raises(Exception) as raised:  # noqa: PT011 the error of the library
        read()
    assert not isinstance(raised.value, DataError)
    assert is_out_of_memory(raised.value)
