"""Tables for people: scores by class, and where things are."""

from rich.console import Console
from rich.table import Table

from segray.metrics import Scores


def show_scores(console: Console, title: str, scores: Scores) -> None:
    """Prints IoU by class and the means."""
    console.print(title, style="bold", highlight=False)
    table = Table(show_edge=False, pad_edge=False, header_style="")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    table.add_column("", justify="left")
    for name, iou in scores.iou.items():
        if iou is None:
            table.add_row(name, "-", "absent")
        else:
            table.add_row(name, f"{iou:.4f}", "█" * round(iou * 24))
    console.print(table)
    console.print(f"mIoU {scores.miou:.4f}   mAcc {scores.macc:.4f}   aAcc {scores.aacc:.4f}", highlight=False)
    if scores.absent:
        console.print(f"absent from truth and prediction, not counted: {', '.join(scores.absent)}")
    if scores.without_truth:
        console.print(f"predicted but never true, counted as 0: {', '.join(scores.without_truth)}")


def show_places(console: Console, rows: dict[str, str]) -> None:
    """Prints names and places, one a line, never cut or wrapped so that they can be copied."""
    width = max(len(name) for name in rows)
    for name, place in rows.items():
        console.print(f"{name:<{width}}  {place}", highlight=False, soft_wrap=True)
