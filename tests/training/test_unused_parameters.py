"""Parameters and outputs that the loss does not use: two gloo processes train as one process with all the images."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PARTS = """
import torch
from torch import nn
from segray.models.segformer.heads import SegFormerHead
from segray.training.losses.build import cross_entropy


class Head(nn.Module):
    # `idle` is like conv_seg of the published head: registered, and never called. Nothing reads the output "depth".

    def __init__(self, dims, strides, num_classes, dropout):
        super().__init__()
        self.main = SegFormerHead(dims, 16, num_classes, dropout)
        self.depth = nn.Conv2d(dims[0], 1, 1)
        self.idle = nn.Conv2d(4, 4, 1)

    def forward(self, maps):
        return {"seg": self.main(maps), "depth": self.depth(maps[0]) + torch.inf}


def coarse_loss(outputs, batch, *, ignore_id, normaliser=None):
    # Reads the logits of the auxiliary head alone, so the decode head has no gradient.
    return cross_entropy({"seg": outputs["aux"]}, batch, ignore_id=ignore_id, normaliser=normaliser)
"""

CASES = {
    "auxiliary head of weight 0": {"model.aux_head": True, "loss.aux_weight": 0},
    # Batch norm is frozen, because the moments of a pass depend on its images.
    "head": {"model.head": "parts:Head", "train.accumulation_steps": 2, "train.batch_norm": "frozen"},
    "loss": {"model.aux_head": True, "loss.aux_weight": 0.4, "loss.terms": "parts:coarse_loss"},
}

# Runs as rank argv[1] of argv[2] and saves the parameters of every case after two steps.
RANK = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
import torch.distributed as dist
from segray import config
from segray.core.classes import Classes
from segray.models.build import build_model
from segray.training.engine.train_state import build_train_state
from segray.training.losses.build import build_loss
from segray.training.worker_state import wrap_ddp
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{{folder / 'meet'}}", rank=rank, world_size=world)
classes = Classes.from_names(["road", "car", "sky"])
results = {{}}
for name, settings in {CASES!r}.items():
    torch.manual_seed(0)
    fixed = {{"optim.lr": 1e-3, "optim.warmup_steps": 0, "model.drop_path": 0, "model.dropout": 0, "train.steps": 10,
             "train.batch": 4, "train.workers": world}}
    job = SimpleNamespace(config=config.build(fixed | settings))
    model = build_model(job.config, classes).double()  # AdamW enlarges rounding errors of small gradients
    train_state = build_train_state(job.config, model, torch.device("cpu"))
    state = SimpleNamespace(train_state=train_state, world=world, device=torch.device("cpu"), job=job)
    images = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    masks = torch.randint(0, 3, (2, 4, 32, 32))
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    batches = [{{"image": images[step][share], "mask": masks[step][share]}} for step in range(2)]
    before = {{key: value.clone() for key, value in model.state_dict().items()}}
    steps = train_state.train_steps(
        wrap_ddp(state), build_loss(job.config.loss, 3), batches, ignore_id=255
    )
    applied = [bool(step.was_applied) for step in steps]
    results[name] = {{"applied": applied, "before": before, "after": model.state_dict()}}
torch.save(results, folder / f"{{rank}}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def run(world, folder):
    folder.mkdir()
    (folder / "parts.py").write_text(PARTS)
    (folder / "rank.py").write_text(RANK)
    ranks = [
        subprocess.Popen(
            [sys.executable, folder / "rank.py", str(rank), str(world), folder],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=540)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world, errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("ranks")
    return [*run(2, folder / "two"), *run(1, folder / "one")]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_like_one_process(results, case):
    first, second, whole = (result[case] for result in results)
    assert first["applied"] == second["applied"] == whole["applied"] == [True] * 2
    for name, value in whole["after"].items():
        assert torch.equal(first["after"][name], second["after"][name]), name
        torch.testing.assert_close(first["after"][name], value, rtol=1e-6, atol=1e-8, msg=name)
    changed = {name for name, value in whole["after"].items() if not torch.equal(value, whole["before"][name])}
    assert "encoder.stages.0.embedding.proj.weight" in changed


@pytest.mark.parametrize(
    ("case", "prefix"), [("auxiliary head of weight 0", "aux_head."), ("head", "head.idle.")], ids=["aux", "plug-in"]
)
def test_a_parameter_without_a_gradient_keeps_its_value(results, case, prefix):
    for result in results:
        before, after = result[case]["before"], result[case]["after"]
        names = [name for name in after if name.startswith(prefix)]
        assert names
        assert all(torch.equal(before[name], after[name]) for name in names)
