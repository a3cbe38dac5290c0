"""Looking into a cluster for people: all that can be known of it in some seconds."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from segray import cluster, places
from segray.classes import Classes
from segray.cluster import Member
from segray.config import Config
from segray.data.schema import Manifest, read_manifest
from segray.doctor import judging
from segray.doctor.asking import Asking, Told, UnwritableError, asking, judged, named, unwritable
from segray.doctor.crew import Crew, crew
from segray.doctor.stranger import Stranger
from segray.doctor.verdicts import Level, Verdict
from segray.errors import CapacityError, ConfigError, DataError, RegistryError

COUNT = 2**22  # float32 that are summed
UNKNOWN = Classes(names=tuple(f"class {number}" for number in range(19)), palette=((0, 0, 0),) * 19)


def examine(config: Config, say: Callable[[str], None] = lambda _line: None) -> list[Verdict]:
    """Returns what is found of the cluster, and of what a Config names, a verdict for each check.

    Args:
        config: of the run or sweep that is to work there.
        say: called with what is being looked into.
    """
    try:
        settled, uri = places.settled(config), places.tracking_uri(config)
    except ConfigError as error:
        return [Verdict("places", Level.FAIL, str(error).rstrip("."))]
    say("joining the cluster ...")
    try:
        cluster.connect(log_to_driver=False)
    except CapacityError as error:
        said, _, fix = str(error).rstrip(".").rpartition("; ")
        return [Verdict("ray", Level.FAIL, said, fix)]
    stranger = Stranger()
    manifest, unread = _manifest(settled.data.root)
    members = cluster.members()
    first = [
        _joined(members),
        judging.locked(stranger.refused(), cluster.spans_machines()),
        judging.fits(settled, [one.offers for one in members], cluster.nodes()),
        *unread,
    ]
    try:
        with asking(settled, manifest, members) as asked:
            say("asking its nodes ...")
            return [*first, *_of_the_run(settled, uri, manifest), *_of_the_nodes(settled, manifest, asked, say)]
    except UnwritableError as error:
        return [*first, unwritable(error), *_of_the_run(settled, uri, manifest)]


def _manifest(root: str) -> tuple[Manifest | None, list[Verdict]]:
    """Returns a dataset's manifest, or none and why it cannot be read."""
    try:
        return read_manifest(root), []
    except DataError as error:
        return None, [Verdict("dataset", Level.FAIL, str(error).rstrip("."))]


def _joined(members: Sequence[Member]) -> Verdict:
    cpus, gpus = (sum(getattr(one.offers, name) for one in members) for name in ("cpus", "gpus"))
    where = os.environ.get("RAY_ADDRESS", "this machine")
    nodes = "1 node" if len(members) == 1 else f"{len(members)} nodes"
    return Verdict("ray", Level.OK, f"{ray.__version__} at {where}: {nodes}, {cpus:g} CPUs, {gpus:g} GPUs")


def _of_the_run(config: Config, uri: str, manifest: Manifest | None) -> list[Verdict]:
    """Returns what can be known from here."""
    # Torch and MLflow take seconds to import: nodes look meanwhile.
    from segray.doctor.preflight import room, stopping  # noqa: PLC0415

    return [
        judging.tracking(places.masked(uri), cluster.spans_machines(), _unanswered(uri)),
        room(config, _classes(manifest)),
        stopping(),
    ]


def _classes(manifest: Manifest | None) -> Classes:
    return UNKNOWN if manifest is None else manifest.classes


def _unanswered(uri: str) -> str:
    """Returns why MLflow does not answer; nothing if it does, or if it is a file that the first run makes."""
    from segray import registry  # noqa: PLC0415 as above

    if uri.startswith(places.SQLITE) and not Path(uri.removeprefix(places.SQLITE)).exists():
        return ""
    try:
        registry.connected(uri, "the registry", waits_s=())
    except RegistryError as error:
        return f"{places.masked(uri)} does not answer ({type(error.__cause__).__name__})"
    return ""


def _of_the_nodes(
    config: Config, manifest: Manifest | None, asked: Asking, say: Callable[[str], None]
) -> list[Verdict]:
    """Returns what nodes say of themselves and of the way between them."""
    from segray.doctor import storing  # noqa: PLC0415 as above

    told = asked.told()
    if not told.answers.said:
        return judged(config, told)
    stores = {str(one): one.store for one in told.answers.said}
    claimed = {str(one): one.offers.gpus for one in told.answers.said}
    found = [
        *judged(config, told),
        judging.gpus(claimed, told.reports),
        judging.clocks(named(asked.crew.ahead_s(list(told.answers.said)))),
        *judging.memory(stores, told.reports),
        judging.temporary(told.reports),
    ]
    if sum(one.offers.cpus >= 1 or one.offers.gpus >= 1 for one in told.answers.said) < 2:  # there is no way
        return found
    say("summing over the network ...")
    return [*found, _summed(told, asked.crew, storing.gradient_bytes(config, _classes(manifest)))]


def _summed(told: Told, everybody: Crew, gradients: int) -> Verdict:
    """Returns how fast the nodes sum: those with GPUs by nccl, if they are free, else all by gloo."""
    with_gpus = [one for one in told.answers.said if told.reports[str(one)].gpus and one.offers.gpus >= 1]
    if len(with_gpus) > 1 and _are_free(with_gpus):
        with crew(with_gpus, gpus=1) as found:
            return _summed_by("nccl", found, with_gpus, gradients)
    workers = [one for one in told.answers.said if one.offers.cpus >= 1 or one.offers.gpus >= 1]
    return _summed_by("gloo", everybody, workers, gradients)


def _summed_by(backend: str, found: Crew, members: Sequence[Member], gradients: int) -> Verdict:
    answers = found.reduce(members, backend, COUNT)
    if answers.silent:
        return judging.unmet(named(answers.silent), backend)
    return judging.network(len(members), backend, 4 * COUNT, max(answers.said.values()), gradients)


def _are_free(members: Sequence[Member]) -> bool:
    """Returns whether no GPU of theirs, nor any other, is at work."""
    return bool(ray.available_resources().get("GPU", 0.0) >= sum(one.offers.gpus for one in members))
