"""A checkpoint is whole or refused, and brings the same model back without a pickle."""

import pytest
import torch

from segray import checkpoint, config
from segray.classes import Classes
from segray.errors import CheckpointError
from segray.optim import adamw

CLASSES = Classes.named(["road", "car", "sky"])
CONFIG = config.build({"model.variant": "b0", "data.short_side": 64})
META = checkpoint.Meta(
    step=7, metrics={"val/miou": 0.5}, confusion=[[1, 0], [0, 1]], dataset_digest="d", versions=checkpoint.versions()
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = checkpoint.build_model(CONFIG, CLASSES)
    optimiser = adamw(model, CONFIG.optim)
    model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))["seg"].sum().backward()
    optimiser.step()
    checkpoint.contents(model, {"optimiser": optimiser.state_dict()}, CONFIG, CLASSES, META).write(tmp_path)
    return tmp_path, model, optimiser


def test_everything_comes_back(saved):
    folder, model, optimiser = saved
    loaded = checkpoint.load_model(folder)
    images = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    assert torch.equal(loaded(images)["seg"], model.eval()(images)["seg"])
    assert not loaded.training
    assert checkpoint.load_meta(folder) == META
    assert checkpoint.load_config(folder) == CONFIG
    assert checkpoint.load_classes(folder) == CLASSES
    state = checkpoint.load_state(folder)["optimiser"]
    assert torch.equal(state["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize("part", [checkpoint.META, checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.CLASSES])
def test_a_folder_that_lacks_a_part_is_refused_by_its_name(saved, part):
    folder, *_ = saved
    (folder / part).unlink()
    with pytest.raises(CheckpointError, match=part):
        checkpoint.load_model(folder)


@pytest.mark.parametrize("part", [checkpoint.META, checkpoint.WEIGHTS, checkpoint.CONFIG])
def test_a_part_that_was_cut_short_is_refused_by_its_name(saved, part):
    folder, *_ = saved
    content = (folder / part).read_bytes()
    (folder / part).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=part):
        checkpoint.load_model(folder)


def test_weights_of_another_variant_are_refused(saved):
    folder, *_ = saved
    other = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"variant": "b1"})})
    (folder / checkpoint.CONFIG).write_text(other.model_dump_json())
    with pytest.raises(CheckpointError, match=r"does not fit config\.json"):
        checkpoint.load_model(folder)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder"):
        checkpoint.load_meta(tmp_path / "gone")
