"""Dataset conversion, validation and loading, from source files to batches on a device."""
