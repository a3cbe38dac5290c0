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
        "Uploads the rest of a run, or of a sweep and its trials, to MLflow: metrics, config, model."
    )
    parser.add_argument("what", choices=["sync"], help="sync: upload what is left")
    parser.add_argument("run", type=Path, help="folder of the run or sweep, e.g. results/NAME")
    parser.add_argument("--tracking-uri", help="MLflow to upload to (default: the one the run was started with)")
    flags, _ = parser.parse()
    if not (flags.run / JOURNAL).exists():
        raise DataError(f"{flags.run} holds no {JOURNAL}; expected the folder of a run or sweep.")
    stored = checkpoint.load_config(flags.run)
    given = {"uri": flags.tracking_uri} if flags.tracking_uri else {}
    uri = paths.tracking_uri(stored.model_copy(update={"tracking": stored.tracking.model_copy(update=given)}))
    family = SweepUploader(flags.run, uri)  # has one member if it is not a sweep
    family.flush()
    version = f", model version {family.parent.version}" if family.parent.version else ""
    print(f"{flags.run}: all records are in {paths.redact(uri)}, run {family.run_id}{version}.")
