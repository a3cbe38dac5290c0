"""Parameter and multiply-accumulate counts of the parts of a model."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segray.config import Config
from segray.core.classes import Classes
from segray.models.build import build_model
from segray.models.segformer.model import SegFormer


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
    flops = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    parts = [
        ModelCost(name, _parameters(part), flops.get(f"SegFormer.{path}", 0) // 2) for name, path, part in _parts(model)
    ]
    return [*parts, ModelCost("model", _parameters(model), int(counter.get_total_flops()) // 2)]


def _parts(model: SegFormer) -> list[tuple[str, str, nn.Module]]:
    """Returns the name, the module path and the module of each part."""
    stages = getattr(model.encoder, "stages", None)
    if stages is None:  # a user-defined encoder
        parts = [("encoder", "encoder", model.encoder)]
    else:
        parts = [(f"stage {index + 1}", f"encoder.stages.{index}", stage) for index, stage in enumerate(stages)]
    parts.append(("head", "head", model.head))
    return parts if model.aux_head is None else [*parts, ("auxiliary head", "aux_head", model.aux_head)]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
