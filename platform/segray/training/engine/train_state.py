"""Training state built from the settings: model, optimiser, moving average, and the training steps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from segray.config import Config
from segray.models.architecture import SegmentationModel
from segray.training.engine.ema import ModelEma
from segray.training.engine.loop import NO_HOOKS, Batch, Hooks, StepConfig, StepResult, train_steps
from segray.training.engine.optim import build_optimizer, load_optimizer_state, lr_multiplier, optimizer_state_by_name
from segray.training.engine.optimizer_step import OptimizerStepper, batch_norm_buffers
from segray.training.losses.build import Loss


@dataclass
class TrainState:
    """Model and its training state.

    Attributes:
        config: settings.
        model: bare model on its device, without the DDP wrapper or the compile wrapper.
        training_model: the model, compiled if the settings say so, with the same parameters. Only the training steps
            use it: a validation has many image sizes, and every rank would compile for them.
        optimiser, stepper: optimiser of the model and its stepper.
        ema: moving average of the model; `None` if disabled.
    """

    config: Config
    model: SegmentationModel
    training_model: nn.Module
    optimiser: torch.optim.Optimizer
    stepper: OptimizerStepper
    ema: ModelEma | None

    @property
    def eval_model(self) -> nn.Module:
        """Model to validate: the moving average if there is one, else the model."""
        return self.model if self.ema is None else self.ema.model

    @property
    def frozen_modules(self) -> list[nn.Module]:
        """Modules that stay in eval mode."""
        train = self.config.train
        norms = [module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        encoder = [self.model.encoder] if train.freeze_encoder else []
        return [*encoder, *_unused_heads(self.config, self.model), *(norms if train.batch_norm == "frozen" else [])]

    def state_dict(self) -> dict[str, Any]:
        """Returns the training state except the weights, without copying.

        The state contains the optimiser moments, the loss scale and the number of updates of the moving average.
        """
        return {
            "moments": optimizer_state_by_name(self.optimiser, self.model),
            "updater": self.stepper.state_dict(),
            "averaged": 0 if self.ema is None else self.ema.updates,
        }

    def load_state_dict(
        self, weights: dict[str, Tensor], eval_weights: dict[str, Tensor], state: dict[str, Any]
    ) -> None:
        """Restores the training state.

        Args:
            weights: weights in training.
            eval_weights: weights for inference, which are the moving average if there is one.
            state: state returned by `state_dict`.
        """
        self.model.load_state_dict(weights)
        load_optimizer_state(self.optimiser, self.model, state["moments"])
        self.stepper.load_state_dict(state["updater"])
        if self.ema is not None:
            self.ema.model.load_state_dict(eval_weights)
            self.ema.updates = state["averaged"]

    def train_steps(
        self,
        wrapped: nn.Module,
        loss: Loss,
        batches: Iterable[Batch],
        *,
        ignore_id: int,
        start: int = 0,
        hooks: Hooks = NO_HOOKS,
    ) -> Iterator[StepResult]:
        """Makes one step for each batch and yields its result after the update of the moving average.

        Args:
            wrapped: `training_model`, or the same wrapped in DDP.
            loss: loss as for `loop.train_steps`.
            batches: batches as for `loop.train_steps`.
            ignore_id: mask value excluded from training.
            start: number of steps already made.
            hooks: callbacks of the training loop.
        """
        train = self.config.train
        config = StepConfig(ignore_id, train.precision, train.accumulation_steps, self.frozen_modules)
        lr_factor = partial(lr_multiplier, config=self.config.optim, steps=train.steps)
        for step in train_steps(
            wrapped, loss, self.stepper, batches, config, lr_factor=lr_factor, start=start, hooks=hooks
        ):
            if self.ema is not None:
                self.ema.update(self.model)
            yield step


def build_train_state(config: Config, model: SegmentationModel, device: torch.device) -> TrainState:
    """Returns the training state of a model.

    The model is moved to the device, and compiled and partly frozen according to the settings.
    """
    freeze_parts(config, model)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(device)
    optimiser = build_optimizer(model, config.optim)
    scaled = config.train.precision == "fp16"
    stepper = OptimizerStepper(
        optimiser, max_norm=config.optim.max_grad_norm, scaled=scaled, buffers=batch_norm_buffers(model)
    )
    ema = ModelEma(model, config.train.ema_decay) if config.train.ema_decay else None
    training_model = cast(nn.Module, torch.compile(model)) if config.train.compile else model
    return TrainState(config, model, training_model, optimiser, stepper, ema)


def freeze_parts(config: Config, model: SegmentationModel) -> None:
    """Freezes the parameters that the settings exclude from training."""
    if config.train.freeze_encoder:
        model.encoder.requires_grad_(False)
    for head in _unused_heads(config, model):  # DDP waits for the gradient of every parameter that requires one
        head.requires_grad_(False)


def _unused_heads(config: Config, model: SegmentationModel) -> list[nn.Module]:
    """Returns the heads that only training uses, if their loss has no weight."""
    if config.loss.aux_weight:
        return []
    names = (prefix.removesuffix(".") for prefix in model.training_only)
    return [head for name in names if (head := getattr(model, name)) is not None]
