"""From challenger to champion: what is measured, what is decided of it, and how the aliases move."""
