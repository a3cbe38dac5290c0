"""Synthetic landscape: the score of a trial without training."""

import json
import math
from typing import Any

import numpy as np
from ray.tune import Trainable

from segray import config
from segray.config import Config
from segray.tune.ray_tune import TASK, to_tune_result
from segray.tune.trial_run import TrialReport

STEPS, NOISE, SECONDS = 1000, 0.005, 2.0
SPACE = {
    "optim.lr": {"loguniform": [1e-5, 1e-3]},
    "optim.weight_decay": {"loguniform": [1e-4, 1e-1]},
    "model.variant": {"choice": ["b0", "b1", "b2", "b3", "b4", "b5"]},
    "data.crop": {"choice": [256, 384, 512]},
}


def miou(values: dict[str, Any], step: int) -> float:
    """Returns the score of settings after a step: larger models reach higher scores, but start slowly."""
    v, lr = int(values["model.variant"][1]), values["optim.lr"]
    level = (
        0.60
        + 0.03 * v
        - 0.12 * math.log10(lr / 3e-4) ** 2
        - 0.03 * math.log10(values["optim.weight_decay"] / 1e-2) ** 2
        - 0.02 * abs(values["data.crop"] - 384) / 128
    )
    tau = STEPS * (0.08 + 0.04 * v) * math.sqrt(3e-4 / lr)
    return level * (1 - math.exp(-step / tau))


OPTIMUM = max(
    miou({"model.variant": "b5", "optim.lr": lr, "optim.weight_decay": 1e-2, "data.crop": 384}, STEPS)
    for lr in np.geomspace(1e-5, 1e-3, 4001)
)


def settings(**overrides: Any) -> Config:
    """Returns the settings of a sweep over the landscape, with a validation every ten steps."""
    base = {
        "train": {"steps": STEPS, "val_every": 10},
        "optim.warmup_steps": 1,
        "tune": {"space": SPACE, "trials": 64},
    }
    return config.build(config.merge(base, overrides))


class SyntheticTrainable(Trainable):
    """Tune actor of a trial without training, which reports a validation every ten steps."""

    def setup(self, config: dict[str, Any]) -> None:
        self._task, self._seconds = json.loads(config[TASK]), 0.0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        task = self._task
        if task["step"] >= STEPS:
            return to_tune_result(TrialReport(self._seconds))
        task["step"] += task["every"]
        noise = np.random.default_rng([task["seed"], task["number"], task["step"]]).normal(0, NOISE)
        self._seconds += SECONDS
        metrics = {"val/miou": miou(task["values"], task["step"]) + noise}
        return to_tune_result(TrialReport(self._seconds, task["step"], metrics))

    def stop_now(self) -> None:
        pass
