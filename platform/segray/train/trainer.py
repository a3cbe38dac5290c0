"""Ray's trainer, less what stands in the way, and with our own answer to failures."""

from collections.abc import Sequence
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback

from segray.train.backend import LateTorch
from segray.train.failures import Failures

UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer without its placement group cleaner and data sets, and with `Failures` and callbacks of our own.

    The cleaner opens a connection a second to ask whether the controller lives, and on a busy machine ends with a
    traceback on the user's terminal. It is not missed: the workers' placement group is the controller's own, and
    the cluster frees it when the controller or its driver dies. Data sets are not handed to it, yet it would start a
    process to share them out, for two seconds of a core.
    """

    def __init__(self, *arguments: Any, ours: Sequence[RayTrainCallback] = (), **settings: Any) -> None:
        self._ours = tuple(ours)
        super().__init__(*arguments, torch_config=LateTorch(), **settings)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        kept = [callback for callback in callbacks if not isinstance(callback, UNUSED)]
        return [*kept, *self._ours]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = Failures(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**settings)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leaves signals to `segray.train.stopping`: Ray's own would end the run without a checkpoint."""
