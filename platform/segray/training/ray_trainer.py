"""Ray's own torch backend, but for one thing: the controller of a run, which computes nothing, does not import torch.

Ray's `TorchConfig` lies in a module that does, which costs every start of a run two seconds of a core. What joins and
leaves the process group is Ray's, called where it runs: in the workers.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.util import TrainingFramework

from segray.training.failure_policy import FailurePolicy

TIMEOUT_S = 1800
SHUTDOWN_TIMEOUT_S = 5.0


@dataclass
class LazyTorchConfig(BackendConfig):  # type: ignore[misc]
    """A process group of all workers.

    Attributes:
        backend: of torch.distributed; none has Ray's trainer take nccl where workers have GPUs, else gloo.
    """

    backend: str | None = None

    @property
    def backend_cls(self) -> type[Backend]:
        return _Group

    @property
    def train_func_context(self) -> Any:
        return _on_device

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH


class _Group(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: LazyTorchConfig) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend=backend_config.backend, me=rank, size=size, address=address, port=port
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: LazyTorchConfig) -> None:
        try:
            ray.get(worker_group.execute_async(_leave, is_group=len(worker_group) > 1), timeout=SHUTDOWN_TIMEOUT_S)
        except GetTimeoutError:  # one of them hangs, and is ended with the others
            return


def _join(backend: str, me: int, size: int, address: str, port: int) -> None:
    import torch  # noqa: PLC0415 in the workers alone
    from ray.train.torch import config  # noqa: PLC0415 likewise

    if backend == "nccl" and not torch.cuda.is_available():
        backend = "gloo"  # `with_real_device` says what is wrong with the node, or that nothing is
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(
        backend=backend, world_rank=me, world_size=size, init_method="env://", timeout_s=TIMEOUT_S
    )


def _leave(is_group: bool) -> None:
    from ray.train.torch import config  # noqa: PLC0415 as above

    config._shutdown_torch(destroy_process_group=is_group)


def _on_device() -> AbstractContextManager[None]:
    """Returns the context in which a worker works: on its own GPU, if it has one."""
    from ray.train.torch.config import TorchConfigContextManager  # noqa: PLC0415 as above

    context: AbstractContextManager[None] = TorchConfigContextManager()
    return context


UNUSED_CALLBACKS = (PlacementGroupCleanerCallback, DatasetsCallback)


class SegrayTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer without its placement group cleaner and data sets, and with `Failures` and callbacks of our own.

    The cleaner opens a connection a second to ask whether the controller lives, and on a busy machine ends with a
    traceback on the user's terminal. It is not missed: the workers' placement group is the controller's own, and
    the cluster frees it when the controller or its driver dies. Data sets are not handed to it, yet it would start a
    process to share them out, for two seconds of a core.
    """

    def __init__(self, *arguments: Any, ours: Sequence[RayTrainCallback] = (), **settings: Any) -> None:
        self._ours = tuple(ours)
        super().__init__(*arguments, torch_config=LazyTorchConfig(), **settings)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        kept = [callback for callback in callbacks if not isinstance(callback, UNUSED_CALLBACKS)]
        return [*kept, *self._ours]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = FailurePolicy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**settings)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leaves signals to `segray.training.shutdown`: Ray's own would end the run without a checkpoint."""
