"""The settings that each command uses, the check of its flags against them, and their help."""

import io
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

import tyro
import yaml
from pydantic import BaseModel, create_model
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from segray.config import Config
from segray.config.data import Transforms
from segray.config.loss import ClassWeights, Terms
from segray.config.promote import ClassFloors, ClassNames
from segray.config.renamed import current_key
from segray.config.tune import Objectives, Space
from segray.core.errors import ConfigError

RUN = ("name", "results", "data", "model", "loss", "optim", "train", "eval", "tracking")
SWEEP = (*RUN, "tune")
STORE = ("results", "tracking.uri")  # by default, the MLflow store lies next to the results folder
INFERENCE = (
    *("eval.size_multiple", "eval.mode", "eval.crop", "eval.stride"),
    *("eval.window_batch", "eval.scales", "eval.flip", "eval.precision"),
)
REPLICA = ("serve.device", "serve.cpus_per_replica", "serve.precision", "serve.slide_above_pixels")
COMMAND_SETTINGS = {
    "train": RUN,
    "tune": SWEEP,
    "evaluate": (*STORE, "data.root", "train.device", "eval"),
    "predict": (*STORE, "train.device", *INFERENCE),
    "promote": (*STORE, "tracking.model", "data.root", "train.device", "eval", "promote", *REPLICA),
    "serve": (*STORE, "tracking.model", "serve"),
    "doctor": SWEEP,  # it checks the settings of a run or sweep, with the flags of train or tune
    "analyse model": ("model",),
    "analyse batches": ("data", "train.batch", "train.seed"),
    "analyse curves": (*STORE, "tracking.experiment"),
}
"""Sections and single settings, by command. A command refuses flags of all other settings."""


def check_flags(command: str, settings: Sequence[str], keys: Iterable[str]) -> None:
    """Checks that a command uses the settings given as flags. Unknown settings pass, because `build` reports them.

    Args:
        command: name of the command, for the error message.
        settings: sections and single settings that the command uses.
        keys: dotted keys of the flags.

    Raises:
        ConfigError: a setting is not one of the command. The message names the commands that use it.
    """
    for key in keys:
        if _covers(settings, key) or not _is_setting(key):
            continue
        users = [name for name, used in COMMAND_SETTINGS.items() if _covers(used, key)]
        names = " and ".join([", ".join(users[:-1]), users[-1]] if len(users) > 1 else users)
        raise ConfigError(f"--{key} is not a setting of {command}; {names} {'use' if len(users) > 1 else 'uses'} it.")


def _covers(settings: Sequence[str], key: str) -> bool:
    """Returns True if the settings contain a dotted key or a section of it."""
    return any(f"{current_key(key)}.".startswith(f"{setting}.") for setting in settings)


def _is_setting(key: str) -> bool:
    section, _, name = current_key(key).partition(".")
    field = Config.model_fields.get(section)
    if field is None or not name:
        return field is not None
    return name.partition(".")[0] in getattr(field.annotation, "model_fields", {})


def reset_unused_sections(config: Config, settings: Sequence[str]) -> Config:
    """Returns the Config with the default values in all sections that a command does not use."""
    used = {setting.partition(".")[0] for setting in settings}
    unused = {name: field for name, field in Config.model_fields.items() if name not in used}
    return config.model_copy(update={name: field.get_default() for name, field in unused.items()})


def settings_help(settings: Sequence[str]) -> str:
    """Returns the help of the settings, without tyro's usage line, because the command has its own."""
    registry, text = ConstructorRegistry(), io.StringIO()
    registry.primitive_rule(_yaml_flag)
    with registry, redirect_stdout(text), suppress(SystemExit):
        tyro.cli(
            _select(Config, settings),
            args=["--help"],
            prog="",
            description="",
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff,),
        )
    return text.getvalue().partition("\n\n")[2].lstrip("\n")


def _select(model: type[BaseModel], keys: Iterable[str]) -> type[BaseModel]:
    """Returns a model that has only the fields named by dotted keys."""
    selected: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = [key.partition(".")[2] for key in keys if key.partition(".")[0] == name]
        if "" in inner:
            selected[name] = (field.annotation, field)
        elif inner and isinstance(field.annotation, type):
            part = _select(field.annotation, inner)
            selected[name] = (part, part())
    return create_model(model.__name__, __doc__=model.__doc__, **selected)


def _yaml_flag(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Makes one flag of a setting that is written as YAML. By default, tyro creates subcommands for it."""
    if info.type not in (Transforms, Terms, ClassWeights, Space, Objectives, ClassFloors, ClassNames):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="YAML",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or isinstance(value, tuple | str | dict | float),
        str_from_instance=lambda value: [_format_yaml(value)],
    )


def _format_yaml(value: Any) -> str:
    """Returns a value in the form used on the command line: `[cross_entropy]`, `{road: 0.5}`, `none`."""
    if value is None:
        return "none"
    text = yaml.safe_dump(json.loads(json.dumps(value)), default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")
