"""HTML report of a validation: findings and statistics on one page, which refers only to the contact sheet."""

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from segray.core.classes import Classes, Colour
from segray.data.validate.dataset import SplitStatistics, ValidationReport

MAX_SIZES = 12

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.5rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .15rem .8rem .15rem 0 }
th { font-weight: 600; border-bottom: 1px solid #ccc } td.number, th.number { text-align: right }
.bar { background: #eee; height: .8rem; min-width: 8rem } .bar div { height: 100% }
.good { color: #17642b } .bad { color: #a11414 } img { max-width: 100% } li { overflow-wrap: anywhere }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem; border: 1px solid #999 }
"""


def render_report(name: str, checked: ValidationReport, sheet: str) -> str:
    """Renders the report as an HTML page.

    Args:
        name: name of the dataset.
        checked: result of the validation.
        sheet: path of the contact sheet relative to the page.
    """
    manifest = checked.manifest
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p>{manifest.classes.num_classes} classes, digest <code>{manifest.digest}</code>, "
        f"made from {escape(manifest.source.get('format', 'an unknown format'))}</p>",
        _findings("Faults", "No fault.", checked.errors),
        _findings("Doubts", "No doubt.", checked.warnings),
        "<h2>Splits</h2>" + _splits(checked.splits),
        *(_classes(split, manifest.classes, found) for split, found in checked.splits.items()),
        "<h2>Image sizes</h2>" + _sizes(checked.splits),
        f'<h2>Contact sheet</h2><img src="{escape(sheet)}" alt="images with their masks laid over them">',
    ]
    head = f'<meta charset="utf-8"><title>{escape(name)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _findings(title: str, none: str, lines: Sequence[str]) -> str:
    if not lines:
        return f'<h2>{title}</h2><p class="good">{none}</p>'
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h2>{title}</h2><ul class="bad">{items}</ul>'


def _splits(splits: dict[str, SplitStatistics]) -> str:
    rows = []
    for name, found in splits.items():
        pixels = sum(found.class_pixels) + found.ignored
        ignored = f"{found.ignored / max(1, pixels):.2%}"
        rows.append([name, f"{found.rows:,}", f"{found.bytes / 2**20:,.1f} MiB", f"{pixels:,}", ignored])
    return _table(["split", "images", "size", "pixels", "not counted"], rows, numbers=range(1, 5))


def _classes(split: str, classes: Classes, found: SplitStatistics) -> str:
    """Renders the share of each class as a bar, scaled so that the largest share has full length."""
    total, most = max(1, sum(found.class_pixels)), max(1, *found.class_pixels)
    rows = [
        [
            f'<span class="swatch" style="background:{_css(colour)}"></span>{escape(name)}',
            _bar(pixels / most, _css(colour)),
            f"{pixels / total:.3%}",
            f"{images:,}",
            f"{images / max(1, found.rows):.1%}",
        ]
        for name, colour, pixels, images in zip(
            classes.names, classes.palette, found.class_pixels, found.class_images, strict=True
        )
    ]
    head = ["class", "share of pixels", "", "images", "of the split"]
    return f"<h2>Classes in {escape(split)}</h2>" + _table(head, rows, numbers=(2, 3, 4))


def _sizes(splits: dict[str, SplitStatistics]) -> str:
    sizes = sum((found.sizes for found in splits.values()), Counter[tuple[int, int]]())
    most = max(sizes.values(), default=1)
    common = sizes.most_common(MAX_SIZES)
    rows = [[f"{width} x {height}", _bar(count / most, "#4a6fa5"), f"{count:,}"] for (width, height), count in common]
    if len(sizes) > MAX_SIZES:
        rows.append([f"{len(sizes) - MAX_SIZES} others", "", f"{sizes.total() - sum(n for _, n in common):,}"])
    return _table(["width x height", "", "images"], rows, numbers=(2,))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    right = set(numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        styles = (' class="number"' if index in right else "" for index in range(len(cells)))
        return "".join(f"<{tag}{style}>{cell}</{tag}>" for cell, style in zip(cells, styles, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{line(head, 'th')}</tr>{body}</table>"


def _bar(share: float, colour: str) -> str:
    return f'<div class="bar"><div style="width:{share:.2%};background:{colour}"></div></div>'


def _css(colour: Colour) -> str:
    return f"rgb({colour[0]},{colour[1]},{colour[2]})"
