"""Builds the model that a Config describes."""

from segray.config import Config
from segray.core.classes import Classes
from segray.models.architecture import SegmentationModel
from segray.models.segformer.model import build_segformer


def build_model(config: Config, classes: Classes) -> SegmentationModel:
    """Returns the model that a Config describes, with randomly initialised parameters."""
    settings = config.model
    return build_segformer(
        settings.variant,
        classes.num_classes,
        encoder=settings.encoder,
        head=settings.head,
        drop_path=settings.drop_path,
        dropout=settings.dropout,
        norm_eps=settings.norm_eps_from,
        activation_checkpointing=settings.activation_checkpointing,
        aux_head=settings.aux_head,
    )
