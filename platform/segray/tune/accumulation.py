"""What fits into memory: learned from trials that did not, so that no later one fails as they did.

The global batch stays what it is; a worker computes its share in more parts. Batch and accumulation so follow variant,
crop and device without anybody having to know them beforehand.
"""

from dataclasses import dataclass, field
from typing import Any

from segray.config import Config

VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5")


@dataclass(frozen=True)
class MemoryProfile:
    """What decides a worker's memory: larger in both, it takes more; other in anything else, nothing is known."""

    variant: int
    crop: int
    others: tuple[Any, ...]

    @classmethod
    def of(cls, config: Config) -> "MemoryProfile":
        """Returns what a run loads its workers with."""
        model = config.model.model_dump(exclude={"variant", "init", "drop_path", "dropout"})
        loss = tuple(str(term) for term in config.loss.terms)
        others = (config.train.batch, config.train.precision, config.train.ema > 0, *model.values(), *loss)
        return cls(VARIANTS.index(config.model.variant), config.data.crop, others)

    def is_within(self, other: "MemoryProfile") -> bool:
        """Returns whether the other takes at least as much."""
        return self.others == other.others and self.variant <= other.variant and self.crop <= other.crop


@dataclass
class AccumulationTable:
    """The parts that steps have to be computed in.

    Attributes:
        known: loads that did not fit, and the parts in which they did.
    """

    known: list[tuple[MemoryProfile, int]] = field(default_factory=list)

    def learned(self, config: Config) -> None:
        """Notes that a run needs as many parts as it has."""
        self.known.append((MemoryProfile.of(config), config.train.accumulate))

    def parts(self, config: Config) -> int:
        """Returns in how many parts a run's steps should be computed."""
        load = MemoryProfile.of(config)
        needed = [parts for known, parts in self.known if known.is_within(load)]
        return max([config.train.accumulate, *needed])


def with_doubled_accumulation(config: Config) -> Config | None:
    """Returns the settings with half as many images at once, none if it is one already."""
    train = config.train
    most = train.batch // train.workers
    if train.accumulate >= most:
        return None
    return config.model_copy(update={"train": train.model_copy(update={"accumulate": min(2 * train.accumulate, most)})})
