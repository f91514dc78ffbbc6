"""Word vectors as they are distributed: read from a stream, looked up by class name."""
