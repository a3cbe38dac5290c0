"""The HTML report of an evaluation. Order of imports: write, page and examples, figures."""
