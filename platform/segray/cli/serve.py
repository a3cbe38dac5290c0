"""Command `serve`: serves the version of a registered model that an alias names."""

from contextlib import suppress

from rich.console import Console

from segray.cli.command import CommandParser, make_console, run_command
from segray.cli.tables import print_paths
from segray.serving.controller import ServingState
from segray.serving.server import follow_state, running_server


def main() -> None:
    """Runs the command."""
    run_command(_serve)


def _serve() -> None:
    _, config = _parser().parse()
    console = make_console()
    with running_server(config, lambda line: console.print(line, highlight=False)) as server:
        rows = {
            "model": f"{config.tracking.model} version {server.version}, alias {config.serve.alias}",
            "url": server.url,
            "device": f"{server.device}, {config.serve.replicas} to {server.max_replicas} replicas",
        }
        print_paths(console, rows)
        with suppress(KeyboardInterrupt):  # Ctrl-C ends serving
            follow_state(StateLogger(console, server.version))
    console.print("the server has stopped.")


def _parser() -> CommandParser:
    parser = CommandParser("serve", "Serves a registered model over HTTP.")
    parser.add_alias("--name", "tracking.model", metavar="MODEL")
    parser.add_alias("--alias", "serve.alias", metavar="ALIAS")
    parser.add_alias("--canary", "serve.canary", metavar="FRACTION")
    parser.add_alias("--shadow", "serve.shadow", metavar="FRACTION", nargs="?", const="1")
    return parser


class StateLogger:
    """Prints changes of the served version, and problems as they appear and disappear."""

    def __init__(self, console: Console, version: str) -> None:
        self._console, self._version = console, version
        self._problems: tuple[str, ...] = ()

    def __call__(self, state: ServingState) -> None:
        """Prints the changes since the previous state."""
        if state.version is not None and state.version != self._version:
            self._say(f"now serving version {state.version} instead of {self._version}.")
            self._version = state.version
        for problem in state.problems:
            if problem not in self._problems:
                self._say(problem)
        if self._problems and not state.problems:
            self._say("all problems are resolved.")
        self._problems = state.problems

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)
