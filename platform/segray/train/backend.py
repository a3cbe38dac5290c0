"""Ray's own torch backend, but for one thing: the controller of a run, which computes nothing, does not import torch.

Ray's `TorchConfig` lies in a module that does, which costs every start of a run two seconds of a core. What joins and
leaves the process group is Ray's, called where it runs: in the workers.
"""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

TIMEOUT_S = 1800
LEAVE_S = 5.0


@dataclass
class LateTorch(BackendConfig):  # type: ignore[misc]
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

    def on_start(self, worker_group: Any, backend_config: LateTorch) -> None:
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

    def on_shutdown(self, worker_group: Any, backend_config: LateTorch) -> None:
        try:
            ray.get(worker_group.execute_async(_leave, is_group=len(worker_group) > 1), timeout=LEAVE_S)
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
