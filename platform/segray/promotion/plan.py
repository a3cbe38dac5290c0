"""Plans of alias updates: which aliases a promotion or a rollback moves."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from segray.core.errors import RegistryError
from segray.core.parsing import parse_json
from segray.tracking.tags import CHAMPION, PREVIOUS, SERVING_ALIASES

TAG_KEYS = {"kind": "what", "before": "found", "after": "wanted"}
"""Keys of the plan's tag that differ from the names of the attributes."""

Aliases = Mapping[str, str | None]


@dataclass(frozen=True)
class AliasChange:
    """Plan for an update of the serving aliases.

    Attributes:
        kind: kind of the update.
        model: name of the registered model.
        before: champion and previous version at the time of the decision; `None` for an alias that was not set.
        after: champion and previous version after the update. The new champion loses the challenger alias.
        audit: id of the MLflow run that is tagged when the update is complete; `None` tags no run.
        key: unique key of this plan.
    """

    kind: Literal["promotion", "rollback"]
    model: str
    before: Aliases
    after: Aliases
    audit: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def steps(self) -> tuple[Aliases, ...]:
        """Alias states before, during and after the update."""
        return self.before, {**self.before, PREVIOUS: self.after[PREVIOUS]}, self.after

    @property
    def moves_aliases(self) -> bool:
        """Whether any alias moves. None does while the decision is being recorded."""
        return self.after != self.before

    def to_json(self) -> str:
        """Returns the value of the tag of the lock."""
        values = asdict(self)
        return json.dumps({TAG_KEYS.get(name, name): value for name, value in values.items()})

    @classmethod
    def from_json(cls, text: str) -> "AliasChange":
        """Returns the plan in the tag of a lock.

        Raises:
            RegistryError: the tag is damaged.
        """
        try:
            values = parse_json(text)
            plan = cls(**{name: values.pop(key) for name, key in TAG_KEYS.items()}, **values)
            serving_aliases(plan.before), serving_aliases(plan.after)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RegistryError(
                f"the lock of a promotion contains no valid plan ({text[:100]!r}); check the aliases of the model, and "
                "delete the registered model that is the lock."
            ) from error
        return plan


def plan_promotion(model: str, current: Aliases, version: str) -> AliasChange:
    """Returns the plan that makes a version the champion and keeps the current champion as the previous version.

    Raises:
        RegistryError: the version is the champion already.
    """
    if current[CHAMPION] == version:
        raise RegistryError(f"version {version} of {model} is already the {CHAMPION}; choose another with --version.")
    after = {PREVIOUS: current[CHAMPION] or current[PREVIOUS], CHAMPION: version}
    return AliasChange("promotion", model, serving_aliases(current), after)


def plan_rollback(model: str, current: Aliases) -> AliasChange:
    """Returns the plan that makes the previous version the champion again.

    Raises:
        RegistryError: the model has no previous version.
    """
    if current[PREVIOUS] is None:
        raise RegistryError(
            f"{model} has no version {PREVIOUS}: no champion was replaced, or its replacement was rolled back already."
        )
    return AliasChange("rollback", model, serving_aliases(current), {PREVIOUS: None, CHAMPION: current[PREVIOUS]})


def serving_aliases(aliases: Aliases) -> dict[str, str | None]:
    """Returns the champion and the previous version without other aliases."""
    return {alias: aliases[alias] for alias in SERVING_ALIASES}
