"""`tracking sync`: uploads what a run could not send to MLflow while the server was away."""

from pathlib import Path

from segray.checkpoint import CONFIG
from segray.cli.command import Parser, end
from segray.errors import DataError
from segray.tracking.journal import JOURNAL, Tail
from segray.tracking.upload import Upload


def main() -> None:
    """Runs the command."""
    end(_sync)


def _sync() -> None:
    parser = Parser("Uploads the rest of a run's journal to MLflow: metrics, config, model.")
    parser.add_argument("what", choices=["sync"], help="sync: upload what is left")
    parser.add_argument("run", type=Path, help="folder of the run, e.g. results/NAME")
    parser.add_argument("--tracking-uri", help="MLflow to upload to (default: the one the run was started with)")
    flags, _ = parser.parse()
    if not (flags.run / JOURNAL).exists():
        raise DataError(f"{flags.run} holds no {JOURNAL}; expected the folder of a run.")
    uri = flags.tracking_uri or _recorded_uri(flags.run)
    upload = Upload(flags.run, uri)
    upload.drain()
    version = f", model version {upload.version}" if upload.version else ""
    print(f"{flags.run}: all records are in {uri}, run {upload.run_id}{version}.")


def _recorded_uri(run: Path) -> str:
    for record in Tail(run / JOURNAL).read():
        if record["kind"] == "run":
            return str(record["params"]["tracking.uri"])
    raise DataError(f"{run / JOURNAL} does not begin with a run; {CONFIG} beside the checkpoints names its store.")
