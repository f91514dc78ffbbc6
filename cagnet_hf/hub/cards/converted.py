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
    return render(
        "converted",
        _metadata(),
        title=f"{system}, converted",
        num_seen=len(config.seen_ids),
        num_unseen=len(config.unseen_ids),
        names=list(config.id2label.values()),
        seen_ids=config.seen_ids,
        input=_input(processor),
        **_origin(origin),
    )


def converted_backbone_card(config, processor, origin: Origin, *, has_aspp: bool) -> str:
    """The card of a converted backbone: without an ASPP in the file, it says that the features are untrained."""
    return render(
        "backbone",
        _metadata(pipeline_tag="image-feature-extraction"),
        title=f"ResNet-{2 + 3 * sum(config.depths)}, converted",
        feature_size=config.feature_size,
        aspp="The ASPP is the file's." if has_aspp else f"The file has no ASPP: these are {UNTRAINED_ASPP}.",
        input=_input(processor),
        **_origin(origin),
    )


def _metadata(**fields):
    return card_metadata(license="other", tags=[CONVERTED], **fields)


def _origin(origin: Origin) -> dict:
    released = origin.layout == "DeepLabV2"
    return {
        "origin": origin,
        "released": released,
        "layout": "the original release" if released else origin.layout,
    }


def _input(processor) -> dict:
    return {
        "channels": "BGR" if processor.do_flip_channel_order else "RGB",
        "top": 1 if processor.do_rescale else 255,
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "height": processor.size.height,
        "width": processor.size.width,
    }
