"""Every combination of cluster and request either fits with CPUs to spare for reading, or is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.cluster.resources import NodeResources, allocate_trials, allocate_workers, default_num_workers
from segray.core.errors import CapacityError

READ_CPUS = 0.06  # eight GPUs on a node with one CPU, the poorest there is here
NODES = st.lists(
    st.builds(NodeResources, st.integers(1, 128).map(float), st.integers(0, 8).map(float)), min_size=1, max_size=6
)


@given(NODES, st.integers(1, 40), st.sampled_from(["cpu", "cuda", "auto"]))
def test_a_placement_fits_and_leaves_cpus_to_read_with(nodes, workers, device):
    try:
        placed = allocate_workers(nodes, workers, device)
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
        ([NodeResources(2)], 2, "cpu", 1, 0.51),
        ([NodeResources(2)], 1, "cpu", 2, 1.02),
        ([NodeResources(64, 8)], 8, "cuda", 8, 4.08),
        ([NodeResources(64, 8)], 1, "cuda", 8, 4.08),
        ([NodeResources(64, 8), NodeResources(8)], 8, "auto", 8, 4.08),
        ([NodeResources(8), NodeResources(8)], 2, "cpu", 8, 4.08),
    ],
)
def test_threads_and_logical_cpus_follow_the_share_of_a_node(nodes, workers, device, threads, cpus):
    placed = allocate_workers(nodes, workers, device)
    assert (placed.threads, placed.cpus) == (threads, cpus)


@given(st.integers(1, 64), st.integers(1, 12))
def test_workers_of_lost_nodes_squeezed_onto_one_leave_a_read_task_its_place(cpus, workers):
    placed = allocate_workers([NodeResources(cpus)] * 3, 3 * min(workers, cpus), "cpu")
    squeezed = int(cpus / placed.cpus)
    assert cpus - squeezed * placed.cpus >= 0.25


def test_fewer_workers_do_where_they_are_said_to():
    assert allocate_workers([NodeResources(1)], 2, "cpu", min_workers=1).workers == 1
    assert allocate_workers([NodeResources(4)], 2, "cpu", min_workers=1) == allocate_workers(
        [NodeResources(4)], 2, "cpu"
    )
    with pytest.raises(CapacityError, match="train.workers is 4"):
        allocate_workers([NodeResources(2)], 4, "cpu", min_workers=3)


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "said"),
    [
        ([NodeResources(2)], 3, "auto", "use --train.workers 2"),
        ([NodeResources(2)], 1, "cuda", "it has 2 CPUs and 0 GPUs on 1 nodes; use --train.device cpu"),
        ([NodeResources(64, 8)], 9, "cuda", "the cluster can hold 8"),
        ([NodeResources(0)], 1, "cpu", "the cluster can hold 0"),
    ],
)
def test_what_can_never_be_held_is_refused_with_what_there_is(nodes, workers, device, said):
    with pytest.raises(CapacityError) as raised:
        allocate_workers(nodes, workers, device)
    assert said in str(raised.value)


def test_the_widest_run_takes_every_gpu_or_every_node():
    assert default_num_workers([NodeResources(64, 8), NodeResources(16, 4), NodeResources(4)], "auto") == 12
    assert default_num_workers([NodeResources(64, 8), NodeResources(4)], "cpu") == 2
    assert default_num_workers([NodeResources(2)], "auto") == 1


@given(
    NODES, st.integers(1, 12), st.sampled_from(["cpu", "cuda", "auto"]), st.none() | st.integers(1, 40), st.randoms()
)
def test_trials_all_run_at_once_or_the_request_is_refused(nodes, workers, device, wanted, random):
    """Every worker of every trial finds a place, in whatever order they come, so that none waits for another."""
    try:
        found = allocate_trials(nodes, workers, device, wanted)
    except CapacityError:
        on_gpu = device == "cuda" or (device == "auto" and any(node.gpus for node in nodes))
        room = sum(int(node.gpus if on_gpu else node.cpus) for node in nodes if not on_gpu or node.cpus >= 1)
        assert workers * (wanted or 1) > room
        return
    assert found.placement.workers == workers
    assert found.num_concurrent == wanted or wanted is None
    free = [[node.cpus, node.gpus] for node in nodes]
    for _ in range(found.num_concurrent * workers):
        fits = [node for node in free if node[0] >= found.placement.cpus and node[1] >= found.placement.gpus]
        assert fits
        taken = random.choice(fits)
        taken[0] -= found.placement.cpus
        taken[1] -= found.placement.gpus
    assert sum(cpus for cpus, _ in free) >= found.num_concurrent * workers * READ_CPUS


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "wanted", "count"),
    [
        ([NodeResources(2)], 2, "cpu", None, 1),
        ([NodeResources(2)], 1, "cpu", None, 2),
        ([NodeResources(0), NodeResources(64, 8)], 8, "auto", None, 1),
        ([NodeResources(0), NodeResources(64, 8)], 2, "auto", None, 4),
        ([NodeResources(16, 4), NodeResources(16, 4)], 3, "cuda", None, 2),  # a trial may lie on two nodes
        ([NodeResources(16, 4), NodeResources(16, 4)], 8, "cuda", None, 1),
        ([NodeResources(64, 8)], 1, "cuda", 3, 3),
        (
            [NodeResources(0, 4), NodeResources(8, 2)],
            1,
            "cuda",
            None,
            2,
        ),  # GPUs without a CPU beside them are of no use
    ],
)
def test_so_many_trials_at_once(nodes, workers, device, wanted, count):
    assert allocate_trials(nodes, workers, device, wanted).num_concurrent == count


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "wanted", "told"),
    [
        (
            [NodeResources(64, 4)],
            8,
            "cuda",
            None,
            "the cluster can hold 4: it has 64 CPUs and 4 GPUs on 1 nodes; use --train.workers 4",
        ),
        (
            [NodeResources(64, 8)],
            2,
            "cuda",
            5,
            "the cluster can hold 4 such trials at once; use --tune.max_concurrent 4",
        ),
        ([NodeResources(2)], 1, "cuda", None, "use --train.device cpu, or a cluster with GPUs"),
    ],
)
def test_what_would_fit_is_told(nodes, workers, device, wanted, told):
    with pytest.raises(CapacityError) as refused:
        allocate_trials(nodes, workers, device, wanted)
    assert told in str(refused.value)
