"""Before each run and sweep: the part of the doctor that takes no time."""

import os
from collections.abc import Callable
from pathlib import Path

from segray import cluster, places
from segray.classes import Classes
from segray.config import Config
from segray.data.schema import Manifest
from segray.doctor import judging, node, storing
from segray.doctor.asking import asking, judged, unwritable
from segray.doctor.verdicts import Level, Verdict
from segray.errors import ClusterError

JOB_WAIT, JOB_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 3


def preflight(config: Config, uri: str, manifest: Manifest, say: Callable[[str], None]) -> None:
    """Refuses what cannot work on this cluster, and tells what is worth a look.

    A cluster of one node is asked nothing: what this process saw of data and results is all there is.

    Args:
        config: of the run or sweep, its places settled.
        uri: MLflow store.
        manifest: of the dataset.
        say: called with a line for each warning.

    Raises:
        ClusterError: something stands in the way; all that does is told.
    """
    found = [
        judging.tracking(places.masked(uri), cluster.spans_machines(), ""),
        stopping(),
        room(config, manifest.classes),
    ]
    members = cluster.members()
    if len(members) > 1:
        try:
            with asking(config, manifest, members) as asked:
                found += judged(config, asked.told())
        except OSError as error:
            found.append(unwritable(config.results, error))
    wrong = [verdict for verdict in found if verdict.level is Level.FAIL]
    if wrong:
        raise ClusterError("\n".join(str(verdict) for verdict in wrong) + ".")
    for verdict in found:
        if verdict.level is Level.WARN:
            say(f"{verdict}.")


def room(config: Config, classes: Classes) -> Verdict:
    """Judges whether the checkpoints of a run, or of a sweep's trials, find room."""
    parameters = storing.parameter_bytes(config, classes)
    there = next(one for one in (Path(config.results), *Path(config.results).parents) if one.exists())
    needed = storing.checkpoint_bytes(config, parameters)
    return judging.disk(config.results, node.free_bytes(str(there)), needed, storing.kept(config))


def stopping() -> Verdict:
    """Judges whether `ray job stop` leaves this process the time to end in order."""
    wait_s = int(os.environ.get(JOB_WAIT, JOB_WAIT_S)) if places.in_submitted_job() else None
    return judging.stopping(wait_s)
