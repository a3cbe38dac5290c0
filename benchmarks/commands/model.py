"""`benchmark model`: compares the SegFormer model with a peer's."""

from collections.abc import Sequence

import torch

from benchmarks import train_step
from benchmarks.commands.shared import add_common, make_logger, print_rows, require_positive, write_json
from benchmarks.peers import DTYPES, OURS, PEERS, Case
from benchmarks.train_step import StepReport
from segray.cli.parser import CommandParser
from segray.models.segformer.model import VARIANTS


def run(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints the report."""
    flags = _parser().parse(argv)[0]
    require_positive(flags, "size", "batch", "classes", "turns", "threads")
    if flags.threads:
        torch.set_num_threads(flags.threads)
    case = Case(flags.variant, flags.size, flags.batch, flags.classes, flags.device, flags.dtype)

    report = train_step.run_benchmark(case, flags.against, flags.turns, compiled=flags.compile, log=make_logger(flags))
    _print_report(report)
    write_json(flags, report)


def _parser() -> CommandParser:
    parser = CommandParser(
        "benchmark model", "Compares SegFormer with a peer's, in alternating turns with the same weights and images."
    )
    parser.add_argument("--variant", default="b0", choices=VARIANTS, help="b0 to b5 (default: b0)")
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="side of the images (default: 512)")
    parser.add_argument("--batch", type=int, default=2, help="images per step (default: 2)")
    parser.add_argument("--classes", type=int, default=19, help="number of classes (default: 19)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device (default: cpu)")
    parser.add_argument(
        "--dtype", default="float32", choices=DTYPES, help="dtype of the forward pass (default: float32)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile segray, and compare with the eager and the compiled peer"
    )
    parser.add_argument("--against", default=PEERS[0], choices=PEERS, help=f"peer (default: {PEERS[0]})")
    parser.add_argument("--threads", type=int, help="number of CPU threads (default: chosen by torch)")
    add_common(parser, turns=7)
    return parser


def _print_report(report: StepReport) -> None:
    case = report.case
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    print(
        f"\nSegFormer-{case.variant.upper()}, {case.batch} x 3 x {case.size} x {case.size}, {case.classes} classes, ",
        end="",
    )
    print(f"{case.device} {case.dtype}\n{machine}\n")
    print_rows(report.rows)
    macs = ", ".join(f"{name} {count / 1e9:.2f}" for name, count in report.macs.items())
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report.share_of_rate.items())
    print(f"\nGMAC per image      {macs}")
    print(f"matrix product      {report.matrix_rate / 1e9:.1f} GMAC/s on this device; {OURS} reaches {shares}")
    print(f"logit difference    {report.disagreement:.1e} of their range")
