"""Tasks of the cluster, and what becomes of those that fail or die."""

import os
import time
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from segray.core.errors import DataError
from segray.data.ray_map import map_on_cluster

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_each_input_is_one_task_and_tasks_run_concurrently(tmp_path):
    def task(number):
        """Waits for the start of another task, which happens only if two run at the same time."""
        (tmp_path / str(number)).touch()
        deadline = time.monotonic() + 60
        while number < 2 and not (tmp_path / str(1 - number)).exists():
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        return number**2

    assert dict(map_on_cluster(task, range(4))) == {0: 0, 1: 1, 2: 4, 3: 9}
    assert list(map_on_cluster(task, [])) == []


def test_a_data_error_is_raised_unchanged_after_the_running_tasks_end(tmp_path):
    def task(number):
        if number == 0:
            raise DataError("no image")
        (tmp_path / f"{number} begun").touch()
        time.sleep(0.3)
        (tmp_path / f"{number} done").touch()

    with pytest.raises(DataError) as raised:
        list(map_on_cluster(task, range(30)))
    assert str(raised.value) == "no image"
    assert type(raised.value) is DataError
    begun, done = (sorted(path.name[:2] for path in tmp_path.glob(f"* {what}")) for what in ("begun", "done"))
    assert begun == done
    assert begun == ["1 ", "2 ", "3 "]  # of twice as many as there are CPUs
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == 2 * len(done)


def test_a_bug_shows_its_traceback():
    with pytest.raises(RayTaskError, match="in task"):
        list(map_on_cluster(task_with_a_defect(), [1]))


def task_with_a_defect():
    def task(number):
        return number / 0

    return task


def dies(path: Path, times: int) -> str:
    with path.open("a") as file:
        file.write("x")
    if len(path.read_text()) <= times:
        os._exit(1)
    return "done"


def test_a_task_whose_worker_dies_is_retried_three_times(tmp_path):
    tasks = [(tmp_path / "lives", 3), (tmp_path / "dies", 99)]
    with pytest.raises(DataError, match="a task died on every attempt"):
        list(map_on_cluster(lambda task: dies(*task), tasks))
    assert [path.read_text() for path, _ in tasks] == ["xxxx", "xxxx"]
