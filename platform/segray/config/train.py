"""The settings: one tree of frozen models, addressed everywhere by dotted keys.

`--optim.lr 6e-5` on the command line, `optim.lr` as a search-space key, an MLflow parameter and a key in a
checkpoint's `config.json` are the same thing. A Config that validates is one that can run.
"""

from typing import Annotated, Literal

from pydantic import Field

from segray.config.base import Count, Fraction, Positive, Settings
from segray.config.optim import DecayRate


class TrainConfig(Settings):
    """The run: how long, how wide, how often it looks up."""

    steps: Positive = 160_000
    """Optimiser steps."""
    batch: Positive = 16
    """Images of one optimiser step over all workers together."""
    workers: Positive = 1
    """DDP workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes GPUs if the cluster has any."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of weights, order, crops and dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; the weights stay float32."""
    accumulate: Positive = 1
    """A worker computes its share of a step in so many parts, in less memory; batch norms see a part at a time."""
    ema: DecayRate = 0.0
    """Share that a moving average of the weights keeps at each step; it is what is validated. 0 has none."""
    batch_norm: Literal["global", "frozen"] = "global"
    """Batch norms see the global batch, or keep the moments that the run starts with."""
    freeze_encoder: bool = False
    """Train the heads alone."""
    compile: bool = False
    """Compile the model with torch.compile."""
    channels_last: bool = False
    """Keep the weights of convolutions channels-last."""
    deterministic: bool = False
    """Take deterministic kernels alone; docs/training.md says what that covers."""
    log_every: Positive = 50
    """Steps between two reports of loss, lr and throughput."""
    val_every: Positive = 4000
    """Steps between two validations, each with a checkpoint; the last step is always validated."""
    checkpoint_every: Positive | None = 1000
    """Steps between two checkpoints beside those of validations: what a run loses at most."""
    keep_best: Positive = 1
    """Checkpoints of the highest val/miou that are kept; the last one always is."""
    keep_every: Positive | None = None
    """Checkpoints whose step is a multiple of this are kept too."""
    patience: Positive | None = None
    """Validations in a row without a better val/miou that end the run early."""
    min_gain: Fraction = 0.0
    """A val/miou is better if it exceeds the best by more than this."""
    min_steps: Count = 0
    """No run ends early before this step."""
    max_skipped: Positive = 20
    """Steps in a row without a finite gradient that end the run; single ones are skipped and counted."""
    max_failures: Count = 3
    """Losses of workers that the run goes on after, each from its last checkpoint; preemptions do not count."""
    hang_s: Annotated[float, Field(gt=0)] = 900
    """A worker that does not move for so many seconds is ended, which counts as a loss."""
    min_workers: Positive | None = None
    """Go on with so many workers where there are no resources for more; none waits for all of them."""
    grow_s: Annotated[float, Field(gt=0)] = 60
    """Seconds between two looks for resources for more workers, up to train.workers, while there are fewer."""
