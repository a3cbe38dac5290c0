"""transformers' Trainer on the same parquet: what its users write instead of this platform."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.loaders import ParquetRows
from benchmarks.peers import to_transformers
from segray.config import Config
from segray.core.errors import ModelError
from segray.data.reader import SplitReader
from segray.models.segformer.model import MEAN, STD, build_segformer

NEEDED = "--against hf_trainer needs transformers and accelerate ({}); pip install 'segray[dev]'."


def build_hf_run(
    config: Config, source: SplitReader, num_classes: int, ranks: int, warm_up: int, steps: int, folder: Path
) -> Callable[[], float]:
    """Returns what trains so many steps and returns their images a second, over all ranks.

    The Trainer runs in this process, and with all ranks of a process group that exists. A turn is a run of its own,
    and its first steps are not counted: then the loader's processes have started.

    Args:
        config: variant, crop, batch, precision and how often is reported.
        source: the rows, in a local folder.
        num_classes: K.
        ranks: processes that share a batch.
        warm_up: steps before the clock is started.
        steps: steps that are timed.
        folder: the Trainer's own.

    Raises:
        ModelError: transformers or accelerate is not installed.
    """
    require_installed()
    from transformers import PrinterCallback, Trainer  # noqa: PLC0415 - a peer, not a dependency

    clock, share = _clock(warm_up), config.train.batch // ranks
    trainer = Trainer(
        model=to_transformers(build_segformer(config.model.variant, num_classes)),
        args=_arguments(config, share, ranks, warm_up + steps, folder),
        train_dataset=ParquetRows(source, config.data.crop),
        data_collator=_collated,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)

    def run() -> float:
        trainer.train()
        taken: float = clock.ended - clock.started
        return steps * share * ranks / taken

    return run


def require_installed() -> None:
    """Raises ModelError where transformers or accelerate is missing."""
    try:
        import accelerate  # noqa: F401, PLC0415
        import transformers  # noqa: F401, PLC0415
    except ImportError as error:
        raise ModelError(NEEDED.format(error)) from error


def _arguments(config: Config, share: int, ranks: int, steps: int, folder: Path) -> Any:
    from transformers import TrainingArguments  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=share,
        max_steps=steps,
        learning_rate=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        dataloader_num_workers=max(1, cores // ranks),
        logging_steps=config.train.log_every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,  # the data set has none; they are pairs
        ddp_find_unused_parameters=False,  # there are none; to look for them costs time
        use_cpu=not torch.cuda.is_available(),
        bf16=config.train.precision == "bf16",
        fp16=config.train.precision == "fp16",
    )


def _clock(warm_up: int) -> Any:
    from transformers import TrainerCallback  # noqa: PLC0415

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes when the first steps were over, and when all were."""

        started = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == warm_up:
                self.started = _now()
            if state.global_step == state.max_steps:
                self.ended = _now()

    return Clock()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def _collated(pairs: Sequence[tuple[Any, Any]]) -> dict[str, torch.Tensor]:
    """Returns a batch as transformers' SegFormer takes it: normalised pixels and labels."""
    images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return {"pixel_values": (images - mean) / std, "labels": masks.long()}
