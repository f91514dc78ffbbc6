"""A segmenter from the names of its classes alone: no image, no label and no training."""

from collections.abc import Sequence
from logging import getLogger

import numpy as np
import torch

from ..data.benchmarks import Benchmark
from ..model.configuration_cagnet import CaGNetConfig, plain_name
from ..model.image_processing_cagnet import CaGNetImageProcessor
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation
from ..model.prototypes_cagnet import NEAREST_COSINE
from ..vectors.class_embeddings import BUNDLED
from ..vectors.imagenet_names import KnownNames, imagenet_names, lemmas, mean_posteriors
from ..vectors.new_classes import describe_source, embed_names
from ..weights.backbones import load_backbone_weights
from ..weights.classifier_heads import load_image_classifier_head

logger = getLogger(__name__)

TEMPERATURE = 0.05  # τ


def from_names(
    names: Sequence[str],
    *,
    backbone: str = "efficientnet_lite0",
    benchmark: Benchmark | None = None,
    encoder: str | None = None,
) -> tuple[CaGNetForSemanticSegmentation, CaGNetImageProcessor]:
    """Build a model that segments photographs into the classes with these names; seconds on a CPU.

    The backbone's ImageNet classifier is applied at every pixel. The names say which of its 1,000 classes belong to a
    class of the model. What ImageNet does not know by any name cannot be found so.

    Args:
        names: Names of the classes; at least two, as every pixel is given to one of them.
        backbone: `"efficientnet_lite0"` or `"efficientnet_lite2"`, whose weights are an installed package.
        benchmark: Give the classes the stored ids, and seen and unseen the meaning, that they have there; then the
            names are those of the benchmark.
        encoder: The text encoder all-MiniLM-L6-v2, a folder or a Hub id, for names that no bundled table holds. An
            installed package (the extra `names`) when None.

    Returns:
        The model in evaluation mode, which takes `add_classes`, and its image processor.

    Raises:
        ValueError: A name has no vector, or nothing near it is known; fewer than two names; the package of the weights
            is not installed.
    """
    names = [name.strip() for name in names] if benchmark is None else list(benchmark.class_names)
    if len(names) < 2:
        raise ValueError("every pixel is given to one of the classes: name at least two")
    vectors = embed_names(names, encoder=encoder)
    known = imagenet_names()
    _refuse_strangers(names, vectors, known)
    head, _ = load_image_classifier_head(backbone, "package")
    classes = {"id2label": dict(enumerate(names)), "unseen_ids": list(range(len(names)))}
    config = CaGNetConfig(
        **(classes if benchmark is None else benchmark.config_fields()),
        backbone=backbone,
        output_stride=16,
        aspp="none",
        contextual=False,
        feature_size=head.in_channels,
        classifier="names",
        generator=None,
        known_classes=head.num_classes,
        known_hidden_size=head.output.in_channels,
        embedding_size=vectors.shape[1],
        class_embedding_source=describe_source(BUNDLED),
    )
    model = CaGNetForSemanticSegmentation(config)
    load_backbone_weights(model, "package")
    classifier = model.classifier
    classifier.head.load_state_dict(head.state_dict())
    classifier.names.vectors.copy_(torch.from_numpy(known.vectors))
    classifier.names.known.fill_(1)
    classifier.names.temperature.fill_(TEMPERATURE)
    classifier.mean_posteriors.copy_(torch.from_numpy(mean_posteriors(backbone)))
    model.class_embeddings.copy_(torch.from_numpy(vectors))
    classifier.name_classes(model.class_embeddings)
    processor = CaGNetImageProcessor(
        size={"longest_edge": 320}, do_flip_channel_order=False, image_mean=[127.0] * 3, image_std=[128.0] * 3
    )
    return model.eval().to(memory_format=torch.channels_last), processor


def _refuse_strangers(names: Sequence[str], vectors: np.ndarray, known: KnownNames) -> None:
    """Refuse names that nothing near is known of.

    Raises:
        ValueError: The nearest known name is less similar than `NEAREST_COSINE`; it is named.
    """
    cosines = vectors @ known.vectors.T
    for name, row in zip(names, cosines, strict=True):
        nearest = [known.texts[i] for i in np.argsort(row)[::-1][:3]]
        if row.max() < NEAREST_COSINE:
            told = ", ".join(repr(lemmas(text)[0]) for text in nearest)
            raise ValueError(
                f"{name!r}: ImageNet knows nothing near it (nearest: {told}, cosine {row.max():.2f} < "
                f"{NEAREST_COSINE}); leave it out, or say it in other words"
            )
        logger.info("%s: %s", plain_name(name), ", ".join(lemmas(text)[0] for text in nearest))
