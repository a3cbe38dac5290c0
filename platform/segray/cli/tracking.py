"""Command `tracking sync`: uploads the records that a run could not send because MLflow was unavailable."""

from argparse import Namespace

from segray.config import Config, paths
from segray.core.errors import DataError
from segray.models import checkpoint
from segray.tracking.journal import JOURNAL
from segray.tracking.sweep_uploader import SweepUploader


def run(flags: Namespace, _config: Config) -> None:
    """Uploads the records that MLflow does not have yet."""
    if not (flags.run / JOURNAL).exists():
        raise DataError(f"{flags.run} has no {JOURNAL}; expected the folder of a run or sweep.")
    stored = checkpoint.load_config(flags.run)
    overrides = {"uri": flags.tracking_uri} if flags.tracking_uri else {}
    uri = paths.tracking_uri(stored.model_copy(update={"tracking": stored.tracking.model_copy(update=overrides)}))
    uploader = SweepUploader(flags.run, uri)  # a run is a sweep without trials
    uploader.flush()
    version = f", model version {uploader.parent.version}" if uploader.parent.version else ""
    print(f"{flags.run}: all records are in {paths.redact(uri)}, run {uploader.run_id}{version}.")
