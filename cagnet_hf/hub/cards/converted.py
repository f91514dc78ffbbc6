"""Cards of converted checkpoints: they claim no scores, and the licence is that of the checkpoint's authors."""

from typing import NamedTuple

from . import card_metadata, render

CONVERTED = "converted"  # the tag by which a pushed or saved card tells that the weights are someone else's
UNTRAINED_ASPP = "features of an untrained ASPP, initialised at random"


class Origin(NamedTuple):
    """Where a converted checkpoint comes from.

    Attributes:
        layout: The layout of its file (see `KeyMatch.layout`).
        source: A file name or an address.
        digest: SHA-256 of the file.
    """

    layout: str
    source: str
    digest: str


def converted_model_card(config, processor, origin: Origin) -> str:
    """The card of a converted segmenter."""
    system = "SPNet" if config.classifier == "projection" else f"CaGNet({'pi' if config.patch_size == 1 else 'pa'})"
    metadata = card_metadata(license="other", tags=[CONVERTED])
    facts = {"config": config, "processor": processor, "origin": origin}
    return render("converted", metadata, title=f"{system}, converted", **facts)


def converted_backbone_card(config, processor, origin: Origin, *, has_aspp: bool) -> str:
    """The card of a converted backbone: without an ASPP in the file, it says that the features are untrained."""
    title = f"ResNet-{2 + 3 * sum(config.depths)}, converted"
    aspp = "The ASPP is the file's." if has_aspp else f"The file has no ASPP: these are {UNTRAINED_ASPP}."
    metadata = card_metadata(license="other", tags=[CONVERTED], pipeline_tag="image-feature-extraction")
    facts = {"config": config, "processor": processor, "origin": origin}
    return render("backbone", metadata, title=title, aspp=aspp, **facts)
