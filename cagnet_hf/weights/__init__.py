"""Weights on disk: model folders of this package, and checkpoints of others."""
