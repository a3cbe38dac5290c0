"""Shared code of all commands: flag parsing and exit codes."""

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
"""Exit code if the output pipe is closed: 128 + SIGPIPE, as shells report it."""


def run_command(command: Callable[[], None]) -> NoReturn:
    """Runs a command and exits with code 0, 1 (failure), 2 (user error), 130 (Ctrl-C) or 141 (closed output pipe)."""
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
    """Argument parser that raises ConfigError for invalid arguments: one line, exit code 2."""

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
        """Returns the help of the command's own flags, with a usage line that mentions the settings."""
        usage, gap, rest = super().format_help().partition("\n\n")
        return f"{usage} [--SECTION.SETTING VALUE ...]{gap}{rest}" if self._with_config else usage + gap + rest

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with the message."""
        raise ConfigError(f"{message}; see --help.")

    def parse(
        self,
        argv: Sequence[str] | None = None,
        base: Callable[[argparse.Namespace], list[Path]] = lambda _flags: [],
    ) -> tuple[argparse.Namespace, Config]:
        """Returns the command's own flags, and the Config from files and dotted flags.

        Later sources override earlier ones: defaults, the file named by SEGRAY_CONFIG, the files that `base` returns,
        each --config file in order, flags.

        Args:
            argv: arguments of the command. Defaults to those of the process.
            base: function that returns additional settings files for the parsed flags.

        Raises:
            ConfigError: a flag or setting is invalid.
        """
        argv = sys.argv[1:] if argv is None else argv
        if "-h" in argv or "--help" in argv:  # before the check for required flags
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
        """Rejects a --json file that cannot be written, or that would be lost with a job's working directory."""
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
    """Returns the help of all settings, without tyro's usage line, because the command has its own."""
    registry, text = tyro.constructors.ConstructorRegistry(), io.StringIO()
    registry.primitive_rule(_yaml_flag)
    with registry, redirect_stdout(text), suppress(SystemExit):
        tyro.cli(Config, args=["--help"], prog="", description="", use_underscores=True)
    return text.getvalue().partition("\n\n")[2].lstrip("\n")


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


def parse_dotted_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Returns `--optim.lr 6e-5 --data.root=DIR` as {"optim.lr": "6e-5", "data.root": "DIR"}.

    A flag without a value is "true", and `none` is None. Other values remain text: the fields coerce them.

    Raises:
        ConfigError: an argument is not a flag.
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
