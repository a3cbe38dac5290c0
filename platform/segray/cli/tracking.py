"""`tracking sync`: uploads what a run could not send to MLflow while the server was away."""

from pathlib import Path

from segray import checkpoint, places
from segray.cli.command import Parser, end
from segray.errors import DataError
from segray.tracking.family import Family
from segray.tracking.journal import JOURNAL


def main() -> None:
    """Runs the command."""
    end(_sync)


def _sync() -> None:
    parser = Parser("Uploads the rest of a run, or of a sweep and its trials, to MLflow: metrics, config, model.")
    parser.add_argument("what", choices=["sync"], help="sync: upload what is left")
    parser.add_argument("run", type=Path, help="folder of the run or sweep, e.g. results/NAME")
    parser.add_argument("--tracking-uri", help="MLflow to upload to (default: the one the run was started with)")
    flags, _ = parser.parse()
    if not (flags.run / JOURNAL).exists():
        raise DataError(f"{flags.run} holds no {JOURNAL}; expected the folder of a run or sweep.")
    stored = checkpoint.load_config(flags.run)
    given = {"uri": flags.tracking_uri} if flags.tracking_uri else {}
    uri = places.tracking_uri(stored.model_copy(update={"tracking": stored.tracking.model_copy(update=given)}))
    family = Family(flags.run, uri)  # of one, if it is no sweep
    family.drain()
    version = f", model version {family.parent.version}" if family.parent.version else ""
    print(f"{flags.run}: all records are in {places.masked(uri)}, run {family.run_id}{version}.")
