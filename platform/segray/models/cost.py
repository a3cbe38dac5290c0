"""Parameters and multiply-accumulates of a model, part by part."""

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
    """What a part of a model costs.

    Attributes:
        part: its name.
        parameters: how many it has.
        macs: multiply-accumulates of one image's forward pass, attention products included.
    """

    part: str
    parameters: int
    macs: int


def model_costs(config: Config, num_classes: int, height: int, width: int) -> list[ModelCost]:
    """Returns what the stages, the head and the whole model (the last) cost for one image.

    Counted on the meta device, where nothing is computed and an attention is the products it consists of; the forward
    pass is the one of inference, so that an auxiliary head has parameters alone.

    Args:
        config: of the model.
        num_classes: K.
        height: of the image, px.
        width: of the image, px.

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
    """Returns name, path and module of each part."""
    stages = getattr(model.encoder, "stages", None)
    if stages is None:  # an encoder of the user's own
        parts = [("encoder", "encoder", model.encoder)]
    else:
        parts = [(f"stage {index + 1}", f"encoder.stages.{index}", stage) for index, stage in enumerate(stages)]
    parts.append(("head", "head", model.head))
    return parts if model.aux_head is None else [*parts, ("auxiliary head", "aux_head", model.aux_head)]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
