"""Saves a model in segray's layout or in the layout of another library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from segray.core.errors import ModelError, did_you_mean
from segray.models.architecture import SegmentationModel
from segray.models.segformer import encoder
from segray.models.segformer.encoder import Encoder
from segray.models.segformer.heads import SegFormerHead
from segray.models.segformer.model import HEADS, MEAN, STD
from segray.models.weights.layouts import LAYOUTS, SEGRAY, State, to_layout

LAYOUT_NAMES = (SEGRAY, *(name for name in LAYOUTS if name != "transformers-5"))


def save_weights(
    model: SegmentationModel, target: str | Path, layout: str = SEGRAY, *, class_names: Sequence[str] | None = None
) -> Path:
    """Saves a model's weights and returns their path.

    Args:
        model: model to be saved.
        target: "segray": a .safetensors file; "nvlabs", "mmseg", "smp": a .pth file; "transformers": a folder, which
            `SegformerForSemanticSegmentation.from_pretrained` of transformers 4 and 5 loads. transformers uses 1e-5 as
            the epsilon of every layer norm, so its logits differ slightly if the model has another `norm_eps_from`.
        layout: one of these names.
        class_names: K names, saved if the layout has a field for them.

    Raises:
        ModelError: the layout is unknown, has no names for this model's encoder or head, or the number of class names
            is wrong.
    """
    if layout not in LAYOUT_NAMES:
        raise ModelError(
            f"layout is {layout!r}; expected one of {', '.join(LAYOUT_NAMES)}{did_you_mean(layout, LAYOUT_NAMES)}."
        )
    target = Path(target)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    if layout == SEGRAY:
        _write_safetensors(target, state)
        return target
    inference_state = {key: tensor for key, tensor in state.items() if not key.startswith(model.training_only)}
    theirs = to_layout(layout, inference_state, _depths(model, layout))
    if layout == "transformers":
        _write_folder(model, target, theirs, class_names)
    else:
        # segmentation_models_pytorch loads a bare state dict; the other libraries read the key "state_dict".
        meta = {"CLASSES": list(class_names or ())}
        _write_pickle(target, theirs if layout == "smp" else {"state_dict": theirs, "meta": meta})
    return target


def _depths(model: SegmentationModel, layout: str) -> tuple[int, ...]:
    head_type = HEADS[LAYOUTS[layout].head_kind]
    if not isinstance(model.encoder, Encoder) or not isinstance(model.head, head_type):
        raise ModelError(
            f"layout {layout} does not support a {type(model.encoder).__name__} with a {type(model.head).__name__}; "
            f"expected a MiT encoder with a {head_type.__name__}; use the layout {SEGRAY!r}."
        )
    return model.encoder.depths


def _write_folder(model: SegmentationModel, folder: Path, state: State, class_names: Sequence[str] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_safetensors(folder / "model.safetensors", state)
    _write_json(folder / "preprocessor_config.json", _preprocessor_config())
    _write_json(folder / "config.json", _transformers_config(model, class_names))


def _transformers_config(model: SegmentationModel, class_names: Sequence[str] | None) -> dict[str, Any]:
    """Returns the configuration that transformers needs to build the model."""
    mit, head = model.encoder, model.head
    assert isinstance(mit, Encoder)
    assert isinstance(head, SegFormerHead)
    names = class_names or [f"LABEL_{index}" for index in range(head.classifier.out_channels)]
    if len(names) != head.classifier.out_channels:
        raise ModelError(
            f"{len(names)} class names for {head.classifier.out_channels} classes; expected one name per class."
        )
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "num_encoder_blocks": len(mit.dims),
        "hidden_sizes": list(mit.dims),
        "depths": list(mit.depths),
        "num_attention_heads": list(encoder.HEADS),
        "sr_ratios": list(encoder.REDUCTION),
        "mlp_ratios": [encoder.MLP_RATIO] * len(mit.dims),
        "patch_sizes": list(encoder.PATCH),
        "strides": list(encoder.STRIDE),
        "decoder_hidden_size": head.fuse.out_channels,
        "drop_path_rate": mit.drop_path,
        "classifier_dropout_prob": head.dropout,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _preprocessor_config() -> dict[str, Any]:
    """Returns the image processor configuration for transformers: no resizing, and ImageNet's mean and deviation."""
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_reduce_labels": False,
        "image_mean": [value / 255 for value in MEAN],
        "image_std": [value / 255 for value in STD],
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(file: Path, state: State) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, _temporary_path(file), metadata={"format": "pt"})
    _temporary_path(file).replace(file)


def _write_pickle(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, _temporary_path(file))
    _temporary_path(file).replace(file)


def _temporary_path(file: Path) -> Path:
    """Returns a temporary path to write to, so that an incomplete file never has the final name."""
    return file.with_name(f".{file.name}.part")
