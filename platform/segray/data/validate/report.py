"""HTML report of a validation: findings and statistics on one page, which refers only to the contact sheet."""

from collections import Counter
from pathlib import Path
from typing import Any

from segray.core.classes import Classes
from segray.core.html import render_page
from segray.core.numbers import MIB
from segray.data.validate.dataset import SplitStatistics, ValidationReport

MAX_SIZES = 12

_TEMPLATE = Path(__file__).with_name("templates") / "report.html"


def render_report(name: str, report: ValidationReport, sheet: str | None) -> str:
    """Renders the report as an HTML page.

    Args:
        name: name of the dataset.
        report: result of the validation.
        sheet: path of the contact sheet relative to the page; `None` if there is none.
    """
    image_sizes = sum((statistics.sizes for statistics in report.splits.values()), Counter[tuple[int, int]]())
    common_sizes = image_sizes.most_common(MAX_SIZES)
    return render_page(
        _TEMPLATE,
        name=name,
        manifest=report.manifest,
        errors=report.errors,
        warnings=report.warnings,
        splits=[_split_row(split, statistics, report) for split, statistics in report.splits.items()],
        sizes=[
            {"width": width, "height": height, "images": count, "bar": count / common_sizes[0][1]}
            for (width, height), count in common_sizes
        ],
        other_sizes=len(image_sizes) - len(common_sizes),
        other_images=image_sizes.total() - sum(count for _, count in common_sizes),
        sheet=sheet,
    )


def _split_row(name: str, statistics: SplitStatistics, report: ValidationReport) -> dict[str, Any]:
    pixels = sum(statistics.class_pixels) + statistics.ignored
    return {
        "name": name,
        "rows": statistics.rows,
        "mib": statistics.bytes / MIB,
        "pixels": pixels,
        "ignored": statistics.ignored / max(1, pixels),
        "classes": _class_rows(report.manifest.classes, statistics),
    }


def _class_rows(classes: Classes, statistics: SplitStatistics) -> list[dict[str, Any]]:
    """Returns one row per class; bars are scaled so that the most frequent class has full length."""
    total_pixels, max_pixels = max(1, sum(statistics.class_pixels)), max(1, *statistics.class_pixels)
    columns = (classes.names, classes.palette, statistics.class_pixels, statistics.class_images)
    return [
        {
            "name": name,
            "color": "rgb({},{},{})".format(*colour),
            "bar": pixels / max_pixels,
            "pixel_fraction": pixels / total_pixels,
            "images": images,
            "image_fraction": images / max(1, statistics.rows),
        }
        for name, colour, pixels, images in zip(*columns, strict=True)
    ]
