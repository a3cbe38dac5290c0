"""Batch norm over ranks: two gloo processes with uneven batches against one process with all the images."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segray.models.batch_norm import BatchMoments, GlobalBatchNorm2d, combine_moments
from segray.models.segformer.heads import SegFormerHead

# Runs as rank argv[1] of argv[2]; prints nothing, saves what it found.
RANK = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
torch.set_num_threads(1)
from segray.models.segformer.heads import SegFormerHead
from segray.models.batch_norm import GlobalBatchNorm2d
rank, num_ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
if num_ranks > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=num_ranks)
shares = {1: [slice(0, 5)], 2: [slice(0, 2), slice(2, 5)]}[num_ranks]
torch.manual_seed(0)
norm = GlobalBatchNorm2d(3).double()
with torch.no_grad():
    norm.weight.normal_()
    norm.bias.normal_()
head = SegFormerHead((2, 3), 4, 2, dropout=0.0).double()
inputs = torch.randn(5, 3, 4, 6, dtype=torch.float64) * 3 + 100, *(
    torch.randn(5, dim, *size, dtype=torch.float64) for dim, size in ((2, (6, 8)), (3, (3, 4)))
)
slopes = torch.randn(5, 3, 4, 6, dtype=torch.float64), torch.randn(5, 2, 6, 8, dtype=torch.float64)
maps, fine, coarse = (tensor[shares[rank]].clone().requires_grad_() for tensor in inputs)
results = {}
for step in range(2):
    results[f"normed{step}"] = norm(maps)
results["logits"] = head([fine, coarse])
loss = (results["normed1"] * slopes[0][shares[rank]]).sum() + (results["logits"] * slopes[1][shares[rank]]).sum()
loss.backward()
results |= {"maps": maps.grad, "fine": fine.grad, "coarse": coarse.grad}
summed = {name: parameter.grad for module in (norm, head) for name, parameter in module.named_parameters()}
state = {**{f"norm.{k}": v for k, v in norm.state_dict().items()}, **head.state_dict()}
torch.save({"split": {k: v.detach() for k, v in results.items()}, "summed": summed, "state": state},
           folder / f"{rank}.pt")
if num_ranks > 1:
    dist.destroy_process_group()
"""


def run(num_ranks: int, folder: Path) -> list[dict]:
    folder.mkdir()
    arguments = [[sys.executable, "-c", RANK, str(rank), str(num_ranks), str(folder)] for rank in range(num_ranks)]
    processes = [subprocess.Popen(argument, stderr=subprocess.PIPE, text=True) for argument in arguments]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(num_ranks)]


def test_two_ranks_normalise_as_one_process_does(tmp_path):
    (whole,) = run(1, tmp_path / "one")
    first, second = run(2, tmp_path / "two")
    for name, expected in whole["split"].items():
        together = torch.cat([first["split"][name], second["split"][name]])
        torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-9, msg=name)
    for name, expected in whole["summed"].items():
        together = first["summed"][name] + second["summed"][name]
        torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-9, msg=name)
    for name, expected in whole["state"].items():
        torch.testing.assert_close(first["state"][name], expected, rtol=1e-9, atol=1e-9, msg=name)
        assert torch.equal(first["state"][name], second["state"][name]), name


def test_alone_it_is_torchs_batch_norm_with_its_state_dict():
    ours, torchs = GlobalBatchNorm2d(4), torch.nn.BatchNorm2d(4)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    maps = torch.randn(2, 4, 5, 6)
    assert torch.equal(ours(maps), torchs(maps))
    assert torch.equal(ours.eval()(maps), torchs.eval()(maps))


def test_the_head_in_strips_moves_the_running_moments_as_torch_does():
    head = SegFormerHead((2, 3), 4, 2).train()
    maps = [torch.randn(3, 2, 8, 8), torch.randn(3, 3, 4, 4)]
    total = {}
    head.bn.register_forward_pre_hook(lambda module, inputs: total.update(maps=inputs[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head(maps)
    reference = torch.nn.BatchNorm2d(4)
    reference(total["maps"].float())
    head.bn.reset_running_stats()
    head(maps)
    torch.testing.assert_close(head.bn.running_mean, reference.running_mean, rtol=0.02, atol=0.002)
    torch.testing.assert_close(head.bn.running_var, reference.running_var, rtol=0.02, atol=0.002)
    assert head.bn.num_batches_tracked == 1


def test_joined_moments_keep_their_digits_far_from_zero():
    batches = [torch.randn(100, 3, dtype=torch.float64) + 1e4 for _ in range(4)]
    parts = [(torch.tensor(100.0), batch.float().mean(0), batch.float().var(0, correction=0)) for batch in batches]
    moments = combine_moments(BatchMoments(*(torch.stack(column) for column in zip(*parts, strict=True))))
    everything = torch.cat(batches)
    assert moments.pixels == 400
    torch.testing.assert_close(moments.variance.double(), everything.var(0, correction=0), rtol=5e-3, atol=0)
    assert moments.mean.double().tolist() == pytest.approx(everything.mean(0).tolist(), rel=1e-6)
