"""What a model costs, held against transformers' and against a count of the whole."""

import pytest
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from benchmarks.peers import OURS, Case, count_macs
from segray import config
from segray.core.errors import ModelError
from segray.models.cost import model_costs


def test_the_parts_are_the_whole():
    *parts, whole = model_costs(config.build({}), 19, 64, 96)
    assert [cost.part for cost in parts] == ["stage 1", "stage 2", "stage 3", "stage 4", "head"]
    assert sum(cost.parameters for cost in parts) == whole.parameters
    assert sum(cost.macs for cost in parts) == whole.macs
    assert all(cost.macs for cost in parts)


def test_the_whole_is_what_transformers_has_and_the_benchmark_counts():
    whole = model_costs(config.build({}), 150, 128, 128)[-1]
    peer = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150))
    assert whole.parameters == sum(parameter.numel() for parameter in peer.parameters())
    assert whole.macs == count_macs(OURS, Case("b0", 128, 1, 150, "cpu", "float32"))


def test_an_auxiliary_head_has_parameters_alone():
    by_name = {cost.part: cost for cost in model_costs(config.build({"model.aux_head": True}), 19, 64, 64)}
    assert by_name["auxiliary head"].parameters > 0
    assert by_name["auxiliary head"].macs == 0


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(ModelError, match="16x16 pixels"):
        model_costs(config.build({}), 19, 16, 16)
