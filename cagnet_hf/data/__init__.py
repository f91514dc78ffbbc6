"""Data: official archives -> prepared datasets on disk, and the transforms that feed a model."""
