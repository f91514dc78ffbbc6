"""The card of a model that was made from the names of its classes alone; it claims no scores."""

from . import card_metadata, render


def named_model_card(config) -> str:
    """The card of such a model."""
    return render(
        "named",
        card_metadata(license="apache-2.0"),
        title=f"{', '.join(list(config.id2label.values())[:5])}: from names alone",
        names=list(config.id2label.values()),
        backbone=config.backbone.replace("_", "-"),
    )
