"""Earlier names and values of settings, which files, flags and stored runs may still contain."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "data": {
        "class_crops": "class_crop_prob",
        "cut_mix": "cut_mix_prob",
        "decode": "augment_on",
        "flip": "flip_prob",
        "mosaic": "mosaic_prob",
        "repeat_below": "repeat_threshold",
        "temperature": "rare_class_temperature",
    },
    "model": {"checkpointing": "activation_checkpointing", "norm_eps": "norm_eps_from"},
    "loss": {"boundary_reach": "boundary_width_px", "ohem_share": "ohem_min_kept"},
    "optim": {"clip": "max_grad_norm", "min_ratio": "min_lr_ratio", "warmup_ratio": "warmup_lr_ratio"},
    "train": {
        "accumulate": "accumulation_steps",
        "ema": "ema_decay",
        "grow_s": "resize_interval_s",
        "hang_s": "hang_timeout_s",
        "max_skipped": "max_nonfinite_steps",
        "min_gain": "min_delta",
    },
    "eval": {"absent": "absent_classes", "align": "size_multiple", "windows": "window_batch"},
    "tune": {
        "concurrent": "max_concurrent",
        "grace": "grace_steps",
        "interval": "perturbation_interval",
        "metric": "metrics",
        "quantile": "quantile_fraction",
        "reduction": "reduction_factor",
        "resample": "resample_prob",
    },
    "promote": {
        "changed_classes": "allowed_class_changes",
        "class_drop": "max_class_iou_drop",
        "class_floor": "min_class_iou",
        "latency_ms": "max_latency_ms",
        "miou_drop": "max_miou_drop",
        "size_mib": "max_size_mib",
        "slower": "max_latency_ratio",
    },
    "serve": {
        "at_once": "max_pending_images",
        "batch": "max_batch_size",
        "in_flight": "target_ongoing_requests",
        "most_images": "max_batch_images",
        "most_mib": "max_request_mib",
        "most_pixels": "max_image_pixels",
        "most_replicas": "max_replicas",
        "threads": "cpus_per_replica",
        "time_limit_s": "request_timeout_s",
        "window_above": "slide_above_pixels",
    },
}

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_RENAMED_VALUES: dict[str, dict[str, dict[Any, str]]] = {
    "data": {"augment_on": {"trainer": "worker"}},
    "eval": {"precision": _PRECISIONS},
    "serve": {"precision": _PRECISIONS},
}


def current_key(key: str) -> str:
    """Returns today's dotted key of a setting: `train.hang_timeout_s` for `train.hang_s`."""
    section, _, name = key.partition(".")
    return f"{section}.{RENAMED[section].get(name, name)}" if section in RENAMED else key


def use_current_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested tree of settings with earlier names and values replaced by today's.

    A section that holds both names of a setting keeps the earlier one, so that it is reported as unknown.
    """
    return {section: _update_section(section, settings) for section, settings in tree.items()}


def _update_section(section: str, settings: Any) -> Any:
    if section not in RENAMED or not isinstance(settings, Mapping):
        return settings
    names, values = RENAMED[section], _RENAMED_VALUES.get(section, {})
    updated = {}
    for name, value in settings.items():
        current = names.get(name, name)
        current = name if current in settings else current
        updated[current] = values[current].get(value, value) if current in values and isinstance(value, str) else value
    return updated
