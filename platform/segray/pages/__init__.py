"""What all pages and figures for a person share: one look, no network."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(package: str, /, **known: Any) -> str:
    """Returns the page of a package, whose template is its `page.html`.

    Args:
        package: that holds the template, which extends `base.html`.
        known: what the template names.
    """
    places = ChoiceLoader([PackageLoader(package, ""), PackageLoader("segray.pages", "")])
    environment = Environment(loader=places, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html").render(known)
