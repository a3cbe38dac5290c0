"""The contract of an architecture: what a network states about itself, so that other modules need not know its names.

To add an architecture, derive its network from `SegmentationModel` and let `models.build` return it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class LayeredEncoder(Protocol):
    """An encoder whose layers have an order, which layer-wise learning rate decay requires.

    Attributes:
        num_layers: number of layers.
    """

    @property
    def num_layers(self) -> int: ...

    def layer_index(self, name: str) -> int:
        """Returns the layer of a parameter of the encoder, from 0 at the image to `num_layers - 1`."""


class SegmentationModel(nn.Module, ABC):
    """Base class of networks that convert uint8 RGB images (B, 3, H, W) to a dict of outputs.

    The dict contains the logits as "seg", (B, K, ceil(H / output_stride), ceil(W / output_stride)).

    Attributes:
        encoder: pretrained part. It can be loaded and frozen separately. Names of its parameters start with `encoder.`.
        output_stride: image pixels per cell of the logits.
        size_multiple: multiple of the image sides at which the encoder rounds no map size.
        classifiers: names of the modules whose number of outputs is the number of classes.
        training_only: name prefixes of modules that only training uses. A weights file may omit them, and a model may
            leave them unused.
    """

    encoder: nn.Module
    output_stride: ClassVar[int]
    size_multiple: ClassVar[int]
    classifiers: ClassVar[tuple[str, ...]]
    training_only: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def has_weight_decay(self, name: str) -> bool:
        """Returns True if weight decay applies to the parameter `name`."""

    @abstractmethod
    def parts(self) -> Sequence[tuple[str, nn.Module]]:
        """Returns the title and the module of each part, in the order of a cost table."""

    def in_encoder(self, name: str) -> bool:
        """Returns True if the parameter or buffer `name` belongs to the encoder. All others belong to the heads."""
        return name.startswith("encoder.")

    @property
    def num_layers(self) -> int | None:
        """Number of layers of the encoder; `None` if they have no known order."""
        return self.encoder.num_layers if isinstance(self.encoder, LayeredEncoder) else None

    def layer_index(self, name: str) -> int:
        """Returns the layer of the encoder's parameter `name`. Requires an encoder with ordered layers."""
        assert isinstance(self.encoder, LayeredEncoder)
        return self.encoder.layer_index(name.removeprefix("encoder."))
