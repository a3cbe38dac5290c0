"""Command `tracking sync`: uploads the records that a run could not send because MLflow was unavailable."""

from pathlib import Path

from segray.cli.command import CommandParser, run_command
from segray.config import paths
from segray.core.errors import DataError
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL
from segray.tracking.sweep_uploader import SweepUploader


def main() -> None:
    """Runs the command."""
    run_command(_sync)


def _sync() -> None:
    parser = CommandParser(
        "tracking", "Uploads the remaining records of a run, or of a sweep and its trials, to MLflow."
    )
    parser.add_argument("action", choices=["sync"], help="sync: upload the records that MLflow does not have yet")
    parser.add_argument("run", type=Path, help="folder of the run or sweep, e.g. results/NAME")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: the store in the run's settings)")
    flags, _ = parser.parse()
    if not (flags.run / JOURNAL).exists():
        raise DataError(f"{flags.run} has no {JOURNAL}; expected the folder of a run or sweep.")
    stored = checkpoint.load_config(flags.run)
    overrides = {"uri": flags.tracking_uri} if flags.tracking_uri else {}
    uri = paths.tracking_uri(stored.model_copy(update={"tracking": stored.tracking.model_copy(update=overrides)}))
    uploader = SweepUploader(flags.run, uri)  # a run is a sweep without trials
    uploader.flush()
    version = f", model version {uploader.parent.version}" if uploader.parent.version else ""
    print(f"{flags.run}: all records are in {paths.redact(uri)}, run {uploader.run_id}{version}.")
