"""Settings of training: the run, the optimizer and the learning rate schedule."""

from typing import Annotated, Literal

from pydantic import Field

from segray.config.fields import Count, Fraction, Positive, Settings

DEFAULT_SCORE = "val/miou"
"""Score of runs from before the setting `train.score`."""
DecayRate = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Settings):
    """AdamW and its learning rate schedule."""

    lr: Annotated[float, Field(gt=0)] = 6e-5
    """Peak learning rate of the encoder."""
    head_lr_factor: Annotated[float, Field(gt=0)] = 10.0
    """Factor by which lr is multiplied for the head."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of all parameters except those of layer norms."""
    beta1: DecayRate = 0.9
    """Decay rate of the first moment."""
    beta2: DecayRate = 0.999
    """Decay rate of the second moment."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Ratio of the learning rate of each encoder block to that of the next deeper block."""
    schedule: Literal["poly", "cosine", "one_cycle"] = "poly"
    """Schedule: poly (polynomial, as published), cosine (half a cosine), one_cycle (half a cosine up, one down)."""
    warmup_steps: Count = 1500
    """Number of warm-up steps. Warm-up is linear; with one_cycle, it follows half a cosine."""
    warmup_lr_ratio: Fraction = 1e-6
    """Ratio of the learning rate at the start of the warm-up to lr."""
    min_lr_ratio: Fraction = 0.0
    """Ratio of the learning rate at the end of the schedule to lr."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Power of the polynomial decay (schedule poly)."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum gradient norm. Larger gradients are scaled down to it."""


class TrainConfig(Settings):
    """Length, parallelism, checkpoints and fault tolerance of a run."""

    steps: Positive = 160_000
    """Number of optimizer steps."""
    batch: Positive = 16
    """Global batch size: images per optimizer step over all workers."""
    workers: Positive = 1
    """Number of DDP workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device for training and evaluation. auto uses GPUs if the cluster has any."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed of weights, sample order, crops and dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward pass. The weights stay in float32."""
    accumulation_steps: Positive = 1
    """Number of parts into which a worker splits its batch to save memory. Batch norms use one part at a time."""
    ema_decay: DecayRate = 0.0
    """Decay of the exponential moving average of the weights, which is then used for validation. 0 disables it."""
    batch_norm: Literal["global", "frozen"] = "global"
    """Batch norm statistics: global (of the global batch) or frozen (those of the initial weights)."""
    freeze_encoder: bool = False
    """Train only the heads."""
    compile: bool = False
    """Compile the model with torch.compile."""
    channels_last: bool = False
    """Use the channels-last memory format for convolution weights."""
    deterministic: bool = False
    """Use only deterministic kernels. docs/training.md describes what this covers."""
    log_every: Positive = 50
    """Number of steps between reports of loss, learning rate and throughput."""
    val_every: Positive = 4000
    """Number of steps between validations, each with a checkpoint. The last step is always validated."""
    checkpoint_every: Positive | None = 1000
    """Number of steps between additional checkpoints: the maximum that a failure loses. Use none to disable them."""
    score: str = DEFAULT_SCORE
    """Validation metric that selects the best checkpoint: val/miou, val/iou/CLASS, ...; or train/loss (lowest)."""
    keep_best: Positive = 1
    """Number of checkpoints with the best train.score to keep. The last checkpoint is always kept."""
    keep_every: Positive | None = None
    """Also keep checkpoints whose step is a multiple of this."""
    patience: Positive | None = None
    """Number of consecutive validations without a better train.score after which the run ends early."""
    min_delta: Fraction = 0.0
    """Minimum improvement of train.score over the best value."""
    min_steps: Count = 0
    """Minimum number of steps before the run may end early."""
    max_nonfinite_steps: Positive = 20
    """Number of consecutive non-finite gradients after which the run ends. Their steps are skipped and counted."""
    max_failures: Count = 3
    """Maximum number of failures of workers and of the controller, not preemptions. The run continues after each."""
    hang_timeout_s: Annotated[float, Field(gt=0)] = 900
    """Timeout in seconds after which a worker without progress is killed. This counts as a failure."""
    min_workers: Positive | None = None
    """Minimum number of workers to continue with if resources are missing. Defaults to waiting for all workers."""
    resize_interval_s: Annotated[float, Field(gt=0)] = 60
    """With fewer than train.workers workers: interval in seconds between checks for free resources."""
