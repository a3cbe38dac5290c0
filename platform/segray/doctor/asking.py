"""What nodes are asked before a run: whether they see what its Config names, and have what it needs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from segray import cluster
from segray.cluster import Member
from segray.config import Config
from segray.data.schema import Manifest, plain
from segray.doctor import judging, node
from segray.doctor.crew import Answers, Asked, Crew, crew
from segray.doctor.node import Question, Report, is_there
from segray.doctor.verdicts import Level, Verdict


class UnwritableError(Exception):
    """The results' folder cannot be written to by this process itself."""


@dataclass(frozen=True)
class Told:
    """What nodes said.

    Attributes:
        members: that were asked.
        answers: their reports.
        data: root of the dataset they were asked for, none if they were not.
    """

    members: Sequence[Member]
    answers: Answers
    data: str | None

    @property
    def reports(self) -> dict[str, Report]:
        """Returns the reports, by the name of the node."""
        return named(self.answers.said)


class Asking:
    """Nodes that look, while who asks does something else.

    Attributes:
        crew: that looks.
    """

    def __init__(self, members: Sequence[Member], found: Crew, question: Question) -> None:
        self.crew = found
        self._members, self._data = members, question.root
        self._asked: Asked = found.asked("report", question)

    def told(self) -> Told:
        """Waits for what they say, and returns it; nodes that are gone by then are asked for nothing."""
        answers = self._asked.answers()
        there = {one.id for one in cluster.members()} if answers.silent else set()
        silent = {one: why for one, why in answers.silent.items() if one.id in there}
        return Told([*answers.said, *silent], Answers(answers.said, silent), self._data)


@contextmanager
def asking(config: Config, manifest: Manifest | None, members: Sequence[Member]) -> Iterator[Asking]:
    """Has nodes look at what a Config names.

    Args:
        config: of the run.
        manifest: of its dataset; without it they are not asked for it.
        members: the nodes.

    Raises:
        UnwritableError: the results' folder cannot be written to from here.
    """
    root, digest = (config.data.root, manifest.digest) if manifest else (None, None)
    with _marked(config.results) as mark, crew(members) as found:
        yield Asking(members, found, Question(config.results, mark, root, digest))


@contextmanager
def _marked(results: str) -> Iterator[str]:
    """Leaves a file in the results' folder for others to see; it is gone behind this, and the folder if it is new."""
    folder = Path(results)
    made = [one for one in (folder, *folder.parents) if not is_there(one)]
    mark = folder / f".doctor-{uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(mark.name)
    except OSError as error:
        raise UnwritableError(f"{results} cannot be written to ({error.strerror})") from error
    try:
        yield mark.name
    finally:
        with suppress(OSError):  # a run has begun there meanwhile, or the storage is gone
            mark.unlink(missing_ok=True)
            for one in made:
                one.rmdir()


def named(by_member: Mapping[Member, Any]) -> dict[str, Any]:
    """Returns what is known of nodes by their names."""
    return {str(one): value for one, value in by_member.items()}


def judged(config: Config, told: Told, silent: Level = Level.FAIL) -> list[Verdict]:
    """Returns what a run cannot work without.

    Args:
        config: of the run.
        told: what nodes said.
        silent: what it means that a node says nothing.
    """
    answered = judging.answered(named(told.answers.silent), len(told.members), silent)
    if not told.answers.said:  # nobody said what could be judged
        return [answered]
    found = [
        answered,
        judging.same_versions(node.versions(), told.reports),
        judging.storage(config.results, told.reports),
    ]
    return [*found, judging.datasets(plain(told.data), told.reports)] if told.data else found


def unwritable(error: UnwritableError) -> Verdict:
    """Returns what is wrong with a results' folder that this process itself cannot write to."""
    return Verdict("results", Level.FAIL, str(error), "name another place with --results")
