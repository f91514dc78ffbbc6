"""Evaluation: the metric, the loop that runs a model over a test set, and the protocols of the field."""

from pathlib import Path

METRIC_PATH = str(Path(__file__).with_name("zero_shot_segmentation"))
