"""Model cards: description, training data, metrics and limits of a version.

The functions of this module perform no I/O. The caller provides all data.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

from segray.config import Config
from segray.config.train import DEFAULT_SCORE
from segray.core.classes import Classes
from segray.evaluation.metrics.bootstrap import Interval
from segray.models.checkpoint import Meta

MAX_CLASSES = 30
"""Maximum number of classes in the table. A database may limit a card to 5,000 characters."""
MAX_LISTED_CLASSES = 9
NO_VALUE = "-"


@dataclass(frozen=True)
class SplitScores:
    """Scores of a version on a split.

    Attributes:
        split: name of the split.
        digest: digest of the dataset.
        means: known values of `miou`, `macc` and `aacc`.
        interval: 95% confidence interval of the mean IoU, or `None` if it was not computed.
        classes: IoU of each class, or `None` for a class that is absent from the split.
        intervals: 95% confidence intervals of the class IoU, where they were computed.
        rows: number of images, or `None` if unknown.
    """

    split: str
    digest: str
    means: Mapping[str, float]
    interval: Interval | None
    classes: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)
    rows: int | None = None


@dataclass(frozen=True)
class CardData:
    """Data of a model card.

    Attributes:
        model: name of the registered model.
        config: training configuration.
        classes: classes of the model.
        meta: metadata of the checkpoint.
        run: name of the training run.
        dataset: name of the training dataset.
        commit: git commit of the code, or `None` if unknown.
        scores: scores of each evaluated split.
    """

    model: str
    config: Config
    classes: Classes
    meta: Meta
    run: str
    dataset: str
    commit: str | None
    scores: Sequence[SplitScores]


def validation_scores(meta: Meta, config: Config, classes: Classes) -> SplitScores:
    """Returns the scores of the validation that selected the checkpoint."""
    metrics = meta.metrics
    means = {name: metrics[f"val/{name}"] for name in ("miou", "macc", "aacc") if f"val/{name}" in metrics}
    bounds = [metrics.get(f"val/miou_{bound}") for bound in Interval._fields]
    interval = None if None in bounds else Interval(*(float(bound) for bound in bounds if bound is not None))
    iou = {name: metrics.get(f"val/iou/{name}") for name in classes.names}
    return SplitScores(config.data.val_split, meta.dataset_digest, means, interval, iou)


def render_card(card: CardData) -> str:
    """Renders the model card as Markdown."""
    sections = (_heading(card), _data(card), _metrics(card), _training(card), _limitations(card))
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _heading(card: CardData) -> Iterator[str]:
    yield f"# {_escape(card.model)}"
    yield ""
    yield (
        f"Semantic segmentation with SegFormer-{card.config.model.variant.upper()}: assigns one of "
        f"{len(card.classes.names)} classes to each pixel of an image."
    )


def _data(card: CardData) -> Iterator[str]:
    data = card.config.data
    yield "## Data"
    yield ""
    yield (
        f"Trained on split {_code(data.train_split)} of {_code(card.dataset)}, digest "
        f"{_code(card.meta.dataset_digest)}."
    )
    yield (
        f"The checkpoint has the best {_score_name(card.config.train.score)} of its run on split "
        f"{_code(data.val_split)}, so the scores on this split are optimistic."
    )


def _score_name(score: str) -> str:
    """Returns the name of `train.score` for a reader."""
    return "mean IoU" if score == DEFAULT_SCORE else _code(score)


def _metrics(card: CardData) -> Iterator[str]:
    yield "## Metrics"
    yield ""
    yield "| split | images | mean IoU | 95% interval | mean class accuracy | pixel accuracy | dataset |"
    yield "|---|---|---|---|---|---|---|"
    for scores in card.scores:
        miou, macc, aacc = (_format_number(scores.means.get(name)) for name in ("miou", "macc", "aacc"))
        interval = _format_interval(scores.interval) or NO_VALUE
        cells = (_cell(scores.split), scores.rows or "", miou, interval, macc, aacc, _code(scores.digest))
        yield f"| {' | '.join(str(cell) for cell in cells)} |"
    yield ""
    yield f"| IoU | {' | '.join(_cell(scores.split) for scores in card.scores)} |"
    yield f"|---{'|---' * len(card.scores)}|"
    for name in card.classes.names[:MAX_CLASSES]:
        columns = [
            f"{_format_number(scores.classes.get(name))} {_format_interval(scores.intervals.get(name))}".strip()
            for scores in card.scores
        ]
        yield f"| {_cell(name)} | {' | '.join(columns)} |"
    if len(card.classes.names) > MAX_CLASSES:
        yield f"| and {len(card.classes.names) - MAX_CLASSES} more {'| ' * len(card.scores)}|"
    yield ""
    yield (
        "95% intervals are computed from 2000 bootstrap samples of the images. They describe the variation over other "
        "images of the same kind, not over other training runs."
    )
    if any(scores.interval is None for scores in card.scores):
        yield "Scores without an interval come from the validation during training."


def _training(card: CardData) -> Iterator[str]:
    config, meta = card.config, card.meta
    rows = {
        "run": card.run,
        "commit": card.commit or "unknown",
        "checkpoint": f"step {meta.step} of {config.train.steps}",
        "initial weights": config.model.init or "random",
        "crop, batch size": f"{config.data.crop} px, {config.train.batch}",
        "optimizer": f"AdamW, learning rate {config.optim.lr:g}, weight decay {config.optim.weight_decay:g}, "
        f"{config.optim.schedule} schedule",
        "loss": ", ".join(f"{name} x {weight:g}" for name, weight in config.loss.weight_by_loss().items()),
        "precision, seed": f"{config.train.precision}, {config.train.seed}",
        "libraries": ", ".join(f"{name} {version}" for name, version in sorted(meta.versions.items())),
    }
    yield "## Training"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {_cell(value)} |" for name, value in rows.items())
    yield ""
    yield "All settings are in `config.json`."


def _limitations(card: CardData) -> Iterator[str]:
    short_side = card.config.data.short_side
    size = f"resized to a short side of {short_side} px" if short_side else "not resized"
    yield "## Limitations"
    yield ""
    yield "- Every pixel is assigned one of the classes above, even if the image shows something else."
    yield f"- Images are {size}. The scores apply to images that are similar to those of the evaluated splits."
    yield "- The probabilities are not calibrated."
    absent = [name for name in card.classes.names if all(scores.classes.get(name) is None for scores in card.scores)]
    if absent:
        names = (
            ", ".join(map(_escape, absent)) if len(absent) <= MAX_LISTED_CLASSES else f"{len(absent)} of the classes"
        )
        yield f"- The quality is unknown for {names}: no evaluated split contains ground truth or predictions."
    plugins = [name for name in (card.config.model.encoder, card.config.model.head) if ":" in name]
    if plugins:
        yield f"- Loading requires additional code: {', '.join(map(_escape, plugins))}."


def _escape(text: str) -> str:
    """Returns text on one line that contains neither HTML nor code spans."""
    return html.escape(" ".join(text.split()), quote=False).replace("`", "'")


def _cell(text: str) -> str:
    return _escape(text).replace("|", "\\|")


def _code(text: str) -> str:
    """Returns text as a code span, in which HTML is not rendered. A bar is escaped: a table splits code spans at it."""
    plain = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def _format_number(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.4f}"


def _format_interval(interval: Interval | None) -> str:
    """Returns the interval as text, or an empty string if it was not computed."""
    return "" if interval is None or isnan(interval.low) else f"[{interval.low:.4f}, {interval.high:.4f}]"
