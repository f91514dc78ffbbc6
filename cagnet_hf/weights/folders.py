"""Model folders: opened by this package's own code, checked, and written whole."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from ..files import MODEL_FOLDER, check_weight_files, write_whole
from ..model.configuration_cagnet import CaGNetConfig
from ..model.image_processing_cagnet import CaGNetImageProcessor
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation

CARD = "README.md"


def load_model(model_path: str):
    """(model in evaluation mode, image processor); this package's own code runs it.

    Args:
        model_path: A model folder, a Hub id, or `ID@REVISION` for a branch, tag or commit of it.

    Raises:
        ValueError: There is no such model, it is none of this package, or its weights do not fit; in one line.
    """
    config, (name, where) = load_config(model_path), _place(model_path)
    with _told_in_one_line(name, where["revision"]):
        check_weight_files(name, where["revision"])
        try:
            model, report = CaGNetForSemanticSegmentation.from_pretrained(
                name, config=config, use_safetensors=True, output_loading_info=True, **where
            )
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{model_path}: its weights do not fit its config.json or are damaged ({error})"
            ) from None
        if report["missing_keys"]:
            raise ValueError(f"{model_path}: its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
        processor = CaGNetImageProcessor.from_pretrained(name, **where)
    check_numbers(model_path, model, processor)
    return model.eval().to(memory_format=torch.channels_last), processor


def load_config(model_path: str) -> CaGNetConfig:
    """The configuration of a model, whose weights are left where they are. Args and errors: see `load_model`."""
    check_model_folder(Path(model_path))
    name, where = _place(model_path)
    with _told_in_one_line(name, where["revision"]):
        fields, _ = CaGNetConfig.get_config_dict(name, **where)
        if fields.get("model_type") != CaGNetConfig.model_type:
            raise ValueError(f"{model_path} is a {fields.get('model_type')!r} model, not a CaGNet one")
        return CaGNetConfig.from_pretrained(name, **where)


def _place(model_path: str) -> tuple[str, dict[str, str]]:
    """(folder or Hub id, which revision of it)."""
    name, _, revision = (model_path, "", "") if Path(model_path).is_dir() else model_path.partition("@")
    return name, {"revision": revision or "main"}


def check_numbers(source: str, model: torch.nn.Module, processor: CaGNetImageProcessor | None = None) -> None:
    """Refuse a model with which no number of a prediction means anything.

    Raises:
        ValueError: A weight or a number of the configurations is not finite, or pixels would be divided by zero.
    """
    for name, values in model.state_dict().items():
        if values.is_floating_point() and not values.isfinite().all():
            raise ValueError(f"{source}: its weights {name} hold values that are not finite")
    calibration = getattr(model.config, "calibration", 0.0)
    if not math.isfinite(calibration):
        raise ValueError(f"{source}: config.json: calibration {calibration} is no finite number")
    if processor is None:
        return
    fields = {name: getattr(processor, name) for name in ("image_mean", "image_std", "rescale_factor")}
    for name, value in fields.items():
        numbers = value if isinstance(value, list | tuple) else [0 if value is None else value]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"{source}: preprocessor_config.json: {name} {value} holds no finite numbers")
    if processor.do_normalize and 0 in list(processor.image_std):
        raise ValueError(f"{source}: preprocessor_config.json: image_std {processor.image_std} holds a zero")


@contextmanager
def _told_in_one_line(name: str, revision: str) -> Iterator[None]:
    """What transformers raises about a model that it cannot get, as one line that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):  # private and gated ones, too
            reason = (
                "no such folder, and no such model on the Hub that you may see (private ones need `hf auth login`)"
            )
        elif isinstance(error.__cause__, RevisionNotFoundError):
            reason = f"the Hub has no revision {revision!r} of it"
        elif isinstance(error.__cause__, LocalEntryNotFoundError):
            reason = "no such folder, the Hub cannot be reached, and no copy is in the cache"
        elif isinstance(error.__cause__, HFValidationError):
            reason = "no such folder, and no id for the Hub (owner/name)"
        else:
            raise
        raise ValueError(f"{name}: {reason}") from None


def check_model_folder(path: Path) -> None:
    """Refuse what is meant as a folder and holds no model; a Hub id is `name` or `owner/name`."""
    if path.is_dir() and not (path / "config.json").is_file():
        inside = path / "model"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise ValueError(f"{path}: no model in this folder (config.json){hint}")
    if not path.is_dir() and (path.is_absolute() or len(path.parts) > 2):
        raise ValueError(f"{path}: no such model folder")


def save_model_folder(model, processor, target: Path, card: str) -> None:
    """Write the folder aside and rename it into place."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / CARD).write_text(card, encoding="utf-8")

    write_whole(target, write, MODEL_FOLDER)
