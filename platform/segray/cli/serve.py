"""Command `serve`: serves the version of a registered model that an alias names."""

import argparse
from contextlib import suppress

from rich.console import Console

from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.cli.tables import print_paths
from segray.config import Config, build, merge
from segray.serving.controller import ServingState
from segray.serving.server import follow_state, running_server


def main() -> None:
    """Runs the command."""
    run_command(_serve)


def _serve() -> None:
    flags, config = _parser().parse()
    config = _laid(config, flags)
    console = make_console()
    with running_server(config, lambda line: console.print(line, highlight=False)) as place:
        model = f"{config.tracking.model}, version {place.version} by the alias {config.serve.alias}"
        rows = {
            "serving": model,
            "at": place.url,
            "on": f"{place.device}, {config.serve.replicas} to {place.max_replicas} replicas",
        }
        print_paths(console, rows)
        with suppress(KeyboardInterrupt):  # Ctrl-C ends serving
            follow_state(StateLogger(console, place.version))
    console.print("ended.")


def _parser() -> CommandParser:
    parser = CommandParser("Serves a registered model.", with_config=True)
    parser.add_argument("--name", metavar="MODEL", help="short for --tracking.model MODEL")
    parser.add_argument("--alias", metavar="ALIAS", help="short for --serve.alias ALIAS")
    parser.add_argument("--canary", type=float, metavar="SHARE", help="short for --serve.canary SHARE")
    parser.add_argument(
        "--shadow", type=float, nargs="?", const=1.0, metavar="SHARE", help="short for --serve.shadow 1"
    )
    return parser


def _laid(config: Config, flags: argparse.Namespace) -> Config:
    """Returns the settings updated with the values of the short flags."""
    short = {"tracking.model": flags.name, "serve.alias": flags.alias}
    short |= {"serve.canary": flags.canary, "serve.shadow": flags.shadow}
    given = {key: value for key, value in short.items() if value is not None}
    return build(merge(config.model_dump(), given))


class StateLogger:
    """Prints changes of the served version, and problems as they appear and disappear."""

    def __init__(self, console: Console, version: str) -> None:
        self._console, self._version = console, version
        self._problems: tuple[str, ...] = ()

    def __call__(self, state: ServingState) -> None:
        """Prints the changes since the previous state."""
        if state.version is not None and state.version != self._version:
            self._say(f"version {state.version} answers, after {self._version}.")
            self._version = state.version
        for problem in state.problems:
            if problem not in self._problems:
                self._say(problem)
        if self._problems and not state.problems:
            self._say("all is well again.")
        self._problems = state.problems

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)
