"""A whole job: goes on where an earlier try of the same ended, and writes down what was done."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from segray import capacity, cluster
from segray.predictions.inputs import Inputs
from segray.predictions.job import segmented
from segray.predictions.record import Done, Record
from segray.predictions.worker import Work

OnProgress = Callable[[str, int, int], None]


def run(
    inputs: Inputs,
    work: Work,
    about: Mapping[str, Any],
    workers: int | None = None,
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
) -> Done:
    """Segments everything on the cluster, and returns how much that was and what could not be.

    Args:
        inputs: what is to be segmented.
        work: with every image.
        about: what decides the results, by name.
        workers: actors; none takes one a GPU, or one a core.
        device: "cpu", "cuda" or "auto".
        on_progress: called with what is being done, the images done and those in all.

    Raises:
        DataError: the source cannot be read, the results not be written, or another job is there.
        CapacityError: the cluster cannot hold the actors.
    """
    job = {"source": inputs.place, "source version": inputs.version, **about}
    record = Record(work.outputs.root)
    with record.claimed(job) as done:
        images = sum(part.images + len(part.problems) for part in done.values())
        cluster.connect()
        nodes = cluster.nodes()
        placement = capacity.place(nodes, workers or capacity.most(nodes, device), device, "--workers")
        on_progress("going on" if done else "segmenting", images, inputs.images)
        for key, part in segmented(inputs, work, placement, list(done)):
            done[key] = part
            images += part.images + len(part.problems)
            on_progress("segmenting", images, max(images, inputs.images))
        whole = Done(
            sum(part.images for part in done.values()),
            tuple(line for key in sorted(done) for line in done[key].problems),
        )
        record.finish({**job, **asdict(whole)})
    return whole
