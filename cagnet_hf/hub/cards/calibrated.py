"""The card of a model whose calibration was chosen after its scores were measured."""

import re

from huggingface_hub import ModelCard

_CALIBRATION = re.compile(r"\n## Calibration\n\nγ = .*? (?P<measured>The scores on this card .*?); score anew\.\n?")


def calibrated_card(card: str, gamma: float, before: float) -> str:
    """A model card after a calibration was chosen: it says so, and no longer announces scores of another one."""
    parsed = ModelCard(card, ignore_metadata_errors=True)
    parsed.data.eval_results = None
    measured = f"The scores on this card were measured with γ = {before:g}"
    kept = _CALIBRATION.search(parsed.text)
    if kept:  # calibrated before
        measured = kept["measured"]
    text = _CALIBRATION.sub("", parsed.text).strip()
    note = f"## Calibration\n\nγ = {gamma:g}, chosen on held-out seen classes. {measured}; score anew."
    return f"---\n{parsed.data.to_yaml()}\n---\n\n{text}\n\n{note}\n"
