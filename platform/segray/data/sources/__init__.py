"""Dataset formats that `prepare` reads, with one module per format; `formats` maps names to modules."""
