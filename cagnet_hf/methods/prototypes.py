"""Prototypes (this package's own row): class means from what the backbone's own classifier knows by name."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import Field

from ..files import write_text_whole
from ..model.maps_cagnet import centre_labels, to_pixel_list
from ..patches.layouts import class_odds
from ..vectors.class_embeddings import BUNDLED
from ..vectors.imagenet_names import known_names
from ..weights.classifier_heads import load_image_classifier_head
from . import register
from .base import Batch, Learner, Method
from .leaving_out import CHOSEN, CellSample, Setting, choose_setting
from .options import PassRecipe, Recipe, RecipeError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


class PrototypesStage(PassRecipe):
    """One pass over whole images, in which the network rests. The Bayes rule becomes the classifier, with prior odds
    of 1 for seen classes and 1 + `unseen_rate` for unseen ones."""

    head: str = "package"  # where the head of the image classifier is from; see `load_image_classifier_head`
    known_embeddings: str = BUNDLED  # vectors of the names that the image classifier knows, or a table of them
    # Known classes to leave out: names, synset ids, or a text file with one of them a line. The file that comes with
    # the recipes of a benchmark, `unseen_synsets.txt`, is found by its name.
    without: list[str] | str = []
    tau: float | None = Field(None, gt=0)  # an average over several when None
    shrinkage: float = Field(0.05, ge=0, le=1)
    covariance_scale: float = Field(6.0, gt=0)
    unseen_rate: float = Field(0.0, ge=0)
    # Choose unseen_rate, model.image_prior and model.calibration by leaving out each seen class in turn; those of the
    # recipe stay where no others are clearly better (see `leaving_out`).
    choose: bool = False


class PrototypesRecipe(Recipe):
    """The recipe of prototypes."""

    stages: dict[str, PrototypesStage] = Field(min_length=1)


@register
class Prototypes(Method):
    """The backbone rests. Unlabelled pixels give the mean feature of every class that its classifier knows, names say
    which of them a class of the benchmark is like, and a Bayes rule of Gaussians scores pixels."""

    titles = {"prototypes": "Prototypes"}
    paper = "this package's own"
    parts = {"generator": "prototypes"}
    recipe_class = PrototypesRecipe
    prepared = (CHOSEN,)
    _setting: Setting | None = None

    @classmethod
    def check(cls, name, stage, model):
        super().check(name, stage, model)
        if stage.optimizers():
            raise RecipeError(
                f"stages.{name}: prototypes follow in closed form, but {', '.join(stage.optimizers())} has an "
                "optimizer; leave it out"
            )
        if model.generator is None or model.config.generator != "prototypes":
            raise RecipeError(f"stages.{name}: needs model.generator=prototypes")

    @classmethod
    def learns_by_gradients(cls, stage):
        return False

    @classmethod
    def learns_by_batches(cls, stage):
        return False

    def prepare(self, label_maps: Iterable, folder: Path) -> None:
        """Load the head of the image classifier, and tell the generator what its classes are called."""
        config, names = self.model.config, self.model.generator.mean.names
        self._chosen = folder / CHOSEN
        self._head, called = load_image_classifier_head(config.backbone, self.stage.head)
        self._head.to(self.model.device)
        known = known_names(called, self.stage.known_embeddings)
        for key, value in {
            "model.feature_size": (config.feature_size, self._head.in_channels),
            "model.known_classes": (config.known_classes, self._head.num_classes),
            "class_embeddings (numbers a vector)": (config.embedding_size, known.vectors.shape[1]),
        }.items():
            if value[0] != value[1]:
                raise RecipeError(f"{key} is {value[0]}, but the head of {self.stage.head} has {value[1]}")
        names.vectors.copy_(torch.from_numpy(known.vectors))
        names.known.fill_(1)
        left_out = known.positions(_names_of(self.stage.without))
        if len(left_out) == len(known.texts):
            raise RecipeError("without leaves out every class that the image classifier knows")
        names.known[left_out] = 0

    @torch.no_grad()
    def iterate(self, batches: Iterable[Batch], learn: Learner) -> dict[str, torch.Tensor]:
        """Observe every image once: labelled pixels for their classes, the others for the known classes."""
        model, generator = self.model, self.model.generator
        generator.start_observing()
        cells = CellSample() if self.stage.choose else None
        for batch in batches:
            features = model.cagnet(batch["pixel_values"]).features
            labels = centre_labels(batch["labels"], features.shape[-2:])
            unlabelled = labels == model.config.ignore_index
            if cells is not None:
                cells.add(features, labels.masked_fill(unlabelled, model.config.num_labels))
            labelled = to_pixel_list(features, ~unlabelled)[0, :, 0].t()
            others = to_pixel_list(features, unlabelled)
            with torch.autocast(features.device.type, enabled=False):  # halves would round statistics of many batches
                generator.observe(labelled, labels[~unlabelled])
                if others.numel():  # not every pixel has a label
                    others = others.float()
                    posteriors = self._head(others)[0, :, 0].t().softmax(dim=1)
                    generator.mean.observe(others[0, :, 0].t(), posteriors)
        generator.share()
        if cells is not None and cells.batches:
            self._choose(cells)
        return {}

    def _choose(self, cells: CellSample) -> None:
        """Choose between seen and unseen classes, and write down what was chosen, which `finish` reads."""
        config, stage = self.model.config, self.stage
        default = Setting(stage.unseen_rate, config.image_prior, config.calibration)
        arguments = cells, self.model.generator, self._head, self.model.class_embeddings, config.unseen_ids, default
        with torch.autocast(self.model.device.type, enabled=False):
            chosen, scores = choose_setting(*arguments, **self._fit_options())
        facts = {"chosen": chosen._asdict(), "default": default._asdict()}
        facts["scores"] = {name: scores.get(Setting(**numbers)) for name, numbers in facts.items()}
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not together or torch.distributed.get_rank() == 0:  # every process has chosen the same
            write_text_whole(self._chosen, json.dumps(facts, indent=1) + "\n")
        self._setting = chosen

    def _fit_options(self) -> dict[str, float | None]:
        stage = self.stage
        return {
            "temperature": stage.tau,
            "shrinkage": stage.shrinkage,
            "covariance_scale": stage.covariance_scale,
        }

    @torch.no_grad()
    def finish(self) -> None:
        """Choose s on the seen classes; the generator's Bayes rule becomes the classifier."""
        model, stage, generator = self.model, self.stage, self.model.generator
        if not generator.class_counts.any():
            return
        rate = stage.unseen_rate
        if stage.choose and self._setting is None and self._chosen.is_file():  # a run that was resumed at its end
            self._setting = Setting(**json.loads(self._chosen.read_text(encoding="utf-8"))["chosen"])
        if self._setting is not None:
            rate, model.config.image_prior, model.config.calibration = self._setting
        embeddings = model.class_embeddings
        odds = class_odds(len(embeddings), model.config.unseen_ids, rate, embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            generator.fit(embeddings, **self._fit_options())
            weights, biases = generator.bayes_rule(embeddings, odds.log())
        model.classifier.weight.copy_(weights[:, :, None, None])
        model.classifier.bias.copy_(biases)


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
