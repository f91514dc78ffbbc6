"""Model folders, and their way to the Hub: one commit of weights, code, processor, card, recipe, metrics, figures."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from safetensors import SafetensorError, safe_open

from ..data.benchmarks import load_benchmark
from ..methods.options import Recipe
from ..training.recipe_files import load_recipe
from ..training.run_folder import FIGURES, METRICS, RECIPE
from ..weights.backbones import is_own
from ..weights.folders import CARD, check_model_folder, load_model
from .cards import MODEL_ID
from .cards.converted import CONVERTED
from .cards.trained import model_card
from .repositories import claim_repository, told_in_one_line

# What a model folder holds; anything else that lies in it is nobody's business.
_MODEL_FILES = ("*.safetensors", "*.json", "*.py")
_PICTURE_OUTSIDE = re.compile(r"^!\[[^\]]*\]\(\.\./[^)]*\)\n+", re.MULTILINE)


def published_recipe(recipe: Recipe, *, exclude_defaults: bool = True) -> dict:
    """The recipe with local files and folders called by their last name alone: where they lay is nobody's business.

    A benchmark of one's own is called by its name.
    """

    def is_local(path: Path) -> bool:  # an id on the Hub is `name` or `owner/name`
        return path.exists() or path.is_absolute() or len(path.parts) > 2 or ".." in path.parts

    def last_name(source: str) -> str:
        return ",".join(Path(part).name if is_local(Path(part)) else part for part in source.split(","))

    tree = recipe.model_dump(mode="json", exclude_defaults=exclude_defaults)
    paths = {key: last_name(tree[key]) for key in ("dataset", "class_embeddings", "backbone_weights") if tree.get(key)}
    if "backbone" in recipe.model:
        paths["model"] = recipe.model | {"backbone": last_name(recipe.model["backbone"])}
    own = Path(recipe.benchmark)
    return tree | paths | {"benchmark": load_benchmark(own).name if own.exists() else own.name}


class Publication(NamedTuple):
    """What is pushed, whatever the repository is called.

    Attributes:
        folder: The model folder.
        run: The training run's folder around it; None for a model that came without.
        license: Of the weights, if stated.
    """

    folder: Path
    run: Path | None
    license: str | None

    def card(self, model_id: str) -> str:
        """The card of a run, made from its metrics; else the folder's own, told its id and licence."""
        if self.run is not None:
            recipe = _read_recipe(self.run)
            return model_card(
                published_recipe(recipe),
                json.loads((self.run / METRICS).read_text(encoding="utf-8")),
                class_embeddings=recipe.class_embeddings,
                saved_calibration=_read_config(self.folder)["calibration"],
                figures=figure_titles(self.run / FIGURES, FIGURES),
                model_id=model_id,
                license=self.license,
            )
        card = ModelCard.load(self.folder / CARD)
        if self.license:
            card.data.license = self.license
        # The pictures beside a model's folder stay there.
        card.text = _PICTURE_OUTSIDE.sub("", card.text).replace(MODEL_ID, model_id)
        return str(card)

    def operations(self, model_id: str) -> list[CommitOperationAdd]:
        """The files of the commit."""
        files: dict[str, Path | bytes] = {
            path.name: path for pattern in _MODEL_FILES for path in sorted(self.folder.glob(pattern))
        }
        files[CARD] = self.card(model_id).encode()
        if self.run is not None:
            recipe = published_recipe(_read_recipe(self.run), exclude_defaults=False)
            files[RECIPE] = yaml.safe_dump(recipe, sort_keys=False).encode()
            files[METRICS] = self.run / METRICS
            files |= {f"{FIGURES}/{path.name}": path for path in sorted((self.run / FIGURES).glob("*.png"))}
        return [CommitOperationAdd(path, content) for path, content in files.items()]


def figure_titles(folder: Path, seen_from_card: str) -> dict[str, str]:
    """What a run's pictures show -> their paths, seen from the card; the predictions first."""
    titles = {
        "predictions": "Test images, truth and prediction; unseen classes are hatched",
        "per_class_iou": "IoU by class",
        "losses": "Losses during training",
    }
    return {
        title: f"{seen_from_card}/{name}.png" for name, title in titles.items() if (folder / f"{name}.png").is_file()
    }


def prepare_publication(model_dir: str | Path, license: str | None = None) -> Publication:
    """Look a model folder over before anything is sent.

    Raises:
        ValueError: It holds no model that opens, no card and no run beside it to make one of, or weights that are
            someone else's and no licence was stated.
    """
    folder = Path(model_dir).resolve()
    if not folder.is_dir():
        raise ValueError(f"{model_dir}: no such folder")
    check_model_folder(folder)
    config = _read_config(folder)
    if config.get("architectures") == ["CaGNetForSemanticSegmentation"]:
        load_model(str(folder))  # what does not open here would not open there
    else:
        _check_weights(folder)
    run = _run_around(folder, config)
    if run is None and not (folder / CARD).is_file():
        raise ValueError(
            f"{model_dir}: neither a {CARD} in it nor the {METRICS} and {RECIPE} of its training run around it: "
            "nothing says what this model is"
        )
    if license is None:
        if run is not None:
            check_own_weights(_read_recipe(run))
        tags = ModelCard.load(folder / CARD).data.tags if (folder / CARD).is_file() else None
        if config.get("weights_from") or CONVERTED in (tags or []):
            raise ValueError(
                f"{model_dir} comes from a checkpoint whose authors decide on its licence: state it, --license ID "
                "(https://huggingface.co/docs/hub/repositories-licenses)"
            )
    return Publication(folder, run, license)


def check_own_weights(recipe: Recipe) -> None:
    """Refuse to publish, without a stated licence, a model that started from a file of someone's weights."""
    if not is_own(recipe.backbone_weights):
        raise ValueError(
            f"the model starts from the weights of {recipe.backbone_weights}, whose licence binds it: "
            "push it with `cagnet-hf push_to_hub --license ID`"
        )


def push_model(
    model_dir: str | Path, repo_id: str, *, private: bool = False, license: str | None = None
) -> CommitInfo:
    """Push a model folder, with its run's card, recipe, metrics and figures, as one commit.

    Raises:
        ValueError: See `prepare_publication` and `claim_repository`; nothing was sent.
    """
    publication = prepare_publication(model_dir, license)
    full_id = claim_repository(repo_id, private=private)
    with told_in_one_line(full_id):
        return HfApi().create_commit(
            full_id, publication.operations(full_id), commit_message="Model, processor, code, card"
        )


def _read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _read_recipe(run: Path) -> Recipe:
    return load_recipe(str(run / RECIPE))


def _run_around(folder: Path, config: dict) -> Path | None:
    """The run that wrote this model: the folder around `model/`, if it scored the same classes."""
    run = folder.parent
    if folder.name != "model" or not ((run / METRICS).is_file() and (run / RECIPE).is_file()):
        return None
    scored = json.loads((run / METRICS).read_text(encoding="utf-8"))["per_class"]
    return run if list(scored) == list(config.get("id2label", {}).values()) else None


def _check_weights(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no weights in this folder (model.safetensors)")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged ({error})") from None
