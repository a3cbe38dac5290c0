"""`benchmark`: ours beside a peer's, in turns, in one run."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from segray.benchmark import segformer
from segray.benchmark.contenders import DTYPES, OURS, PEERS, Case
from segray.benchmark.segformer import Report
from segray.cli.command import Parser, end
from segray.errors import ConfigError
from segray.model.segformer import VARIANTS


def main() -> None:
    """Runs the command."""
    end(_benchmark)


def _benchmark() -> None:
    flags = _parser().parse()[0]
    for name in ("size", "batch", "classes", "turns", "threads"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected at least 1.")
    if flags.threads:
        torch.set_num_threads(flags.threads)
    case = Case(flags.variant, flags.size, flags.batch, flags.classes, flags.device, flags.dtype)

    def say(line: str) -> None:
        if not flags.quiet:
            print(line, flush=True)

    report = segformer.measured(case, flags.against, flags.turns, compiled=flags.compile, say=say)
    _show(report)
    if flags.json:
        flags.json.write_text(json.dumps({"command": _command()} | asdict(report), indent=2))


def _parser() -> Parser:
    parser = Parser("Measures ours beside a peer's: both take turns in one run, on the same weights and images.")
    parser.add_argument("what", choices=["model"], help="model: train step, inference and memory of SegFormer")
    parser.add_argument("--variant", default="b0", choices=VARIANTS, help="b0 to b5 (default: b0)")
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="side of the images (default: 512)")
    parser.add_argument("--batch", type=int, default=2, help="images of a step (default: 2)")
    parser.add_argument("--classes", type=int, default=19, help="classes (default: 19)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the products (default: float32)")
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile, the peer's both ways")
    parser.add_argument("--against", default=PEERS[0], choices=PEERS, help=f"the peer (default: {PEERS[0]})")
    parser.add_argument("--turns", type=int, default=7, help="turns that each gets (default: 7)")
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: torch's choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result for programs")
    parser.add_argument("--quiet", action="store_true", help="print the result alone")
    return parser


def _command() -> str:
    return shlex.join(["python", *sys.argv])


def _show(report: Report) -> None:
    case = report.case
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    print(
        f"\nSegFormer-{case.variant.upper()}, {case.batch} x 3 x {case.size} x {case.size}, {case.classes} classes, ",
        end="",
    )
    print(f"{case.device} {case.dtype}\n{machine}\n")
    print(f"{'measure':<14}{OURS:>12}  {'peer':<24}{'theirs':>12}{'ratio':>9}")
    for row in report.rows:
        ours, theirs = (f"{value:.4g} {row.unit}" for value in (row.ours, row.theirs))
        print(f"{row.measure:<14}{ours:>12}  {row.peer:<24}{theirs:>12}{row.ratio:>8.2f}x")
    macs = ", ".join(f"{name} {count / 1e9:.2f}" for name, count in report.macs.items())
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report.share_of_rate.items())
    print(f"\nGMAC of one image   {macs}")
    print(f"matrix product      {report.matrix_rate / 1e9:.1f} GMAC/s here, of which {OURS} reaches: {shares}")
    print(f"logits differ by    {report.disagreement:.1e} of their range")
