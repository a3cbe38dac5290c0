"""Parameter and multiply-accumulate counts of the parts of a model."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segray.config import Config
from segray.core.classes import Classes
from segray.models.build import build_model
from segray.models.segformer.model import VARIANTS

REFERENCE_PX = 64


@dataclass(frozen=True)
class ModelCost:
    """The cost of one part of a model.

    Attributes:
        part: name of the part.
        parameters: number of parameters.
        macs: multiply-accumulates of the forward pass of one image, including attention products.
    """

    part: str
    parameters: int
    macs: int


def model_costs(config: Config, num_classes: int, height: int, width: int) -> list[ModelCost]:
    """Returns the costs of the stages, the head and the complete model (last) for one image.

    The costs are counted on the meta device, which performs no computation and decomposes attention into its products.
    The forward pass is that of inference, so an auxiliary head has parameters but no multiply-accumulates.

    Args:
        config: configuration of the model.
        num_classes: K.
        height: image height in px.
        width: image width in px.

    Raises:
        ModelError: the model cannot be built, or the image is too small for it.
    """
    classes = Classes.from_names([str(index) for index in range(num_classes)])
    model = build_model(config, classes).eval().to("meta")
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    flops = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    paths = {module: f"{type(model).__name__}.{path}" for path, module in model.named_modules()}
    parts = [ModelCost(title, _num_parameters(part), flops.get(paths[part], 0) // 2) for title, part in model.parts()]
    return [*parts, ModelCost("model", _num_parameters(model), int(counter.get_total_flops()) // 2)]


@cache
def variants_by_cost() -> tuple[str, ...]:
    """Returns the model variants in ascending order of their multiply-accumulates and therefore of their memory."""
    base = Config()

    def macs(variant: str) -> int:
        config = base.model_copy(update={"model": base.model.model_copy(update={"variant": variant})})
        with torch.device("meta"):
            return model_costs(config, 1, REFERENCE_PX, REFERENCE_PX)[-1].macs

    return tuple(sorted(VARIANTS, key=macs))


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
