"""Promotion of model versions: measurements, gates and registry aliases."""
