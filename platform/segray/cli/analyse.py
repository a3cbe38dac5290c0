"""Command `analyse SUBJECT`: shows the cost of a model, its training batches, or the curves of runs."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from segray.cli.parser import CommandParser, make_console
from segray.config import paths
from segray.core.errors import ConfigError, DataError, did_you_mean

MAX_SIDE = 16384


def run(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: subject, followed by its flags.
    """
    subject = argv[0] if argv else "--help"
    if subject in {"-h", "--help"}:
        lines = [f"  {name:<8} {description}" for name, (description, _) in SUBJECTS.items()]
        print("usage: segray analyse SUBJECT [--help] ...", *lines, sep="\n")
        return
    if subject not in SUBJECTS:
        hint = did_you_mean(subject, SUBJECTS) or "."
        raise ConfigError(f"unknown subject '{subject}'; expected {', '.join(SUBJECTS)}{hint}")
    SUBJECTS[subject][1](argv[1:])


def _analyse_model(argv: Sequence[str]) -> None:
    parser = CommandParser("analyse model", "Parameters and multiply-accumulates of the parts of a model.")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[512], metavar="PX", help="SIDE, or HEIGHT WIDTH (default: 512)"
    )
    parser.add_argument("--classes", type=int, default=19, metavar="K", help="number of classes (default: 19)")
    flags, config = parser.parse(argv)
    if len(flags.size) > 2 or not all(32 <= side <= MAX_SIDE for side in flags.size) or flags.classes < 1:
        raise ConfigError(
            f"--size is {flags.size} and --classes is {flags.classes}; expected SIDE or HEIGHT WIDTH from 32 to "
            f"{MAX_SIDE}, and at least one class."
        )
    from segray.models.cost import model_costs  # noqa: PLC0415 each subcommand imports only what it needs

    height, width = flags.size[0], flags.size[-1]
    costs = model_costs(config, flags.classes, height, width)
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column("part")
    for title in ("parameters", "%", "GMAC", "%"):
        table.add_column(title, justify="right")
    total = costs[-1]
    for cost in costs:
        table.add_row(
            cost.part,
            f"{cost.parameters:,}",
            f"{cost.parameters / max(total.parameters, 1):.1%}",
            f"{cost.macs / 1e9:.2f}",
            f"{cost.macs / max(total.macs, 1):.1%}",
        )
    console = make_console()
    console.print(f"{config.model.variant}, {flags.classes} classes, one image of {height} x {width}", highlight=False)
    console.print(table)


def _analyse_batches(argv: Sequence[str]) -> None:
    parser = CommandParser("analyse batches", "An image of the first training batches, after augmentation.")
    parser.add_common("data")
    parser.add_argument("--count", type=int, default=4, metavar="N", help="number of batches (default: 4)")
    _add_out(parser, "batches.png")
    flags, config = parser.parse(argv)
    if flags.count < 1:
        raise ConfigError(f"--count is {flags.count}; expected at least 1.")
    from segray.training import preview  # noqa: PLC0415

    _check_out(flags)
    root = paths.absolute_path("data.root", config.data.root)
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
    _write(flags, lambda: preview.save_batch_preview(config, flags.count, flags.out))


def _analyse_curves(argv: Sequence[str]) -> None:
    parser = CommandParser("analyse curves", "A plot of the loss and mIoU of runs over their steps, from MLflow.")
    runs_help = "names or ids of runs (default: all runs of the experiment)"
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help=runs_help)
    _add_out(parser, "curves.png")
    flags, config = parser.parse(argv)
    from segray.tracking import curves  # noqa: PLC0415

    _check_out(flags)
    runs = curves.load_curves(paths.tracking_uri(config), config.tracking.experiment, flags.runs)
    _write(flags, lambda: curves.plot_training_curves(runs, flags.out))


def _add_out(parser: CommandParser, default: str) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path(default), metavar="FILE", help=f"image to write (default: {default})"
    )


def _check_out(flags: argparse.Namespace) -> None:
    paths.absolute_path("--out", str(flags.out))
    if flags.out.suffix.lower() != ".png" or not flags.out.absolute().parent.is_dir():
        raise ConfigError(f"--out is {flags.out}; expected a .png file in a folder that exists.")


def _write(flags: argparse.Namespace, save: Callable[[], None]) -> None:
    try:
        save()
    except OSError as error:
        raise DataError(f"{flags.out} cannot be written ({error}).") from error
    make_console().print(f"out  {flags.out}", highlight=False, soft_wrap=True)


SUBJECTS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "model": ("parameters and multiply-accumulates of a model, by part", _analyse_model),
    "batches": ("image of the first training batches", _analyse_batches),
    "curves": ("plot of the loss and mIoU of runs", _analyse_curves),
}
