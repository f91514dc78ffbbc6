"""The card of a model whose classes were added, removed or renamed; it claims no scores."""

from collections.abc import Collection
from pathlib import Path

from . import card_metadata, render


def edited_model_card(config, source: str, added: Collection[str]) -> str:
    """The card of an edited model.

    Args:
        config: The configuration of the edited model.
        source: What the model was made from; a run's folder `model` is called by the run.
        added: Names of the classes that were added.
    """
    path = Path(source)
    name = path.parent.name if path.name == "model" and path.parent.name else path.name
    title = f"{name}, classes edited"
    return render("edited", card_metadata(), title=title, config=config, source=name, added=added)
