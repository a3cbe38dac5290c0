"""Parser of command-line flags and settings, and the console, exit codes and JSON files of all commands."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rich.console import Console

from segray import config
from segray.cli.settings import COMMAND_SETTINGS, check_flags, reset_unused_sections, settings_help
from segray.config import Config, paths
from segray.core.errors import EXIT_INTERRUPTED, ConfigError, DataError, SegrayError
from segray.core.logging import silence_libraries
from segray.core.signals import raise_on_sigterm

CONFIG_VARIABLE = "SEGRAY_CONFIG"
EXIT_PIPE_CLOSED = 141
"""Exit code if the output pipe is closed: 128 + SIGPIPE, as shells report it."""
COMMON_FLAGS: dict[str, dict[str, Any]] = {
    "model": {
        "required": True,
        "metavar": "MODEL",
        "help": "checkpoint folder, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/model",
    },
    "workers": {
        "type": int,
        "metavar": "N",
        "help": "number of parallel tasks (default: as many as the GPUs or CPUs of the cluster allow)",
    },
    "json": {"type": Path, "metavar": "FILE", "help": "write the result as JSON to FILE"},
    "quiet": {"action": "store_true", "help": "print only the result"},
    "resume": {
        "metavar": "DIR",
        "help": "resume a run or sweep: its folder, or auto for the latest unfinished one with the same settings",
    },
}


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


def make_console(quiet: bool = False, file: TextIO | None = None) -> Console:
    """Returns a console without markup and cropping, so that paths and names with brackets print unchanged.

    Args:
        quiet: whether the console prints nothing.
        file: file to write to. Defaults to standard output.
    """
    return Console(quiet=quiet, file=file, soft_wrap=True, markup=False)


def write_json(path: Path | None, content: Any) -> None:
    """Writes the content to the file of --json, if the flag is given.

    Raises:
        DataError: the file cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=2))
    except OSError as error:
        raise DataError(f"--json {path} cannot be written ({error}).") from error


class CommandParser(argparse.ArgumentParser):
    """Argument parser that raises ConfigError for invalid arguments: one line, exit code 2.

    Args:
        command: name of the command, such as `train` or `analyse model`.
        description: description for the help.
        settings: sections and single settings that the command uses. Defaults to those in `COMMAND_SETTINGS`.
    """

    def __init__(self, command: str, description: str, settings: Sequence[str] | None = None) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        self._command = command
        self.prog = " ".join([self.prog, *command.split()[1:]])
        self._settings = COMMAND_SETTINGS.get(command, ()) if settings is None else settings
        self._aliases: dict[str, str] = {}
        self.add_argument("-h", "--help", action="store_true", help="show this help and exit")
        if self._settings:
            self.add_argument(
                "--config",
                action="append",
                type=Path,
                default=[],
                metavar="FILE",
                help="settings as YAML; if repeated, later files override earlier ones",
            )

    def add_common(self, *names: str) -> None:
        """Adds flags of `COMMON_FLAGS`, and `data` as the alias of `data.root`."""
        for name in names:
            if name == "data":
                self.add_alias("--data", "data.root", metavar="DIR")
            else:
                self.add_argument(f"--{name}", **COMMON_FLAGS[name])

    def add_alias(self, flag: str, key: str, **options: Any) -> None:
        """Adds a short flag of a setting. It becomes the dotted flag before the settings are validated.

        Args:
            flag: short flag, such as `--data`.
            key: dotted key of the setting.
            options: options of `add_argument`.
        """
        self._aliases[flag] = key
        self.add_argument(flag, default=argparse.SUPPRESS, help=f"short for --{key}", **options)

    def format_help(self) -> str:
        """Returns the help of the command's own flags, with a usage line that mentions the settings."""
        usage, gap, rest = super().format_help().partition("\n\n")
        return f"{usage} [--SECTION.SETTING VALUE ...]{gap}{rest}" if self._settings else usage + gap + rest

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with the message."""
        raise ConfigError(f"{message}; see --help.")

    def parse(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Config]:
        """Returns the command's own flags, and the Config from files and dotted flags.

        Later sources override earlier ones: defaults, the file named by SEGRAY_CONFIG, the settings of the run or
        sweep to resume, each --config file in order, flags. Files may contain sections of other commands: they are
        validated, and then replaced by the defaults. Flags may not.

        Args:
            argv: arguments of the command. Defaults to those of the process.

        Raises:
            ConfigError: a flag or setting is invalid.
        """
        argv = sys.argv[1:] if argv is None else argv
        if "-h" in argv or "--help" in argv:  # before the check for required flags
            self._print_help()
        flags, rest = self.parse_known_args(argv)
        self._check_json(getattr(flags, "json", None))
        if (workers := getattr(flags, "workers", None)) is not None and workers < 1:
            raise ConfigError(f"--workers is {workers}; expected at least 1.")
        if not self._settings:
            if rest:
                self.error(f"{rest[0]} is not a flag of this command")
            return flags, Config()
        overrides = parse_dotted_flags(rest)
        check_flags(self._command, self._settings, overrides)
        overrides |= self._pop_aliases(flags, overrides)
        default_file = os.environ.get(CONFIG_VARIABLE)
        files = [*([Path(default_file)] if default_file else []), *_resumed_settings(flags), *flags.config]
        return flags, reset_unused_sections(config.load(files, overrides), self._settings)

    def _pop_aliases(self, flags: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
        """Removes the short flags of settings from the flags and returns them by dotted key."""
        settings: dict[str, Any] = {}
        for flag, key in self._aliases.items():
            value = vars(flags).pop(flag.removeprefix("--"), None)
            if value is None:
                continue
            if key in overrides:
                self.error(f"{flag} and --{key} are both given; expected one of them")
            settings |= parse_dotted_flags([f"--{key}={value}"])
        return settings

    def _check_json(self, path: Path | None) -> None:
        """Rejects a --json file that cannot be written, or that would be lost with a job's working directory."""
        if path is None:
            return
        paths.absolute_path("--json", str(path))
        folder = path.absolute().parent
        if not folder.is_dir() or path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
            self.error(f"--json is {path}, which cannot be written; expected a file in a writable folder that exists")

    def _print_help(self) -> NoReturn:
        self.print_help()
        if self._settings:
            print(f"\nsettings:\n{settings_help(self._settings)}")
        sys.stdout.flush()
        sys.exit(0)


def _resumed_settings(flags: argparse.Namespace) -> list[Path]:
    """Returns the settings file of the run or sweep to resume, which other files and flags override."""
    resume = getattr(flags, "resume", None)
    if resume in (None, paths.RESUME_LATEST):
        return []
    folder = Path(resume).expanduser()  # the folder of a run or sweep, or a checkpoint in the folder of a run
    return [file for file in (folder / paths.CONFIG_FILE, folder.parent / paths.CONFIG_FILE) if file.exists()][:1]


def parse_dotted_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Returns `--optim.lr 6e-5 --data.root=DIR` as {"optim.lr": "6e-5", "data.root": "DIR"}.

    A flag without a value is "true", and `none` is None. Other values remain text: the fields coerce them.

    Raises:
        ConfigError: an argument is not a flag.
    """
    settings: dict[str, Any] = {}
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"unexpected argument '{argument}'; expected --section.setting VALUE; see --help.")
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals:
            value = remaining.pop(0) if remaining and not remaining[0].startswith("--") else "true"
        settings[key] = None if value.lower() == "none" else value
    return settings
