"""Gradient accumulation steps that fit into memory, learned from trials that ran out of memory.

The global batch size stays the same. A worker computes its share of a batch in more accumulation steps. The number of
steps adapts to model variant, crop size and device, and later trials start with a number that is known to fit.
"""

from dataclasses import dataclass, field
from typing import Any

from segray.config import Config
from segray.models.cost import variants_by_cost


@dataclass(frozen=True)
class MemoryProfile:
    """Settings that determine a worker's memory use.

    Memory use grows with variant and crop. Profiles that differ in any other setting are not comparable.

    Attributes:
        variant: index of the model variant in the order of memory use.
        crop: side of the crop, in pixels.
        others: other settings that affect memory use.
    """

    variant: int
    crop: int
    others: tuple[Any, ...]

    @classmethod
    def from_config(cls, config: Config) -> "MemoryProfile":
        """Returns the memory profile of a run."""
        model = config.model.model_dump(exclude={"variant", "init", "drop_path", "dropout"})
        loss = tuple(str(term) for term in config.loss.terms)
        others = (config.train.batch, config.train.precision, config.train.ema_decay > 0, *model.values(), *loss)
        return cls(variants_by_cost().index(config.model.variant), config.data.crop, others)

    def is_within(self, other: "MemoryProfile") -> bool:
        """Returns True if the other profile uses at least as much memory."""
        return self.others == other.others and self.variant <= other.variant and self.crop <= other.crop


@dataclass
class AccumulationTable:
    """Accumulation steps that memory profiles require.

    Attributes:
        entries: profiles that did not fit with fewer steps, each with the number of accumulation steps that fits.
    """

    entries: list[tuple[MemoryProfile, int]] = field(default_factory=list)

    def record(self, config: Config) -> None:
        """Records that a run requires its number of accumulation steps."""
        self.entries.append((MemoryProfile.from_config(config), config.train.accumulation_steps))

    def accumulation_steps(self, config: Config) -> int:
        """Returns the number of accumulation steps for a run."""
        if not self.entries:
            return config.train.accumulation_steps
        profile = MemoryProfile.from_config(config)
        required = [steps for smaller, steps in self.entries if smaller.is_within(profile)]
        return max([config.train.accumulation_steps, *required])


def with_doubled_accumulation(config: Config) -> Config | None:
    """Returns the settings with twice the accumulation steps, or `None` if a worker computes one image at a time."""
    train = config.train
    max_steps = train.batch // train.workers
    if train.accumulation_steps >= max_steps:
        return None
    return config.model_copy(
        update={"train": train.model_copy(update={"accumulation_steps": min(2 * train.accumulation_steps, max_steps)})}
    )
