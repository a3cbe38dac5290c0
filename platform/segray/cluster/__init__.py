"""The Ray cluster: connection, nodes, resource allocation and error handling."""
