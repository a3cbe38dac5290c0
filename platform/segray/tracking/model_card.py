"""Model cards: description, training data, metrics and limits of a version.

The functions of this module perform no I/O. The caller provides all data.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

from segray.config import Config
from segray.core.classes import Classes
from segray.evaluation.metrics.bootstrap import Interval
from segray.models.checkpoint import Meta

MAX_CLASSES = 30
"""Maximum number of classes in the table. A database may limit a card to 5,000 characters."""
FEW = 10
NONE = "-"


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
        scored: scores of each evaluated split.
    """

    model: str
    config: Config
    classes: Classes
    meta: Meta
    run: str
    dataset: str
    commit: str | None
    scored: Sequence[SplitScores]


def validation_scores(meta: Meta, config: Config, classes: Classes) -> SplitScores:
    """Returns the scores of the validation that selected the checkpoint."""
    found = meta.metrics
    named = {name: found[f"val/{name}"] for name in ("miou", "macc", "aacc") if f"val/{name}" in found}
    ends = [found.get(f"val/miou_{end}") for end in Interval._fields]
    interval = None if None in ends else Interval(*(float(end) for end in ends if end is not None))
    by_class = {name: found.get(f"val/iou/{name}") for name in classes.names}
    return SplitScores(config.data.val_split, meta.dataset_digest, named, interval, by_class)


def render_card(facts: CardData) -> str:
    """Renders the model card as Markdown."""
    parts = (_head(facts), _data(facts), _metrics(facts), _training(facts), _limits(facts))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(facts: CardData) -> Iterator[str]:
    names = facts.classes.names
    yield f"# {facts.model}"
    yield ""
    yield (
        f"SegFormer-{facts.config.model.variant.upper()}: an image in, for each of its pixels one of "
        f"{len(names)} classes out."
    )


def _data(facts: CardData) -> Iterator[str]:
    data = facts.config.data
    yield "## Data"
    yield ""
    yield f"Trained on split `{data.train_split}` of `{facts.dataset}`, digest `{facts.meta.dataset_digest}`."
    yield f"Its checkpoint was chosen by the mean IoU on split `{data.val_split}`, whose figures flatter it for that."


def _metrics(facts: CardData) -> Iterator[str]:
    yield "## Metrics"
    yield ""
    yield "| split | images | mean IoU | 95% | mean accuracy | pixel accuracy | dataset |"
    yield "|---|---|---|---|---|---|---|"
    for one in facts.scored:
        means = [_number(one.means.get(name)) for name in ("miou", "macc", "aacc")]
        cells = (one.split, one.rows or "", means[0], _span(one.interval), *means[1:], f"`{one.digest}`")
        yield f"| {' | '.join(str(cell) for cell in cells)} |"
    yield ""
    yield f"| IoU | {' | '.join(one.split for one in facts.scored)} |"
    yield f"|---{'|---' * len(facts.scored)}|"
    for name in facts.classes.names[:MAX_CLASSES]:
        found = [f"{_number(one.classes.get(name))} {_span(one.intervals.get(name), '')}" for one in facts.scored]
        yield f"| {_cell(name)} | {' | '.join(cell.strip() for cell in found)} |"
    if len(facts.classes.names) > MAX_CLASSES:
        yield f"| and {len(facts.classes.names) - MAX_CLASSES} more {'| ' * len(facts.scored)}|"
    yield ""
    yield "95%: of 2000 bootstrap samples of the images; with other images of the kind, not with another training."
    if any(one.interval is None for one in facts.scored):
        yield "Where there is none, none was counted; a promotion evaluates the version and adds its own."


def _training(facts: CardData) -> Iterator[str]:
    config, meta = facts.config, facts.meta
    rows = {
        "run": facts.run,
        "commit": facts.commit or "not known",
        "checkpoint": f"step {meta.step} of {config.train.steps}",
        "start": config.model.init or "random weights",
        "crop, batch": f"{config.data.crop} px, {config.train.batch}",
        "optimiser": f"AdamW, rate {config.optim.lr:g}, decay {config.optim.weight_decay:g}, {config.optim.schedule}",
        "loss": ", ".join(f"{name} x {weight:g}" for name, weight in config.loss.weight_by_loss().items()),
        "precision, seed": f"{config.train.precision}, {config.train.seed}",
        "libraries": ", ".join(f"{name} {version}" for name, version in sorted(meta.versions.items())),
    }
    yield "## Training"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {value} |" for name, value in rows.items())
    yield ""
    yield "All settings are in `config.json`."


def _limits(facts: CardData) -> Iterator[str]:
    short = facts.config.data.short_side
    seen = f"resized to a short side of {short} px" if short else "at its own size"
    yield "## Limits"
    yield ""
    yield "- It knows the classes above and no others: every pixel is given one of them, whatever it shows."
    yield f"- Figures are of images like those it was evaluated on; an image is seen {seen}. Others were not tried."
    yield "- Its probabilities were not calibrated."
    unseen = [name for name in facts.classes.names if all(one.classes.get(name) is None for one in facts.scored)]
    if unseen:
        told = ", ".join(unseen) if len(unseen) < FEW else f"{len(unseen)} of the classes"
        yield f"- Nothing is known of how well it finds {told}: no figures of them are there."
    plugins = [name for name in (facts.config.model.encoder, facts.config.model.head) if ":" in name]
    if plugins:
        yield f"- It needs code of its own to load: {', '.join(plugins)}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _span(found: Interval | None, otherwise: str = NONE) -> str:
    return otherwise if found is None or isnan(found.low) else f"[{found.low:.4f}, {found.high:.4f}]"
