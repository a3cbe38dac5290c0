"""What all commands share: their flags, and how they end."""

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn

import tyro
import yaml
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from segray import config
from segray.config import Config, paths
from segray.config.data import Transforms
from segray.config.loss import ClassWeights, Terms
from segray.config.promote import ClassFloors, ClassNames
from segray.config.tune import Objectives, Space
from segray.core.errors import EXIT_INTERRUPTED, ConfigError, SegrayError
from segray.core.logging import silence_libraries
from segray.core.signals import raise_on_sigterm

CONFIG_VARIABLE = "SEGRAY_CONFIG"
EXIT_PIPE_CLOSED = 141
"""128 + SIGPIPE, as a shell reports it."""


def run_command(command: Callable[[], None]) -> NoReturn:
    """Runs a command and ends the process: 0, 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C."""
    silence_libraries()
    raise_on_sigterm()
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has closed the pipe; the interpreter's own flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE_CLOSED)
    except SegrayError as error:
        print(f"error: {paths.redact(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose mistakes are ours: one line, exit code 2."""

    def __init__(self, description: str, with_config: bool = False) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        self._with_config = with_config
        self.add_argument("-h", "--help", action="store_true", help="show this help and end")
        if with_config:
            self.add_argument(
                "--config",
                action="append",
                type=Path,
                default=[],
                metavar="FILE",
                help="settings in YAML; several are laid on each other, later ones win",
            )

    def format_help(self) -> str:
        """Returns the help of the command's own flags, whose usage line names the settings, too."""
        usage, gap, rest = super().format_help().partition("\n\n")
        return f"{usage} [--SECTION.SETTING VALUE ...]{gap}{rest}" if self._with_config else usage + gap + rest

    def error(self, message: str) -> NoReturn:
        """Raises the mistake as our error."""
        raise ConfigError(f"{message}; see --help.")

    def parse(
        self,
        argv: Sequence[str] | None = None,
        base: Callable[[argparse.Namespace], list[Path]] = lambda _flags: [],
    ) -> tuple[argparse.Namespace, Config]:
        """Returns the command's own flags, and the Config of files and dotted flags (the default without them).

        Order: defaults, the file named by SEGRAY_CONFIG, those of `base`, each --config in turn, flags.
        """
        argv = sys.argv[1:] if argv is None else argv
        if "-h" in argv or "--help" in argv:  # before required flags are missed
            self._help()
        flags, rest = self.parse_known_args(argv)
        self._check_json(getattr(flags, "json", None))
        if not self._with_config:
            if rest:
                self.error(f"{rest[0]} is not a flag of this command")
            return flags, Config()
        common = os.environ.get(CONFIG_VARIABLE)
        files = [*([Path(common)] if common else []), *base(flags), *flags.config]
        return flags, config.load(files, parse_dotted_flags(rest))

    def _check_json(self, file: Path | None) -> None:
        """Refuses a file that could not be written hours later, or would be lost with a job's working directory."""
        if file is None:
            return
        paths.absolute_path("--json", str(file))
        if not file.absolute().parent.is_dir() or file.is_dir():
            self.error(f"--json is {file}, which cannot be written; expected a file in a folder that exists")

    def _help(self) -> NoReturn:
        self.print_help()
        if self._with_config:
            print(f"\nsettings:\n{_settings_help()}")
        sys.stdout.flush()
        sys.exit(0)


def _settings_help() -> str:
    """Returns the help of all settings, without the usage line of tyro: the command has one of its own."""
    registry, text = tyro.constructors.ConstructorRegistry(), io.StringIO()
    registry.primitive_rule(_yaml_flag)
    with registry, redirect_stdout(text), suppress(SystemExit):
        tyro.cli(Config, args=["--help"], prog="", description="", use_underscores=True)
    return text.getvalue().partition("\n\n")[2].lstrip("\n")


def _yaml_flag(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Shows a setting that is spelt in YAML as one flag; tyro would make subcommands of what may stand in it."""
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
    """Returns a value as a user types it after a flag: `[cross_entropy]`, `{road: 0.5}`, `none`."""
    if value is None:
        return "none"
    text = yaml.safe_dump(json.loads(json.dumps(value)), default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def parse_dotted_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Returns `--optim.lr 6e-5 --data.root=DIR` as {"optim.lr": "6e-5", "data.root": "DIR"}.

    A flag without a value means true; `none` is none. Values stay text: the fields coerce them.

    Raises:
        ConfigError: something is no flag.
    """
    settings: dict[str, Any] = {}
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"'{word}' stands alone; expected --section.setting value; see --help.")
        key, given, value = word.removeprefix("--").partition("=")
        if not given:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        settings[key] = None if value.lower() == "none" else value
    return settings
