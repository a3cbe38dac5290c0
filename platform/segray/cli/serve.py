"""Command `serve`: serves the version of a registered model that an alias names."""

from argparse import Namespace
from contextlib import suppress

from rich.console import Console

from segray.cli.parser import make_console
from segray.cli.tables import print_paths
from segray.config import Config
from segray.serving.server import follow_state, running_server
from segray.serving.status import ServingState


def run(_flags: Namespace, config: Config) -> None:
    """Serves until the process is interrupted."""
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


class StateLogger:
    """Prints changes of the served version, and problems as they appear and disappear."""

    def __init__(self, console: Console, version: str) -> None:
        self._console, self._version = console, version
        self._problems: tuple[str, ...] = ()

    def __call__(self, state: ServingState) -> None:
        """Prints the changes since the previous state."""
        if state.version is not None and state.version != self._version:
            self._print(f"now serving version {state.version} instead of {self._version}.")
            self._version = state.version
        for problem in state.problems:
            if problem not in self._problems:
                self._print(problem)
        if self._problems and not state.problems:
            self._print("all problems are resolved.")
        self._problems = state.problems

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)
