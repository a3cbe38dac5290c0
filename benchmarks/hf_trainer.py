"""Training with transformers' Trainer on the same parquet files, as a baseline for segray."""

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

INSTALL_HINT = "--against hf_trainer needs transformers and accelerate ({}); run pip install 'segray[dev]'."


def build_hf_run(
    config: Config, source: SplitReader, num_classes: int, ranks: int, warm_up: int, steps: int, folder: Path
) -> Callable[[], float]:
    """Returns a function that trains `steps` steps and returns the images per second over all ranks.

    The Trainer runs in this process, together with the other ranks of an existing process group. Each turn is a new
    run. Its first steps are not timed, because the loader's processes start during them.

    Args:
        config: variant, crop, batch, precision and reporting interval.
        source: reader of the rows, in a local folder.
        num_classes: K.
        ranks: number of processes that share a batch.
        warm_up: number of steps before the timed steps.
        steps: number of timed steps.
        folder: output folder of the Trainer.

    Raises:
        ModelError: transformers or accelerate is not installed.
    """
    require_installed()
    from transformers import PrinterCallback, Trainer  # noqa: PLC0415 - a peer, not a dependency

    timer, rank_batch = _build_timer(warm_up), config.train.batch // ranks
    trainer = Trainer(
        model=to_transformers(build_segformer(config.model.variant, num_classes)),
        args=_arguments(config, rank_batch, ranks, warm_up + steps, folder),
        train_dataset=ParquetRows(source, config.data.crop),
        data_collator=_collate,
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)

    def run() -> float:
        trainer.train()
        seconds: float = timer.ended - timer.started
        return steps * rank_batch * ranks / seconds

    return run


def require_installed() -> None:
    """Raises ModelError if transformers or accelerate is not installed."""
    try:
        import accelerate  # noqa: F401, PLC0415
        import transformers  # noqa: F401, PLC0415
    except ImportError as error:
        raise ModelError(INSTALL_HINT.format(error)) from error


def _arguments(config: Config, rank_batch: int, ranks: int, steps: int, folder: Path) -> Any:
    from transformers import TrainingArguments  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=rank_batch,
        max_steps=steps,
        learning_rate=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        dataloader_num_workers=max(1, cores // ranks),
        logging_steps=config.train.log_every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,  # the dataset has no columns; its items are pairs
        ddp_find_unused_parameters=False,  # there are none, and searching for them takes time
        use_cpu=not torch.cuda.is_available(),
        bf16=config.train.precision == "bf16",
        fp16=config.train.precision == "fp16",
    )


def _build_timer(warm_up: int) -> Any:
    from transformers import TrainerCallback  # noqa: PLC0415

    class StepTimer(TrainerCallback):  # type: ignore[misc]
        """Records the time after the warm-up steps and after the last step."""

        started = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == warm_up:
                self.started = _now()
            if state.global_step == state.max_steps:
                self.ended = _now()

    return StepTimer()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def _collate(pairs: Sequence[tuple[Any, Any]]) -> dict[str, torch.Tensor]:
    """Returns a batch in the format of transformers' SegFormer: normalised pixels and labels."""
    images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return {"pixel_values": (images - mean) / std, "labels": masks.long()}
