"""A sweep's runs in MLflow: its own, and one below it for each trial, uploaded by whoever runs the sweep."""

from collections.abc import Callable
from pathlib import Path

from segray.core.errors import RegistryError
from segray.tracking.journal import JOURNAL
from segray.tracking.uploader import RunUploader


class SweepUploader:
    """Uploads the journal of a sweep and those of its trials, each from where it stopped the last time.

    Args:
        folder: of the sweep, which holds those of its trials.
        uri: MLflow store.
        say: called with a line about each record that the store refuses.
    """

    def __init__(self, folder: Path, uri: str, say: Callable[[str], None] = print) -> None:
        self._folder, self._uri, self._say = folder, uri, say
        self._uploads: dict[Path, RunUploader] = {}
        self._sizes: dict[Path, int] = {}
        self.parent = self.uploader_for(folder)

    @property
    def run_id(self) -> str | None:
        """Returns MLflow's id of the sweep's own run, once it is known."""
        return self.parent.run_id

    def uploader_for(self, run: Path) -> RunUploader:
        """Returns the upload of a run."""
        if run not in self._uploads:
            self._uploads[run] = RunUploader(run, self._uri, self._say)
        return self._uploads[run]

    def flush(self) -> None:
        """Uploads what has come since the last call.

        Raises:
            RegistryError: the server does not answer; what is left stays in the journals.
        """
        failed = None
        for run in [self._folder, *trial_dirs(self._folder)]:
            size = (run / JOURNAL).stat().st_size
            if size == self._sizes.get(run):
                continue
            try:
                self.uploader_for(run).flush()
                self._sizes[run] = size
            except RegistryError as error:  # of one: the others may be taken
                failed = error
                if run == self._folder:
                    break
        if failed is not None:
            raise failed


def trial_dirs(folder: Path) -> list[Path]:
    """Returns the folders of the runs that lie in a sweep's folder."""
    return sorted(path.parent for path in folder.glob(f"*/{JOURNAL}"))
