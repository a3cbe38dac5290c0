"""TorchTrainer of Ray without a torch import in the controller of a run, which computes nothing.

Ray's `TorchConfig` is defined in a module that imports torch, which costs every run start two seconds of CPU time.
The workers still join and leave the process group with Ray's own functions.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchTrainer

from segray.training import ray_internals
from segray.training.failure_policy import FailurePolicy

TIMEOUT_S = 1800
SHUTDOWN_TIMEOUT_S = 5.0


@dataclass
class LazyTorchConfig(BackendConfig):  # type: ignore[misc]
    """Backend configuration for a process group of all workers.

    Attributes:
        backend: torch.distributed backend; if `None`, Ray's trainer selects nccl if the workers have GPUs, else gloo.
    """

    backend: str | None = None

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroupBackend

    @property
    def train_func_context(self) -> Any:
        return ray_internals.torch_device_context

    @property
    def framework(self) -> ray_internals.TrainingFramework:
        return ray_internals.TrainingFramework.TORCH


class _ProcessGroupBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: LazyTorchConfig) -> None:
        address, port = worker_group.execute_single(0, ray_internals.get_address_and_port)
        world = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config.backend, rank, world, address, port)
                for rank in range(world)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: LazyTorchConfig) -> None:
        try:
            references = worker_group.execute_async(
                ray_internals.shutdown_process_group, is_group=len(worker_group) > 1
            )
            ray.get(references, timeout=SHUTDOWN_TIMEOUT_S)
        except GetTimeoutError:  # a worker hangs and is terminated with the others
            return


def _join(backend: str, rank: int, world: int, address: str, port: int) -> None:
    import torch  # noqa: PLC0415 imported only in the workers

    if backend == "nccl" and not torch.cuda.is_available():
        backend = "gloo"  # `resolve_device` checks the node and reports errors
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    ray_internals.setup_process_group(backend, rank, world, TIMEOUT_S)


UNUSED_CALLBACKS = (ray_internals.PlacementGroupCleanerCallback, ray_internals.DatasetsCallback)


class SegrayTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer with `FailurePolicy` and additional callbacks, but no placement group cleaner and no datasets.

    The cleaner opens a connection every second to check that the controller is alive. On a busy machine it ends with a
    traceback on the user's terminal. The cleaner is not required: `stop_on_request` removes the placement group of
    the workers, and the cluster removes it when the driver dies. The trainer passes no datasets to
    Ray, but Ray's callback would still start a process to distribute them, at a cost of two seconds of CPU time.
    """

    def __init__(
        self, *arguments: Any, extra_callbacks: Sequence[ray_internals.RayTrainCallback] = (), **settings: Any
    ) -> None:
        self._extra_callbacks = tuple(extra_callbacks)
        super().__init__(*arguments, torch_config=LazyTorchConfig(), **settings)

    def _create_default_callbacks(self) -> list[ray_internals.RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        kept = [callback for callback in callbacks if not isinstance(callback, UNUSED_CALLBACKS)]
        return [*kept, *self._extra_callbacks]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = FailurePolicy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**settings)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Does nothing, because `segray.training.shutdown` handles signals.

        Ray's handler would end the run without a checkpoint.
        """
