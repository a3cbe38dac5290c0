"""Sweeps: trials of settings drawn from a space, each a whole run, stopped early where others go further."""
