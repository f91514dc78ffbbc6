"""The card of a model whose classes were added, removed or renamed; it claims no scores."""

from collections.abc import Collection
from pathlib import Path

from . import card_metadata, render


def edited_model_card(config, source: str, added: Collection[str]) -> str:
    """The card of an edited model.

    Args:
        source: What the model was made from.
        added: Names of the classes that were added.
    """
    return render(
        "edited",
        card_metadata(),
        title=f"{Path(source).name}, classes edited",
        num_seen=len(config.seen_ids),
        num_unseen=len(config.unseen_ids),
        names=list(config.id2label.values()),
        seen_ids=config.seen_ids,
        source=Path(source).name,
        added=added,
    )
