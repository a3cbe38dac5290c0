"""The checkpoint folder: weights, training state and what they mean, without a pickle.

    model.safetensors  the weights to use: where training keeps a moving average, that
    live.safetensors   the weights being trained, where they are others
    state.pt           optimiser, scale and progress; opens with `weights_only=True`
    config.json        the whole Config
    classes.json       names and palette
    meta.json          step, metrics, counts, dataset digest, versions; written last

A folder without `meta.json` is not a checkpoint: something ended before it was whole.
"""

from segray.config import Config
from segray.core.classes import Classes
from segray.models.segformer.model import SegFormer, build_segformer


def build_model(config: Config, classes: Classes) -> SegFormer:
    """Returns the model a Config describes, with freshly drawn parameters."""
    settings = config.model
    return build_segformer(
        settings.variant,
        classes.num_classes,
        encoder=settings.encoder,
        head=settings.head,
        drop_path=settings.drop_path,
        dropout=settings.dropout,
        norm_eps=settings.norm_eps,
        checkpointing=settings.checkpointing,
        aux_head=settings.aux_head,
    )
