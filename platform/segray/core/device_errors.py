"""Classification of errors that a library raises if memory is exhausted or a device is unusable, without torch.

Libraries report both as plain `RuntimeError`s, so that only their messages tell them apart.
"""

import errno
from collections.abc import Iterator

MEMORY_CLASS = "OutOfMemoryError"  # name of the class of torch, Ray and segray
MEMORY_TEXTS = (
    "out of memory",  # CUDA, NCCL
    "_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE
    "_ALLOCATION_FAILED",  # cuDNN 9
    "can't allocate memory",  # torch on the CPU
    "not enough memory",  # torch on the CPU
    "Insufficient memory",  # OpenCV
)
DEVICE_TEXTS = (
    "CUDA error:",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "device-side assert",
    "illegal memory access",
    "uncorrectable ECC",
)
USABLE_DEVICE_TEXTS = ("CUDA error: invalid argument", "CUDA error: invalid configuration argument")
"""Errors of a single call: the next call can succeed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an error, or the cause of an error, reports that the memory of a device or host is exhausted."""
    return any(_reports_memory(cause) for cause in _root_errors(error))


def is_device_failure(error: BaseException) -> bool:
    """Returns True if every further call on the device of this process fails as well, such as after an illegal access.

    CUDA keeps such an error until the process ends. Exhausted memory is not a device failure.
    """
    return any(
        isinstance(cause, RuntimeError)
        and any(text in str(cause) for text in DEVICE_TEXTS)
        and not any(text in str(cause) for text in USABLE_DEVICE_TEXTS)
        and not _reports_memory(cause)
        for cause in _root_errors(error)
    )


def _reports_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or any(base.__name__ == MEMORY_CLASS for base in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_library_error = isinstance(error, RuntimeError) or type(error).__module__ == "cv2"
    return is_library_error and any(text in str(error) for text in MEMORY_TEXTS)


def _root_errors(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its explicit causes.

    An error of Ray that has a cause is left out, because its message quotes the lines of a traceback.
    """
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        remote = getattr(current, "cause", None)
        if isinstance(remote, BaseException):
            current = remote
            continue
        yield current
        current = current.__cause__
