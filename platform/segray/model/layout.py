"""Two views of one map: as tokens (B, h, w, C) and as a channels-last image (B, C, h, w)."""

from torch import Tensor


def as_image(tokens: Tensor) -> Tensor:
    """Returns the map (B, h, w, C) seen as a channels-last image (B, C, h, w); no copy."""
    return tokens.permute(0, 3, 1, 2)


def as_tokens(image: Tensor) -> Tensor:
    """Returns the image (B, C, h, w) seen as a map (B, h, w, C); no copy."""
    return image.permute(0, 2, 3, 1)
