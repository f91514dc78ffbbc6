"""Model folders, and their way to the Hub: one commit of weights, code, processor, card, recipe, metrics, figures."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from safetensors import SafetensorError

from ..data.benchmarks import load_benchmark
from ..files import check_weight_files, real_path
from ..methods.options import Recipe
from ..model.modeling_cagnet import CaGNetModel
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


def figure_titles(folder: Path, seen_from_card: str) -> dict[str, str]:
    """What a run's pictures show -> their paths, seen from the card; the predictions first."""
    titles = {
        "predictions": "Test images, truth and prediction; unseen classes are hatched",
        "per_class_iou": "IoU by class",
        "confusion": "What pixels of each class were taken for",
        "losses": "Losses during training",
    }
    return {
        title: f"{seen_from_card}/{name}.png" for name, title in titles.items() if (folder / f"{name}.png").is_file()
    }


def push_model(
    model_dir: str | Path, repo_id: str, *, private: bool = False, license: str | None = None
) -> CommitInfo:
    """Push a model folder, with its run's card, recipe, metrics and figures, as one commit.

    Args:
        model_dir: The model folder.
        repo_id: The repository on the Hub; see `claim_repository`.
        private: Make the repository private.
        license: The licence of the weights, as the Hub calls it.

    Raises:
        ValueError: The folder holds no model that opens, no card and no run beside it to make one of, or weights that
            are someone else's and no licence was stated; or the Hub refused (see `claim_repository`). Nothing was
            sent.
    """
    folder = real_path(Path(model_dir))
    if not folder.is_dir():
        raise ValueError(f"{model_dir}: no such folder")
    check_model_folder(folder)
    config = _read_json(folder / "config.json")
    _check_opens(folder, config)
    run = _run_around(folder, config)
    if run is None and not (folder / CARD).is_file():
        raise ValueError(
            f"{model_dir}: neither a {CARD} in it nor the {METRICS} and {RECIPE} of its training run around it: "
            "nothing says what this model is"
        )
    if license is None:
        _check_own(folder, run, config)
    full_id = claim_repository(repo_id, private=private)
    files = _files(folder, run, full_id, license)
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    with told_in_one_line(full_id):
        return HfApi().create_commit(full_id, operations, commit_message="Model, processor, code, card")


def check_own_weights(recipe: Recipe) -> None:
    """Refuse to publish, without a stated licence, a model that started from a file of someone's weights."""
    if not is_own(recipe.backbone_weights):
        raise ValueError(
            f"the model starts from the weights of {recipe.backbone_weights}, whose licence binds it: "
            "push it with `cagnet-hf push_to_hub --license ID`"
        )


def _check_own(folder: Path, run: Path | None, config: dict) -> None:
    """Refuse a model that is made from someone's weights."""
    if run is not None:
        check_own_weights(load_recipe(str(run / RECIPE)))
    tags = ModelCard.load(folder / CARD).data.tags if (folder / CARD).is_file() else None
    if config.get("weights_from") or CONVERTED in (tags or []):
        raise ValueError(
            f"{folder} comes from a checkpoint whose authors decide on its licence: state it, --license ID "
            "(https://huggingface.co/docs/hub/repositories-licenses)"
        )


def _check_opens(folder: Path, config: dict) -> None:
    """What does not open here would not open there."""
    if config.get("architectures") == ["CaGNetForSemanticSegmentation"]:
        load_model(str(folder))
        return
    check_weight_files(str(folder))
    try:
        CaGNetModel.from_pretrained(folder, use_safetensors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: its weights are missing or damaged ({error})") from None


def _run_around(folder: Path, config: dict) -> Path | None:
    """The run that wrote this model: the folder around `model/`, if it scored the same classes."""
    run = folder.parent
    if folder.name != "model" or not ((run / METRICS).is_file() and (run / RECIPE).is_file()):
        return None
    scored = _read_json(run / METRICS)["per_class"]
    return run if list(scored) == list(config.get("id2label", {}).values()) else None


def _files(folder: Path, run: Path | None, model_id: str, license: str | None) -> dict[str, Path | bytes]:
    """The files of the commit. A run's card is made from its metrics; another is the folder's own, told its id."""
    files = {path.name: path for pattern in _MODEL_FILES for path in sorted(folder.glob(pattern))}
    if run is None:
        card = ModelCard.load(folder / CARD)
        if license:
            card.data.license = license
        # The pictures beside a model's folder stay there.
        card.text = _PICTURE_OUTSIDE.sub("", card.text).replace(MODEL_ID, model_id)
        return files | {CARD: str(card).encode()}
    recipe = load_recipe(str(run / RECIPE))
    card = model_card(
        published_recipe(recipe),
        _read_json(run / METRICS),
        class_embeddings=recipe.class_embeddings,
        saved_calibration=_read_json(folder / "config.json")["calibration"],
        figures=figure_titles(run / FIGURES, FIGURES),
        model_id=model_id,
        license=license,
    )
    whole = yaml.safe_dump(published_recipe(recipe, exclude_defaults=False), sort_keys=False)
    files |= {CARD: card.encode(), RECIPE: whole.encode(), METRICS: run / METRICS}
    return files | {f"{FIGURES}/{path.name}": path for path in sorted((run / FIGURES).glob("*.png"))}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
