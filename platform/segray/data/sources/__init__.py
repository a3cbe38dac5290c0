"""Dataset formats that `prepare` reads, one module each; `formats` lists them by name."""
