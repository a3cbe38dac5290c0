"""Before each run and sweep: the part of the doctor that takes no time."""

from collections.abc import Callable
from pathlib import Path

from segray import cluster, places
from segray.classes import Classes
from segray.config import Config
from segray.data.schema import Manifest
from segray.doctor import judging, node, storing
from segray.doctor.asking import UnwritableError, asking, judged, unwritable
from segray.doctor.verdicts import Level, Verdict
from segray.errors import ClusterError


def preflight(config: Config, uri: str, manifest: Manifest, say: Callable[[str], None], goes_on: bool = False) -> None:
    """Refuses what cannot work on this cluster, and tells what is worth a look.

    A cluster of one node is asked nothing: what this process saw of data and results is all there is.

    Args:
        config: of the run or sweep, its places settled.
        uri: MLflow store.
        manifest: of the dataset.
        say: called with a line for each warning.
        goes_on: whether most of its checkpoints are there.

    Raises:
        ClusterError: something stands in the way; all that does is told.
    """
    found = [
        judging.tracking(places.masked(uri), cluster.spans_machines(), ""),
        stopping(),
        room(config, manifest.classes, goes_on),
    ]
    members = cluster.members()
    if len(members) > 1:
        try:
            with asking(config, manifest, members) as asked:
                found += judged(config, asked.told(), silent=Level.WARN)  # it may only have come, or be going
        except UnwritableError as error:
            found.append(unwritable(error))
    wrong = [verdict for verdict in found if verdict.level is Level.FAIL]
    if wrong:
        raise ClusterError("\n".join(str(verdict) for verdict in wrong) + ".")
    for verdict in found:
        if verdict.level is Level.WARN:
            say(f"{verdict}.")


def room(config: Config, classes: Classes, goes_on: bool = False) -> Verdict:
    """Judges whether the checkpoints of a run, or of a sweep's trials, find room: of one that goes on, the next."""
    there = next(one for one in (Path(config.results), *Path(config.results).parents) if node.is_there(one))
    kept = storing.NEWEST if goes_on else storing.kept(config)
    return judging.disk(config.results, node.free_bytes(str(there)), storing.checkpoint_bytes(config, classes), kept)


def stopping() -> Verdict:
    """Judges whether `ray job stop` leaves this process the time to end in order."""
    return judging.stopping(places.job_wait_s())
