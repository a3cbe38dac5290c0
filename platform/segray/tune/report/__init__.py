"""HTML report of a sweep. Import order: write, figures and importance."""
