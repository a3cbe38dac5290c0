"""Every combination of cluster and request either fits with CPUs to spare for reading, or is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.capacity import Node, place, widest
from segray.errors import CapacityError

READ_CPUS = 0.06  # eight GPUs on a node with one CPU, the poorest there is here
NODES = st.lists(st.builds(Node, st.integers(1, 128).map(float), st.integers(0, 8).map(float)), min_size=1, max_size=6)


@given(NODES, st.integers(1, 40), st.sampled_from(["cpu", "cuda", "auto"]))
def test_a_placement_fits_and_leaves_cpus_to_read_with(nodes, workers, device):
    try:
        placed = place(nodes, workers, device)
    except CapacityError:
        on_gpu = device == "cuda" or (device == "auto" and any(node.gpus for node in nodes))
        assert workers > sum(node.gpus if on_gpu else node.cpus for node in nodes)
        return
    room = [min(node.cpus / placed.cpus, node.gpus / placed.gpus if placed.gpus else float("inf")) for node in nodes]
    assert sum(int(slots) for slots in room) >= workers
    left = sum(node.cpus for node in nodes) - workers * placed.cpus
    assert left >= workers * READ_CPUS
    assert placed.read_cpus >= READ_CPUS
    assert placed.threads >= 1


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "threads", "cpus"),
    [
        ([Node(2)], 2, "cpu", 1, 0.51),
        ([Node(2)], 1, "cpu", 2, 1.02),
        ([Node(64, 8)], 8, "cuda", 8, 4.08),
        ([Node(64, 8)], 1, "cuda", 8, 4.08),
        ([Node(64, 8), Node(8)], 8, "auto", 8, 4.08),
        ([Node(8), Node(8)], 2, "cpu", 8, 4.08),
    ],
)
def test_threads_and_logical_cpus_follow_the_share_of_a_node(nodes, workers, device, threads, cpus):
    placed = place(nodes, workers, device)
    assert (placed.threads, placed.cpus) == (threads, cpus)


@given(st.integers(1, 64), st.integers(1, 12))
def test_workers_of_lost_nodes_squeezed_onto_one_leave_a_read_task_its_place(cpus, workers):
    placed = place([Node(cpus)] * 3, 3 * min(workers, cpus), "cpu")
    squeezed = int(cpus / placed.cpus)
    assert cpus - squeezed * placed.cpus >= 0.25


def test_fewer_workers_do_where_they_are_said_to():
    assert place([Node(1)], 2, "cpu", least=1).workers == 1
    assert place([Node(4)], 2, "cpu", least=1) == place([Node(4)], 2, "cpu")
    with pytest.raises(CapacityError, match="train.workers is 4"):
        place([Node(2)], 4, "cpu", least=3)


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "said"),
    [
        ([Node(2)], 3, "auto", "use --train.workers 2"),
        ([Node(2)], 1, "cuda", "it has 2 CPUs and 0 GPUs on 1 nodes; use --train.device cpu"),
        ([Node(64, 8)], 9, "cuda", "the cluster can hold 8"),
        ([Node(0)], 1, "cpu", "the cluster can hold 0"),
    ],
)
def test_what_can_never_be_held_is_refused_with_what_there_is(nodes, workers, device, said):
    with pytest.raises(CapacityError) as raised:
        place(nodes, workers, device)
    assert said in str(raised.value)


def test_the_widest_run_takes_every_gpu_or_every_node():
    assert widest([Node(64, 8), Node(16, 4), Node(4)], "auto") == 12
    assert widest([Node(64, 8), Node(4)], "cpu") == 2
    assert widest([Node(2)], "auto") == 1
