"""The HTML report of a sweep. Order of imports: write, figures and importance."""
