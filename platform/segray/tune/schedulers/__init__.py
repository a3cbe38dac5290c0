"""Trial schedulers. Import order: build, asha, median and pbt, base."""
