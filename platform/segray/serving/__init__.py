"""Serving a registered model: requests in, masks out, whatever happens to the registry behind it."""
