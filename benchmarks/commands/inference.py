"""`benchmark inference`: compares inference from images to masks with a peer's."""

import re
from collections.abc import Sequence

import torch

from benchmarks import inference
from benchmarks.commands.shared import add_common, make_logger, print_case, print_rows, require_positive, write_json
from benchmarks.inference import MODES, InferenceCase
from benchmarks.peers import DTYPES
from segray.cli.parser import CommandParser
from segray.core.errors import ConfigError
from segray.models.segformer.model import VARIANTS


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    flags = _parser().parse(argv)[0]
    require_positive(flags, "crop", "classes", "turns", "threads")
    if flags.threads:
        torch.set_num_threads(flags.threads)
    height, width = _size(flags.size)
    if "slide" in flags.modes and (flags.crop % 32 or flags.crop > min(height, width)):
        raise ConfigError(f"--crop is {flags.crop}; expected a multiple of 32, at most the image size {flags.size}.")
    if min(flags.batches) < 1:
        raise ConfigError(f"--batches contains {min(flags.batches)}; expected at least 1.")
    common = (flags.crop, flags.classes, flags.device, flags.dtype)
    cases = [
        InferenceCase(flags.variant, height, width, batch, mode, *common)
        for mode in flags.modes
        for batch in flags.batches
    ]
    report = inference.run_benchmark(cases, flags.turns, make_logger(flags))
    print_case(report.machine, report.case)
    print_rows(report.rows)
    write_json(flags, report)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(sides) < 32 or any(side % 32 for side in sides):
        raise ConfigError(f"--size is {text}; expected PX or HEIGHTxWIDTH, multiples of 32.")
    return sides


def _parser() -> CommandParser:
    parser = CommandParser(
        "benchmark inference",
        "Compares inference with transformers' model, in alternating turns with the same weights and images.",
    )
    parser.add_argument("--variant", default="b0", choices=VARIANTS, help="b0 to b5 (default: b0)")
    parser.add_argument("--size", default="512", metavar="PX", help="image size: PX or HEIGHTxWIDTH (default: 512)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="batch sizes (default: 1 4)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["whole"], help="inference modes (default: whole)")
    parser.add_argument("--crop", type=int, default=512, help="window side in mode slide, in px (default: 512)")
    parser.add_argument("--classes", type=int, default=19, help="number of classes (default: 19)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device (default: cpu)")
    parser.add_argument(
        "--dtype", default="float32", choices=DTYPES, help="dtype of the forward pass (default: float32)"
    )
    parser.add_argument("--threads", type=int, help="number of CPU threads (default: chosen by torch)")
    add_common(parser, turns=20)
    return parser
