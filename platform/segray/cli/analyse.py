"""Command `analyse WHAT`: shows the cost of a model, its training batches, or the curves of runs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.config import paths
from segray.core.errors import ConfigError, DataError, did_you_mean

MAX_SIDE = 16384


def main() -> None:
    """Runs the command."""
    run_command(_analyse)


def _analyse() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if what in {"-h", "--help"}:
        lines = [f"  {name:<8} {explanation}" for name, (explanation, _) in WHAT.items()]
        print("usage: analyse WHAT [--help] ...", *lines, sep="\n")
        return
    if what not in WHAT:
        raise ConfigError(
            f"'{what}' is nothing to analyse; expected {', '.join(WHAT)}{did_you_mean(what, WHAT) or '.'}"
        )
    WHAT[what][1](sys.argv[2:])


def _model(argv: Sequence[str]) -> None:
    parser = CommandParser("Parameters and multiply-accumulates of a model, part by part.", with_config=True)
    parser.add_argument("--size", type=int, nargs="+", default=[512], metavar="PX", help="SIDE, or HEIGHT WIDTH")
    parser.add_argument("--classes", type=int, default=19, help="classes (default: 19)")
    flags, config = parser.parse(argv)
    if len(flags.size) > 2 or not all(32 <= side <= MAX_SIDE for side in flags.size) or flags.classes < 1:
        raise ConfigError(f"expected --size SIDE or --size HEIGHT WIDTH, 32 to {MAX_SIDE}, and at least one class.")
    from segray.models.cost import model_costs  # noqa: PLC0415 each subcommand imports only what it needs

    height, width = flags.size[0], flags.size[-1]
    found = model_costs(config, flags.classes, height, width)
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column("part")
    for title in ("parameters", "share", "GMAC", "share"):
        table.add_column(title, justify="right")
    whole = found[-1]
    for cost in found:
        shares = [
            part / max(total, 1) for part, total in ((cost.parameters, whole.parameters), (cost.macs, whole.macs))
        ]
        table.add_row(
            cost.part, f"{cost.parameters:,}", f"{shares[0]:.1%}", f"{cost.macs / 1e9:.2f}", f"{shares[1]:.1%}"
        )
    console = make_console()
    console.print(f"{config.model.variant}, {flags.classes} classes, one image of {height} x {width}", highlight=False)
    console.print(table)


def _batches(argv: Sequence[str]) -> None:
    parser = CommandParser("A sheet of a run's first batches, as the trainer sees them.", with_config=True)
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--count", type=int, default=4, help="of batches (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("batches.png"), metavar="FILE", help="(default: batches.png)")
    flags, config = parser.parse(argv)
    if flags.count < 1:
        raise ConfigError(f"--count is {flags.count}; expected at least 1.")
    from segray.training import preview  # noqa: PLC0415

    _check_out(flags)
    root = paths.absolute_path("data.root", flags.data or config.data.root)
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
    _write(flags, lambda: preview.save_batch_preview(config, flags.count, flags.out))


def _curves(argv: Sequence[str]) -> None:
    parser = CommandParser("Loss and mIoU of runs over their steps, from MLflow.", with_config=True)
    named = "names or ids (default: all of the experiment)"
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help=named)
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE", help="(default: curves.png)")
    flags, config = parser.parse(argv)
    from segray.tracking import curves  # noqa: PLC0415

    _check_out(flags)
    found = curves.load_curves(paths.tracking_uri(config), config.tracking.experiment, flags.runs)
    _write(flags, lambda: curves.plot_training_curves(found, flags.out))


def _check_out(flags: argparse.Namespace) -> None:
    paths.absolute_path("--out", str(flags.out))
    if flags.out.suffix.lower() != ".png" or not flags.out.absolute().parent.is_dir():
        raise ConfigError(f"--out is {flags.out}; expected a .png in a folder that exists.")


def _write(flags: argparse.Namespace, save: Callable[[], None]) -> None:
    try:
        save()
    except OSError as error:
        raise DataError(f"{flags.out} cannot be written ({error}).") from error
    make_console().print(f"out  {flags.out}", highlight=False, soft_wrap=True)


WHAT: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "model": ("parameters and multiply-accumulates by stage", _model),
    "batches": ("a sheet of training batches", _batches),
    "curves": ("loss and mIoU of runs", _curves),
}
