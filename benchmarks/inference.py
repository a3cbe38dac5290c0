"""Benchmark of inference from images to full-size class ids: latency, throughput and memory, by mode and batch size.

The peer is transformers' model with the same weights, used as its documentation describes. Scores are resized to the
image size before the argmax, windows are summed at the image size, and the probabilities of the mirrored image are
averaged.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import quantiles

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import machine, memory
from benchmarks.interleave import BenchmarkReport, Row, rate_row, time_row
from benchmarks.peers import DTYPES, OURS, TRANSFORMERS, to_transformers
from segray.core.errors import ModelError
from segray.core.numbers import MIB
from segray.inference.segment import InferenceConfig, segment
from segray.inference.timing import time_interleaved
from segray.models.segformer.model import MEAN, STD, build_segformer

MODES = ("whole", "slide", "flip", "scales")
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of the paper's multi-scale test."""
MAX_DIFFERENT = 1e-3
"""Permitted fraction of pixels with a different class for full images; random weights produce many near ties."""

Segment = Callable[[], Tensor]


@dataclass(frozen=True)
class InferenceCase:
    """A measured case.

    Attributes:
        variant: "b0" to "b5".
        height, width: size of the images in px.
        batch: number of images per batch.
        mode: inference mode, one of MODES.
        crop: side of a window in px; the stride is three quarters of it.
        classes: K.
        device: "cpu" or "cuda".
        dtype: dtype of the forward pass.
    """

    variant: str
    height: int
    width: int
    batch: int
    mode: str
    crop: int
    classes: int
    device: str
    dtype: str

    @property
    def inference_config(self) -> InferenceConfig:
        """The mode as an InferenceConfig."""
        is_slide = self.mode == "slide"
        return InferenceConfig(
            crop=self.crop if is_slide else None,
            stride=self.crop * 3 // 4 if is_slide else 0,
            window_batch=4 if is_slide else 1,
            scales=SCALES if self.mode == "scales" else (1.0,),
            flip=self.mode in {"flip", "scales"},
            dtype=DTYPES[self.dtype],
        )

    def images(self) -> Tensor:
        """Returns the images (B, 3, H, W) uint8, identical for every call."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, 256, (self.batch, 3, self.height, self.width), dtype=torch.uint8, generator=generator)


def run_benchmark(cases: list[InferenceCase], turns: int, log: Callable[[str], None]) -> BenchmarkReport:
    """Compares segray with transformers in every case.

    Raises:
        ModelError: the class ids differ, transformers is not installed, or the device is missing.
    """
    first = cases[0]
    if first.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device is cuda, but torch finds no GPU here; use --device cpu.")
    rows = [row for case in cases for row in _rows(case, turns, log)]
    fields = asdict(replace(first, batch=0)) | {"turns": turns}
    description = {name: value for name, value in fields.items() if name not in {"batch", "mode"}}
    return BenchmarkReport(machine.describe_machine(torch.device(first.device)), description, rows)


def _rows(case: InferenceCase, turns: int, log: Callable[[str], None]) -> Iterator[Row]:
    device, label = torch.device(case.device), f"{case.mode}, batch {case.batch}"
    log(f"{label}, {turns} turns per candidate ...")
    candidates = [build_candidate(name, case) for name in (OURS, TRANSFORMERS)]
    _require_agreement(candidates, case)
    ours, theirs = time_interleaved(candidates, turns, device)
    yield time_row(f"{label}: p50", TRANSFORMERS, ours, theirs, "s")
    yield replace(time_row(f"{label}: p95", TRANSFORMERS, [_p95(ours)], [_p95(theirs)], "s"), turns=turns)
    rates = [[case.batch / seconds for seconds in series] for series in (ours, theirs)]
    yield rate_row(f"{label}: images", TRANSFORMERS, rates[0], rates[1], "1/s")
    del candidates
    if memory.can_measure(device):
        peaks = [[_peak_in_new_process(name, case) / MIB] for name in (OURS, TRANSFORMERS)]
        yield time_row(f"{label}: memory", TRANSFORMERS, peaks[0], peaks[1], "MiB")


def _p95(series: list[float]) -> float:
    return quantiles(series, n=20, method="inclusive")[-1] if len(series) > 1 else series[0]


def _require_agreement(candidates: list[Segment], case: InferenceCase) -> None:
    """Raises ModelError if the class ids of the candidates differ.

    Only full images in float32 are checked. The candidates blend windows differently, so other modes may differ more.
    """
    if case.mode != "whole" or case.dtype != "float32":
        return
    ours, theirs = (candidate() for candidate in candidates)
    difference = float((ours != theirs).float().mean())
    if difference > MAX_DIFFERENT:
        raise ModelError(
            f"the predicted classes differ in {difference:.1e} of the pixels; expected at most {MAX_DIFFERENT:.0e}."
        )


def _peak_in_new_process(name: str, case: InferenceCase) -> int:
    with memory.fresh_process() as pool:
        return pool.submit(_peak, name, case, torch.get_num_threads()).result()


def _peak(name: str, case: InferenceCase, threads: int) -> int:
    torch.set_num_threads(threads)
    build_candidate(name, replace(case, height=64, width=64, batch=1, crop=64))()  # warm-up
    return memory.peak_added_bytes(build_candidate(name, case), torch.device(case.device))


def build_candidate(name: str, case: InferenceCase) -> Segment:
    """Returns a function that computes the class ids (B, H, W) of the case's images.

    The weights are random, with a fixed seed.
    """
    torch.manual_seed(0)
    ours = build_segformer(case.variant, case.classes).eval()
    images, size = case.images().to(case.device), (case.height, case.width)
    if name == OURS:
        return partial(segment, ours.to(case.device), images, size, case.inference_config)
    return partial(_run_transformers, to_transformers(ours).eval().to(case.device), images, case)


@torch.inference_mode()
def _run_transformers(model: nn.Module, images: Tensor, case: InferenceCase) -> Tensor:
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    settings, size = case.inference_config, (case.height, case.width)

    def scores(pixels: Tensor, out_size: tuple[int, int]) -> Tensor:
        with torch.autocast(case.device, settings.dtype, enabled=settings.dtype is not torch.float32):
            logits = model(pixel_values=pixels).logits
        return F.interpolate(logits.float(), out_size, mode="bilinear", align_corners=False)

    pixels = (images - mean) / std
    if settings.crop is not None:
        return _sum_windows(
            partial(scores, out_size=(settings.crop, settings.crop)), pixels, settings, case.classes
        ).argmax(1)
    averages = len(settings.scales) > 1 or settings.flip
    total = torch.zeros(len(images), case.classes, *size, device=images.device)
    for scale in settings.scales:
        resized = [-(-int(side * scale) // 32) * 32 for side in size]
        scaled = pixels if scale == 1.0 else F.interpolate(pixels, resized, mode="bilinear", align_corners=False)
        for flipped in (False, True) if settings.flip else (False,):
            logits = scores(scaled.flip(-1) if flipped else scaled, size)
            logits = logits.flip(-1) if flipped else logits
            total += logits.softmax(1) if averages else logits
    return total.argmax(1)


def _sum_windows(scores: Callable[[Tensor], Tensor], pixels: Tensor, settings: InferenceConfig, classes: int) -> Tensor:
    """Returns the mean of the windows' scores at full size, computed one window at a time."""
    crop = settings.crop or 0
    total = torch.zeros(len(pixels), classes, *pixels.shape[-2:], device=pixels.device)
    counts = torch.zeros(1, 1, *pixels.shape[-2:], device=pixels.device)
    tops, lefts = (sorted({*range(0, side - crop, settings.stride), side - crop}) for side in pixels.shape[-2:])
    for top in tops:
        for left in lefts:
            window = (..., slice(top, top + crop), slice(left, left + crop))
            total[window] += scores(pixels[window])
            counts[window] += 1
    return total / counts
