"""Uploader of a sweep. The driver of the sweep uploads its run and one child run for each trial."""

from collections.abc import Callable
from pathlib import Path

from segray.core.errors import RegistryError
from segray.tracking.journal import JOURNAL
from segray.tracking.uploader import RunUploader


class SweepUploader:
    """Uploads the journals of a sweep and its trials, and resumes each from its last upload.

    Args:
        folder: folder of the sweep, which contains the folders of its trials.
        uri: URI of the MLflow store.
        log: function that prints a message for each record that the store rejects.
    """

    def __init__(self, folder: Path, uri: str, log: Callable[[str], None] = print) -> None:
        self._folder, self._uri, self._log = folder, uri, log
        self._uploaders: dict[Path, RunUploader] = {}
        self._sizes: dict[Path, int] = {}
        self.parent = self.uploader_for(folder)

    @property
    def run_id(self) -> str | None:
        """MLflow id of the sweep's run, or `None` before it is known."""
        return self.parent.run_id

    def uploader_for(self, run: Path) -> RunUploader:
        """Returns the uploader of a run."""
        if run not in self._uploaders:
            self._uploaders[run] = RunUploader(run, self._uri, self._log)
        return self._uploaders[run]

    def flush(self) -> None:
        """Uploads all records that were written since the last call.

        Raises:
            RegistryError: the server does not respond. The remaining records stay in the journals.
        """
        last_error = None
        for run in [self._folder, *trial_dirs(self._folder)]:
            size = journal_size(run)
            if size is None or size == self._sizes.get(run):
                continue
            try:
                self.uploader_for(run).flush()
                self._sizes[run] = size
            except RegistryError as error:  # other runs may still succeed
                if journal_size(run) is None:
                    continue
                last_error = error
                if run == self._folder:
                    break
        if last_error is not None:
            raise last_error


def journal_size(run: Path) -> int | None:
    """Returns the size of a run's journal in bytes, or `None` if a trial that failed at its start has removed it."""
    try:
        return (run / JOURNAL).stat().st_size
    except FileNotFoundError:
        return None


def trial_dirs(folder: Path) -> list[Path]:
    """Returns the run folders of the trials in a sweep's folder."""
    return sorted(path.parent for path in folder.glob(f"*/{JOURNAL}"))
