"""The HTML report of an evaluation. Import order: write, page and examples, figures."""
