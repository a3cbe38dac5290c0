"""Trial schedulers. Order of imports: build, asha, median and pbt, base."""
