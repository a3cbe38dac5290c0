"""Our files in the peers' own code, where it is installed; none of it is needed otherwise.

`pip install --no-deps --target PEERS segmentation-models-pytorch==0.6.0 timm torchvision==0.28.0` and, for the other,
`mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 addict yapf ftfy wcwidth termcolor terminaltables prettytable
platformdirs`; then `PYTHONPATH=PEERS pytest tests/models/weights/test_peers.py`.
"""

import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import nn

from segray.models.segformer.model import VARIANTS, build_segformer
from segray.models.weights.load import load_pretrained
from segray.models.weights.save import save_weights

pytestmark = pytest.mark.filterwarnings("ignore")
CLASSES = 7
# Compiled operators that torchvision and mmcv declare at import, and SegFormer does not use.
DETECTION = ("nms", "qnms", "roi_align", "qroi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
DETECTION += tuple(f"_{name}_backward" for name in DETECTION if "nms" not in name and not name.startswith("q"))


class Operators(types.ModuleType):
    """A module that has whatever is asked of it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


def declare_detection():
    library = torch.library.Library("torchvision", "DEF")
    for name in DETECTION:
        library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    return library


@pytest.fixture
def smp(monkeypatch):
    """Returns SMP's model of a variant, its logits left at 1/4."""
    library = declare_detection() if not hasattr(torch.ops.torchvision, "nms") else None
    peer = pytest.importorskip("segmentation_models_pytorch")

    def make(variant):
        width = VARIANTS[variant].head_width
        model = peer.Segformer(
            f"mit_{variant}", encoder_weights=None, classes=CLASSES, decoder_segmentation_channels=width
        )
        model.segmentation_head[1] = nn.Identity()
        return model

    yield make
    del library


@pytest.fixture
def mmseg(monkeypatch):
    """Returns mmsegmentation's backbone and head of a variant."""
    pytest.importorskip("mmcv")
    for name in ("mmcv.ops", "mmcv.ops.point_sample"):
        module = Operators(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        monkeypatch.setitem(sys.modules, name, module)
    backbones = pytest.importorskip("mmseg.models.backbones.mit")
    heads = pytest.importorskip("mmseg.models.decode_heads.segformer_head")

    def make(variant):
        sizes = VARIANTS[variant]
        model = nn.Sequential()
        num_heads = [1, 2, 5, 8]
        model.backbone = backbones.MixVisionTransformer(
            embed_dims=sizes.dims[0], num_layers=list(sizes.depths), num_heads=num_heads
        )
        model.decode_head = heads.SegformerHead(
            in_channels=list(sizes.dims),
            in_index=[0, 1, 2, 3],
            channels=256,
            num_classes=CLASSES,
            norm_cfg={"type": "BN"},
            align_corners=False,
        )
        return model

    return make


@pytest.mark.parametrize("variant", ["b0", "b2"])
@pytest.mark.parametrize("layout", ["smp", "mmseg"])
def test_the_peers_own_code_opens_our_file_and_gives_the_same_logits(
    layout, variant, request, lively, images, normalised, tmp_path
):
    theirs = request.getfixturevalue(layout)(variant)
    kind, eps = ("mmseg", "mmseg") if layout == "mmseg" else ("official", "official")
    ours = lively(variant, CLASSES, head=kind, norm_eps=eps).eval()
    saved = torch.load(save_weights(ours, tmp_path / "ours.pth", layout), weights_only=True)
    theirs.load_state_dict(saved.get("state_dict", saved), strict=True)
    batch = images(1, 128, 160)
    with torch.no_grad():
        expected, found = theirs.eval()(normalised(ours, batch)), ours(batch)["seg"]
    assert (found - expected).abs().max() < 1e-5 * (expected.max() - expected.min())

    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    again = build_segformer(variant, CLASSES, head=kind, norm_eps=eps).eval()
    load_pretrained(again, tmp_path / "theirs.pth")
    with torch.no_grad():
        assert torch.equal(again(batch)["seg"], found)
