"""The parts of Ray Train without a public API that segray uses; see `segray.cluster.ray_internals`.

The controller of a run loads this module, so that no import here may load torch.
"""

from typing import Any

from segray.cluster.ray_internals import explain_ray_errors

with explain_ray_errors():
    from ray.train._internal.utils import get_address_and_port
    from ray.train.v2._internal import util as _util
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2._internal.execution import context as _context
    from ray.train.v2._internal.execution.callback import ControllerCallback, RayTrainCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
    from ray.train.v2._internal.util import TrainingFramework

__all__ = [
    "ERROR_LOGGER",
    "REPORT_LOGGER",
    "ControllerCallback",
    "DatasetsCallback",
    "DefaultFailurePolicy",
    "FailureDecision",
    "PlacementGroupCleanerCallback",
    "RayTrainCallback",
    "TrainingFramework",
    "WorkerGroupCallback",
    "WorkerHealthCheckFailedError",
    "get_address_and_port",
    "preemption_info",
    "setup_process_group",
    "shutdown_process_group",
    "torch_device_context",
]

ERROR_LOGGER = _util.__name__
"""Name of the logger that prints the traceback of a worker's error."""
REPORT_LOGGER = _context.__file__
"""Name of the logger that prints every report; Ray names it after its file."""


@explain_ray_errors()
def preemption_info() -> Any:
    """Returns the preemption notice that Ray sent to this worker, or `None`."""
    return _context.get_train_context().preemption_context.preemption_info


def setup_process_group(backend: str, rank: int, world: int, timeout_s: int) -> None:
    """Joins this worker to the process group at the address in MASTER_ADDR and MASTER_PORT."""
    with explain_ray_errors():
        from ray.train.torch.config import (  # noqa: PLC0415 loads torch
            _set_torch_distributed_env_vars,
            _setup_torch_process_group,
        )
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(
        backend=backend, world_rank=rank, world_size=world, init_method="env://", timeout_s=timeout_s
    )


def shutdown_process_group(is_group: bool) -> None:
    """Leaves the process group, if there is one, and frees the memory of the device."""
    with explain_ray_errors():
        from ray.train.torch.config import _shutdown_torch  # noqa: PLC0415 loads torch
    _shutdown_torch(destroy_process_group=is_group)


def torch_device_context() -> Any:
    """Returns the context in which a worker runs, on its own GPU if it has one."""
    with explain_ray_errors():
        from ray.train.torch.config import TorchConfigContextManager  # noqa: PLC0415 loads torch
    return TorchConfigContextManager()
