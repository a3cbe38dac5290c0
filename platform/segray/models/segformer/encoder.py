"""The Mix Transformer encoder: computes four maps at 1/4, 1/8, 1/16 and 1/32 of the image size.

Tokens are stored as maps of shape (B, h, w, C). Viewed as (B, C, h, w), such a map is a channels-last image, so linear
layers, layer norms and convolutions all read it without a copy.

See: SegFormer, arXiv 2105.15203, section 3.1.
"""

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segray.models.layers import map_to_tokens, tokens_to_map
from segray.models.segformer.mix_ffn import MixFFN
from segray.models.segformer.tiling import should_tile

PATCH = (7, 3, 3, 3)
STRIDE = (4, 2, 2, 2)
HEADS = (1, 2, 5, 8)
REDUCTION = (8, 4, 2, 1)
MLP_RATIO = 4

LAYER_NAME = re.compile(r"stages\.(\d+)\.(?:(embedding|norm)|blocks\.(\d+))\.")

# Layer norm epsilons of each publisher: (block and stage norms, norms directly after a convolution).
NORM_EPS = {"official": (1e-6, 1e-5), "mmseg": (1e-6, 1e-6), "transformers": (1e-5, 1e-5)}


class Embedding(nn.Module):
    """Overlapping patch embedding: a strided convolution and a layer norm."""

    def __init__(self, in_dim: int, dim: int, patch: int, stride: int, eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, patch, stride, patch // 2)
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the map (B, h, w, C) of an image or of the previous stage's map, (B, C', H, W)."""
        tokens: Tensor = self.norm(map_to_tokens(self.proj(image)))
        return tokens


class Attention(nn.Module):
    """Multi-head attention from every token to a map that is reduced by `reduction` in both directions."""

    def __init__(self, dim: int, heads: int, reduction: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = reduction
        if reduction > 1:
            self.reduce = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim, eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the attention output, with the shape (B, h, w, C) of `tokens`."""
        key, value = self.kv(self._reduce(tokens)).flatten(1, 2).chunk(2, dim=-1)  # (B, M, C)
        if self.heads == 1 and should_tile(tokens) and not torch.is_grad_enabled():
            return self._attend_single_head(tokens, key, value)
        query = self.q(tokens).flatten(1, 2)  # (B, N, C)
        weighted = F.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value))
        attended: Tensor = self.proj(weighted.transpose(1, 2).reshape(tokens.shape))
        return attended

    def _attend_single_head(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Computes single-head attention with the query and output projections folded into the keys and values.

        The result equals that of `forward`, because the rows of a softmax sum to 1:
        softmax((x Q + q) K) V P + p = softmax(x (Q K) + q K) (V P + p).
        The folded products are cheap because there are few keys and values.
        """
        key = key * key.shape[-1] ** -0.5
        query, folded_key, folded_value = tokens.flatten(1, 2), key @ self.q.weight, self.proj(value)
        bias = key @ self.q.bias  # (B, M)
        attended = F.scaled_dot_product_attention(
            query[:, None], folded_key[:, None], folded_value[:, None], attn_mask=bias[:, None, None], scale=1.0
        )
        return attended.view(tokens.shape)

    def _reduce(self, tokens: Tensor) -> Tensor:
        if self.reduction == 1:
            return tokens
        reduced: Tensor = self.norm(map_to_tokens(self.reduce(tokens_to_map(tokens))))
        return reduced

    def _split(self, tokens: Tensor) -> Tensor:
        """Returns the tokens (B, N, C) split into heads (B, heads, N, D)."""
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block. Training drops each branch for complete images at rate `drop_path`."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float, eps: tuple[float, float]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps[0])
        self.attn = Attention(dim, heads, reduction, eps[1])
        self.norm2 = nn.LayerNorm(dim, eps[0])
        self.ffn = MixFFN(dim, MLP_RATIO * dim)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns a map with the shape (B, h, w, C) of `tokens`."""
        tokens = self._add(tokens, self.attn(self.norm1(tokens)))
        return self._add(tokens, self.ffn(self.norm2(tokens)))

    def _add(self, tokens: Tensor, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return tokens + branch
        kept = F.dropout(branch.new_ones(branch.shape[0], 1, 1, 1), self.drop_path)
        return torch.addcmul(tokens, branch, kept)


class Stage(nn.Module):
    """An embedding, blocks and a final layer norm. The output is the input of the head and of the next stage."""

    def __init__(
        self, embedding: Embedding, blocks: Sequence[Block], norm: nn.LayerNorm, *, activation_checkpointing: bool
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.activation_checkpointing = activation_checkpointing

    def forward(self, image: Tensor) -> Tensor:
        """Returns the map (B, C, h, w) of the stage, channels-last."""
        tokens = self.embedding(image)
        for block in self.blocks:
            recompute = self.activation_checkpointing and self.training
            tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
        return tokens_to_map(self.norm(tokens))


class Encoder(nn.Module):
    """Mix Transformer.

    Attributes:
        dims: numbers of channels of the four maps.
        depths: numbers of blocks in the four stages.
        drop_path: drop rate of the last block's branches.
        strides: image pixels per cell of the four maps.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        drop_path: float = 0.1,
        norm_eps: str = "official",
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dims, self.depths, self.drop_path = tuple(dims), tuple(depths), drop_path
        eps = NORM_EPS[norm_eps]
        # The drop rate increases linearly over all blocks, from 0 in the first to `drop_path` in the last.
        rates = iter([drop_path * index / (sum(depths) - 1) for index in range(sum(depths))])
        self.stages = nn.ModuleList()
        for level, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            in_dim = dims[level - 1] if level else 3
            embedding = Embedding(in_dim, dim, PATCH[level], STRIDE[level], eps[1])
            blocks = [Block(dim, HEADS[level], REDUCTION[level], next(rates), eps) for _ in range(depth)]
            norm = nn.LayerNorm(dim, eps[0])
            self.stages.append(Stage(embedding, blocks, norm, activation_checkpointing=activation_checkpointing))
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns four maps (B, C_i, h_i, w_i) of a normalised image (B, 3, H, W); h_1 is ceil(H / 4)."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps

    @property
    def num_layers(self) -> int:
        """Number of layers: the first embedding and all blocks."""
        return 1 + sum(self.depths)

    def layer_index(self, name: str) -> int:
        """Returns the layer of a parameter: 0 for the first embedding, 1 for the first block.

        The embedding of a later stage belongs to the first block of that stage. The norm of a stage belongs to its last
        block.
        """
        match = LAYER_NAME.match(name)
        assert match is not None, name
        stage, part, block = int(match[1]), match[2], match[3]
        blocks_before = sum(self.depths[:stage])
        if part == "norm":
            return blocks_before + self.depths[stage]
        if part == "embedding":
            return blocks_before + 1 if stage else 0
        return blocks_before + int(block) + 1


def init_weights(module: nn.Module) -> None:
    """Initialises the weights as published.

    Linear weights are sampled from a normal distribution with standard deviation 0.02, truncated at -2 and 2. These
    bounds are absolute and lie 100 standard deviations from the mean, so the truncation has no effect. Convolution
    weights are sampled by fan-out. Biases are 0.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
