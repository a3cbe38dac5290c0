"""HTML pages from Jinja templates, with a common style, escaped values and no network access."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")
"""Folder of `base.html` and `macros.html`, which every template may extend or import."""


def render_page(template: Path, /, **values: Any) -> str:
    """Renders a template file to HTML.

    Args:
        template: path of the template, which extends `base.html`.
        values: variables of the template. Strings are escaped.
    """
    loader = FileSystemLoader([template.parent, TEMPLATES])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(template.name).render(values)
