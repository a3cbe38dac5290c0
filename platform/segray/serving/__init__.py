"""HTTP serving of a registered model. The server continues to answer while the registry is unavailable."""
