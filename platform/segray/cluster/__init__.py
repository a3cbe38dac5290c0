"""The Ray cluster: joining or starting one, what it can ever hold, and what went wrong on it."""
