"""What the model's tests share: models with lively weights, the head as published, and transformers as a peer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segray.models.segformer.model import SegFormer, build_segformer
from segray.models.weights.save import save_weights


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """Returns random uint8 images (B, 3, H, W)."""
    return lambda *shape: torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8)


@pytest.fixture
def kept_bytes() -> Callable[[], AbstractContextManager[dict[int, int]]]:
    """Collects the bytes of each storage that autograd keeps for the backward pass of what runs inside."""

    @contextmanager
    def collected() -> Iterator[dict[int, int]]:
        kept = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield kept

    return collected


@pytest.fixture
def lively() -> Callable[..., SegFormer]:
    """Builds a model in which no parameter or running moment is at its start value."""

    def make(*args, **settings) -> SegFormer:
        model = build_segformer(*args, **settings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
                elif name == "head.classifier.weight":
                    parameter.normal_(std=0.2)
                elif parameter.ndim == 2:
                    parameter.normal_(std=parameter.shape[1] ** -0.5)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
        return model

    return make


@pytest.fixture
def unfolded() -> Callable[[nn.Module, Sequence[Tensor]], Tensor]:
    """The heads as they are published: project, resize, concatenate, fuse, normalise, classify."""

    def logits(head: nn.Module, maps: Sequence[Tensor]) -> Tensor:
        official = isinstance(head.projections[0], nn.Linear)
        resized = []
        for projection, level in zip(head.projections, maps, strict=True):
            if official:
                projected = projection(level.flatten(2).mT).mT.unflatten(2, level.shape[2:])
            else:
                mixed = F.conv2d(level, projection.conv.weight)
                projected = F.relu(nn.BatchNorm2d.forward(projection.bn, mixed))
            resized.append(F.interpolate(projected, size=maps[0].shape[2:], mode="bilinear", align_corners=False))
        fused = head.fuse(torch.cat(resized[::-1] if official else resized, dim=1))
        return head.classifier(F.relu(nn.BatchNorm2d.forward(head.bn, fused)))

    return logits


@pytest.fixture
def peer(tmp_path: Path) -> Callable[[SegFormer], nn.Module]:
    """Opens a model's weights with transformers' own code."""
    transformers = pytest.importorskip("transformers")

    def opened(model: SegFormer) -> nn.Module:
        folder = save_weights(model, tmp_path / "peer", "transformers")
        theirs, report = transformers.SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return theirs.eval()

    return opened


@pytest.fixture
def normalised() -> Callable[[SegFormer, Tensor], Tensor]:
    """Returns images as transformers' image processor hands them to the model."""

    def prepared(model: SegFormer, images: Tensor) -> Tensor:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    return prepared
