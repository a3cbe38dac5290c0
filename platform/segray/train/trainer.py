"""Ray's trainer, less what stands in the way."""

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray's trainer without its placement group cleaner.

    The cleaner opens a connection a second to ask whether the controller lives, and on a busy machine ends with a
    traceback on the user's terminal. It is not missed: the workers' placement group is the controller's own, and
    the cluster frees it when the controller or its driver dies.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
