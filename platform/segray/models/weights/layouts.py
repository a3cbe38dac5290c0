"""Tensor names of a SegFormer in other libraries: one table per layout, from segray's modules to the peer's modules.

In a name, `{i}` is a stage index from 0, `{n}` a stage number from 1, `{r}` the stage index counted from the last stage
backwards, and `{j}` a block index. If two peer tensors form one segray tensor, the table lists both. `name@k/n` is
part k of n equal parts of the peer's tensor, with k from 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]

# Modules of stage i in segray: "embedding.proj" stands for "encoder.stages.{i}.embedding.proj".
_NVLABS_STAGE = {
    "embedding.proj": "patch_embed{n}.proj",
    "embedding.norm": "patch_embed{n}.norm",
    "norm": "norm{n}",
    "blocks.{j}.": "block{n}.{j}.",
}
_MMSEG_STAGE = {
    "embedding.proj": "layers.{i}.0.projection",
    "embedding.norm": "layers.{i}.0.norm",
    "norm": "layers.{i}.2",
    "blocks.{j}.": "layers.{i}.1.{j}.",
}
_TRANSFORMERS_4_STAGE = {
    "embedding.proj": "encoder.patch_embeddings.{i}.proj",
    "embedding.norm": "encoder.patch_embeddings.{i}.layer_norm",
    "norm": "encoder.layer_norm.{i}",
    "blocks.{j}.": "encoder.block.{i}.{j}.",
}
_TRANSFORMERS_5_STAGE = {
    "embedding.proj": "stages.{i}.patch_embeddings.proj",
    "embedding.norm": "stages.{i}.patch_embeddings.layer_norm",
    "norm": "stages.{i}.layer_norm",
    "blocks.{j}.": "stages.{i}.blocks.{j}.",
}
# Modules of a block in segray.
_NVLABS_BLOCK = {
    "norm1": "norm1",
    "attn.q": "attn.q",
    "attn.kv": "attn.kv",
    "attn.reduce": "attn.sr",
    "attn.norm": "attn.norm",
    "attn.proj": "attn.proj",
    "norm2": "norm2",
    "ffn.fc1": "mlp.fc1",
    "ffn.mix": "mlp.dwconv.dwconv",
    "ffn.fc2": "mlp.fc2",
}
_MMSEG_BLOCK = {
    "norm1": "norm1",
    "attn.q": "attn.attn.in_proj@0/3",
    "attn.kv": "attn.attn.in_proj@1/3 attn.attn.in_proj@2/3",
    "attn.reduce": "attn.sr",
    "attn.norm": "attn.norm",
    "attn.proj": "attn.attn.out_proj",
    "norm2": "norm2",
    "ffn.fc1": "ffn.layers.0",
    "ffn.mix": "ffn.layers.1",
    "ffn.fc2": "ffn.layers.4",
}
_TRANSFORMERS_4_BLOCK = {
    "norm1": "layer_norm_1",
    "attn.q": "attention.self.query",
    "attn.kv": "attention.self.key attention.self.value",
    "attn.reduce": "attention.self.sr",
    "attn.norm": "attention.self.layer_norm",
    "attn.proj": "attention.output.dense",
    "norm2": "layer_norm_2",
    "ffn.fc1": "mlp.dense1",
    "ffn.mix": "mlp.dwconv.dwconv",
    "ffn.fc2": "mlp.dense2",
}
_TRANSFORMERS_5_BLOCK = {
    "norm1": "layernorm_before",
    "attn.q": "attention.q_proj",
    "attn.kv": "attention.k_proj attention.v_proj",
    "attn.reduce": "attention.sequence_reduction.sequence_reduction",
    "attn.norm": "attention.sequence_reduction.layer_norm",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "ffn.fc1": "mlp.fc1",
    "ffn.mix": "mlp.dwconv.dwconv",
    "ffn.fc2": "mlp.fc2",
}
# Modules of the head in segray.
_NVLABS_HEAD = {
    "projections.{i}": "decode_head.linear_c{n}.proj",
    "fuse": "decode_head.linear_fuse.conv",
    "bn": "decode_head.linear_fuse.bn",
    "classifier": "decode_head.linear_pred",
}
_SMP_HEAD = {
    "projections.{i}": "decoder.mlp_stage.{r}.linear",
    "fuse": "decoder.fuse_stage.0",
    "bn": "decoder.fuse_stage.1",
    "classifier": "segmentation_head.0",
}
_MMSEG_HEAD = {
    "projections.{i}.conv": "decode_head.convs.{i}.conv",
    "projections.{i}.bn": "decode_head.convs.{i}.bn",
    "fuse": "decode_head.fusion_conv.conv",
    "bn": "decode_head.fusion_conv.bn",
    "classifier": "decode_head.conv_seg",
}
_TRANSFORMERS_4_HEAD = {
    "projections.{i}": "decode_head.linear_c.{i}.proj",
    "fuse": "decode_head.linear_fuse",
    "bn": "decode_head.batch_norm",
    "classifier": "decode_head.classifier",
}
_TRANSFORMERS_5_HEAD = _TRANSFORMERS_4_HEAD | {"projections.{i}": "decode_head.linear_projections.{i}.proj"}

# Linear layers in segray that mmsegmentation stores as 1x1 convolutions.
_MMSEG_CONVOLUTIONS = (".ffn.fc1.weight", ".ffn.fc2.weight")


class Layout(NamedTuple):
    """The name tables of one layout.

    Attributes:
        head_kind: head that the layout can store, as `build_segformer` names it.
        norm_eps: layer norm epsilons of the library that uses the layout, as `build_segformer` names them.
        prefix: prefix of the backbone's names in a full model; backbone-only files often omit it.
        stage: names of the modules of a stage.
        block: names of the modules of a block.
        head: names of the modules of the head.
        extras: name prefixes that do not belong to the model: unused layers and ImageNet classifiers.
    """

    head_kind: str
    norm_eps: str
    prefix: str
    stage: Mapping[str, str]
    block: Mapping[str, str]
    head: Mapping[str, str]
    extras: tuple[str, ...] = ()


_NVLABS_EXTRAS = ("decode_head.conv_seg.", "head.")
_MMSEG_EXTRAS = ("auxiliary_head.",)
_IMAGENET = ("classifier.",)
LAYOUTS = {
    "nvlabs": Layout("official", "official", "backbone.", _NVLABS_STAGE, _NVLABS_BLOCK, _NVLABS_HEAD, _NVLABS_EXTRAS),
    "smp": Layout("official", "official", "encoder.", _NVLABS_STAGE, _NVLABS_BLOCK, _SMP_HEAD),
    "mmseg": Layout("mmseg", "mmseg", "backbone.", _MMSEG_STAGE, _MMSEG_BLOCK, _MMSEG_HEAD, _MMSEG_EXTRAS),
    "transformers": Layout(
        "official",
        "transformers",
        "segformer.",
        _TRANSFORMERS_4_STAGE,
        _TRANSFORMERS_4_BLOCK,
        _TRANSFORMERS_4_HEAD,
        _IMAGENET,
    ),
    "transformers-5": Layout(
        "official",
        "transformers",
        "segformer.",
        _TRANSFORMERS_5_STAGE,
        _TRANSFORMERS_5_BLOCK,
        _TRANSFORMERS_5_HEAD,
        _IMAGENET,
    ),
}
SEGRAY = "segray"


class TensorSlice(NamedTuple):
    """Part `part` of `parts` equal parts of the peer's tensor `key`, along the first dimension."""

    key: str
    part: int
    parts: int


class NameMap:
    """The names of all tensors of a SegFormer in one layout.

    Args:
        layout: layout that defines the names.
        depths: numbers of blocks in the stages.
        prefix: prefix of the backbone's names.
    """

    def __init__(self, layout: Layout, depths: Sequence[int], prefix: str) -> None:
        self._modules: dict[str, str] = {}
        for stage, depth in enumerate(depths):
            numbers = {"i": stage, "n": stage + 1, "r": len(depths) - 1 - stage}
            self._add(f"encoder.stages.{stage}.", prefix, layout.stage, numbers)
            for block in range(depth):
                block_numbers = numbers | {"j": block}
                theirs = prefix + layout.stage["blocks.{j}."].format(**block_numbers)
                self._add(f"encoder.stages.{stage}.blocks.{block}.", theirs, layout.block, block_numbers)
            self._add("head.", "", layout.head, numbers)

    def _add(self, ours: str, theirs: str, table: Mapping[str, str], numbers: Mapping[str, int]) -> None:
        for our_name, their_names in table.items():
            if not our_name.endswith("."):
                full = " ".join(theirs + name for name in their_names.split())
                self._modules[ours + our_name.format(**numbers)] = full.format(**numbers)

    def slices_of(self, key: str) -> list[TensorSlice] | None:
        """Returns the peer's tensor slices that form segray's tensor `key`, in order.

        Returns `None` if the layout has no such tensor.
        """
        module, _, leaf = key.rpartition(".")
        names = self._modules.get(module)
        return None if names is None else [_parse_slice(name, leaf) for name in names.split()]


def _parse_slice(name: str, leaf: str) -> TensorSlice:
    name, _, fraction = name.partition("@")
    part, _, parts = (fraction or "0/1").partition("/")
    separator = "_" if name.endswith(".in_proj") else "."
    return TensorSlice(name + separator + leaf, int(part), int(parts))


def detect_layout(keys: Iterable[str]) -> tuple[str, str] | None:
    """Returns the name of the layout of the keys and the prefix of the backbone's names, or `None` if it is unknown."""
    names = set(keys)
    for name, layout in LAYOUTS.items():
        first = layout.stage["embedding.proj"].format(i=0, n=1) + ".weight"
        for prefix in (layout.prefix, ""):
            if prefix + first in names:
                return name, prefix
    return None


def assemble(slices: Sequence[TensorSlice], state: State) -> Tensor | None:
    """Returns segray's tensor, assembled from the peer's slices, or `None` if one of them is missing."""
    if any(tensor_slice.key not in state for tensor_slice in slices):
        return None
    parts = [state[key].chunk(parts)[part] if parts > 1 else state[key] for key, part, parts in slices]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def to_layout(layout_name: str, ours: State, depths: Sequence[int]) -> State:
    """Returns the state dict converted to the layout `layout_name`."""
    layout = LAYOUTS[layout_name]
    names = NameMap(layout, depths, layout.prefix)
    parts_by_key: dict[str, dict[int, Tensor]] = {}
    for key, tensor in ours.items():
        slices = names.slices_of(key)
        assert slices is not None, f"{layout_name} has no name for {key}"
        theirs = tensor[..., None, None] if layout_name == "mmseg" and key.endswith(_MMSEG_CONVOLUTIONS) else tensor
        chunks = theirs.chunk(len(slices)) if len(slices) > 1 else [theirs]
        for tensor_slice, chunk in zip(slices, chunks, strict=True):
            parts_by_key.setdefault(tensor_slice.key, {})[tensor_slice.part] = chunk
    return {
        key: torch.cat([parts[part] for part in sorted(parts)]) if len(parts) > 1 else parts[0].contiguous()
        for key, parts in parts_by_key.items()
    }
