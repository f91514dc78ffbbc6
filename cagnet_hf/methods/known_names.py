"""What the backbone's image classifier knows by name, and anchors of generators that are made of it."""

from collections.abc import Iterable
from pathlib import Path

import torch

from ..model.gaussian_cagnet import of_all_processes
from ..model.maps_cagnet import centre_labels, to_pixel_list
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModelOutput
from ..model.prototypes_cagnet import DenseHead, PrototypeMeans
from ..vectors.imagenet_names import known_names
from ..weights.classifier_heads import load_image_classifier_head
from .options import AnchorRecipe, KnownNamesRecipe, Recipe, RecipeError
from .pseudo_labels import network_inputs

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def load_known_names(
    model: CaGNetForSemanticSegmentation, means: PrototypeMeans, options: KnownNamesRecipe
) -> DenseHead:
    """The head of the image classifier, on the model's device; the means are told what its classes are called.

    Raises:
        RecipeError: Head, names and model do not fit.
    """
    config, channels = model.config, model.cagnet.backbone.num_channels
    head, called = load_image_classifier_head(config.backbone, options.head)
    known = known_names(called, options.known_embeddings)
    for what, own, of_head in (
        ("the backbone's channels", channels, head.in_channels),
        ("model.known_classes", config.known_classes, head.num_classes),
        ("class_embeddings (numbers a vector)", config.embedding_size, known.vectors.shape[1]),
    ):
        if own != of_head:
            raise RecipeError(f"{what} is {own}, but the head of {options.head} has {of_head}")
    means.names.vectors.copy_(torch.from_numpy(known.vectors))
    means.names.known.fill_(1)
    left_out = known.positions(_names_of(options.without))
    if len(left_out) == len(known.texts):
        raise RecipeError("without leaves out every class that the image classifier knows")
    means.names.known[left_out] = 0
    return head.to(model.device)


def _names_of(without: list[str] | str) -> list[str]:
    """The names in a list, or in a file with one a line."""
    if not isinstance(without, str):
        return without
    bundled = next(RECIPES.glob(f"*/{Path(without).name}"), None) if Path(without).name == without else None
    path = Path(without) if bundled is None or Path(without).is_file() else bundled
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RecipeError(f"without: {without} cannot be read ({error.strerror}); give names or a file") from None
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def labelled_pixels(features, labels, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps `(B, D, h, w)` and `(B, h, w)` -> features `(P, D)` of the labelled pixels and their classes `(P,)`."""
    labelled = labels != ignore_index
    return to_pixel_list(features, labelled)[0, :, 0].t(), labels[labelled]


def observe_known_classes(means: PrototypeMeans, head: DenseHead, maps: CaGNetModelOutput, unlabelled) -> None:
    """Take the features of unlabelled pixels into the means of the known classes, by what the head says of each.

    Args:
        maps: With hidden states, whose first is the map of the backbone.
        unlabelled: `(B, h, w)` bool.
    """
    if not unlabelled.any():  # every pixel has a label
        return
    posteriors = head(to_pixel_list(maps.hidden_states[0], unlabelled).float())[0, :, 0].t().softmax(dim=1)
    means.observe(to_pixel_list(maps.features, unlabelled)[0, :, 0].t().float(), posteriors)


def check_anchors(recipe: Recipe, models: dict[str, CaGNetForSemanticSegmentation]) -> None:
    """Refuse stages whose generator would add to the means of an anchor that cannot be fitted, or that nothing fits.

    Args:
        models: The model of every stage; stages of one model share the anchor.

    Raises:
        RecipeError: A stage cannot be run.
    """
    fitted = None  # the model whose anchor a stage so far fits
    for name, stage in recipe.stages.items():
        model, options = models[name], getattr(stage, "anchor", None)
        anchor = getattr(model.generator, "anchor", None)
        if options is not None:
            if anchor is None:
                raise RecipeError(f"stages.{name}.anchor needs model.generator_anchor")
            if stage.network is not None:
                raise RecipeError(
                    f"stages.{name}.anchor: the features of a learning network do not stay: leave out network"
                )
            if model.config.generator_anchor == "prototypes":
                load_known_names(model, anchor.closed_form.mean, options)
            fitted = model
        generates = stage.generator is not None or getattr(stage, "synthetic_block", 0)
        if anchor is not None and generates and fitted is not model:
            raise RecipeError(
                f"stages.{name}: no stage so far fits the generator's anchor: set stages.{name}.anchor={{}}"
            )


@torch.no_grad()
def fit_anchor(model: CaGNetForSemanticSegmentation, options: AnchorRecipe, batches: Iterable[dict]) -> None:
    """Fit the anchor of the model's generator to the features of whole images.

    Args:
        batches: The share of this process; as those of a pass.
    """
    anchor, config = model.generator.anchor, model.config
    closed_form, embeddings, of_names = anchor.closed_form, model.class_embeddings, None
    counts = torch.zeros(config.num_labels, dtype=torch.float64, device=model.device)
    sums = torch.zeros(config.num_labels, config.feature_size, dtype=torch.float64, device=model.device)
    head = None
    if config.generator_anchor == "prototypes":
        head = load_known_names(model, closed_form.mean, options)
        of_names = {"temperature": options.tau}
        closed_form.mean.mass.zero_()
        closed_form.mean.means.zero_()
    training = model.training
    model.eval()
    for batch in batches:
        maps = model.cagnet(**network_inputs(batch), output_hidden_states=True)
        labels = centre_labels(batch["labels"], maps.features.shape[-2:])
        features, classes = labelled_pixels(maps.features, labels, config.ignore_index)
        counts.index_add_(0, classes, torch.ones_like(classes, dtype=counts.dtype))
        sums.index_add_(0, classes, features.to(sums.dtype))
        if head is not None:
            observe_known_classes(closed_form.mean, head, maps, labels == config.ignore_index)
    model.train(training)
    if head is not None:
        closed_form.mean.share()
    counts, sums = (sum(of_each) for of_each in zip(*of_all_processes(counts, sums), strict=True))
    closed_form.class_counts.copy_(counts)
    closed_form.class_means.copy_(sums / counts.clamp_min(1)[:, None])
    anchor.fit(embeddings, **(of_names or {"ridge": options.ridge}))
