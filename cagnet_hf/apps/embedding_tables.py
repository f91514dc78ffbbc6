"""A table of class embeddings, made from tables of word vectors, text encoders and image classifiers."""

import json
from collections.abc import Collection, Sequence
from importlib.metadata import version
from logging import getLogger
from pathlib import Path

import numpy as np
import torch

from ..data.benchmarks import load_benchmark
from ..files import sha256
from ..hub.models import load_model
from ..model.configuration_cagnet import plain_name
from ..model.prototypes_cagnet import PrototypeMeans
from ..vectors.class_embeddings import check_vectors, join_parts, save_embedding_table
from ..vectors.imagenet_names import warn_of_strangers
from ..vectors.new_classes import embed_names
from ..vectors.text_encoders import encode_names, encoder_files, encoder_name
from ..vectors.word_names import Synonyms, look_up_names
from ..vectors.word_streams import split_archive

logger = getLogger(__name__)

TABLE_MARK = '"made_by":"cagnet-hf '  # as the header of a table has it


def wanted_names(
    benchmarks: Sequence[str] = (), names: Sequence[str] = (), names_file: Path | None = None
) -> tuple[list[str], set[str]]:
    """The class names of benchmarks, or those given or listed in a file, and those of them that no class needs.

    The names are as they are first written, in order of their plain spelling. Only the ignored labels of a benchmark
    are not needed.
    """
    needed: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for benchmark in map(load_benchmark, benchmarks):
        needed = {plain_name(name): name for name in benchmark.class_names} | needed
        ignored |= {plain_name(benchmark.label_names[i]): benchmark.label_names[i] for i in benchmark.ignored_ids}
    if names_file is not None:
        try:
            names = names_file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{names_file}: not a text file of UTF-8 ({error})") from error
    for name in names:
        if "," in name:
            raise ValueError(f"name {name!r} has a comma; write names apart: --names zebra 'polar bear'")
        if plain_name(name):
            needed.setdefault(plain_name(name), name.strip())
    if not needed:
        raise ValueError(f"{names_file or '--names'}: holds no names")
    found = ignored | needed
    return [found[name] for name in sorted(found)], {ignored[name] for name in ignored.keys() - needed.keys()}


def looked_up(
    source: str, names: Sequence[str], optional: Collection[str] = (), synonyms: Synonyms | None = None
) -> tuple[dict[str, np.ndarray], dict]:
    """The vectors by name that a table of word vectors has, and what the output says of the table.

    Args:
        source: The table.
        names: The class names.
        optional: Those of the names that the table may lack.
        synonyms: What to look up instead; see `load_synonyms`.
    """
    found = look_up_names(names, source, synonyms=synonyms, optional=optional)
    check_vectors(source, list(found.vectors), np.stack(list(found.vectors.values())))
    means = sum(len(words) > 1 for words in found.words.values())
    entries = len(found.words) - means
    logger.info("%s: %d names are entries of the table, %d means of several", source, entries, means)
    path, member = split_archive(source)
    file = path.name if member is None else f"{path.name}:{member}"
    return found.vectors, {"file": file, "sha256": sha256(path), "words": found.words}


def encoded(
    source: str, names: Sequence[str], *, pooling: str | None = None, prompt: str = "{}", called: str | None = None
) -> tuple[dict[str, np.ndarray], dict]:
    """The vectors by name that a text encoder makes, and what the output says of the encoder.

    Args:
        source: A folder or a Hub id.
        names: The class names.
        pooling: See `encode_names`.
        prompt: See `encode_names`.
        called: What the output calls the encoder; see `encoder_name` when None.
    """
    vectors = encode_names(names, source, pooling=pooling, prompt=prompt)
    check_vectors(source, names, vectors)
    record = {
        "encoder": called or encoder_name(source),
        "pooling": pooling or "own",
        "prompt": prompt,
        "sha256": {path.name: sha256(path) for path in encoder_files(source)},
    }
    return dict(zip(names, vectors, strict=True)), record


def seen_by_classifier(source: str, names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict]:
    """Visual class vectors: what an image classifier's features of a class look like in unlabelled images.

    The vector of a name is the mean feature of the classes that the name means to the classifier, less the mean of
    all features.

    Args:
        source: A model of the method `prototypes`, which has passed over the images.
        names: The class names; see `embed_names` for where their meaning is from.

    Returns:
        The vectors by name, and what the output says of them.

    Raises:
        ValueError: The model is of another method, or a name has no meaning.
    """
    model, _processor = load_model(source)
    means = getattr(model.generator, "mean", None)
    if not isinstance(means, PrototypeMeans):
        raise ValueError(
            f"{source}: no model of prototypes; `cagnet-hf train --recipe pascal_voc_edge/prototypes` makes one"
        )
    texts = torch.from_numpy(embed_names(names))
    own_size = means.names.vectors.shape[1]
    if own_size != texts.shape[1]:
        raise ValueError(f"{source}: its names have vectors of {own_size} numbers, the bundled ones {texts.shape[1]}")
    warn_of_strangers(names, texts.numpy())
    vectors = (means.prototypes(texts).mean(0) - means.mass @ means.means / means.mass.sum()).numpy()
    check_vectors(source, names, vectors)
    record = {"prototypes": Path(source).resolve().name, "backbone": model.config.backbone}
    return dict(zip(names, vectors, strict=True)), record


def write_joined(
    output: Path, names: Sequence[str], parts: Sequence[dict[str, np.ndarray]], records: list[dict], **facts: str
) -> None:
    """Write a table of vectors that are joined from several sources.

    Args:
        output: The `.safetensors` file.
        names: The class names; those that a part lacks are left out.
        parts: Vectors by name from each source, in the order in which they are joined.
        records: What the table says of each source.
        facts: What else the table says; `normalize="parts"` gives the vectors of each part length 1, too.
    """
    left_out = [name for name in names if not all(name in part for part in parts)]
    if left_out:
        logger.info("Left out %s: an ignored label without a vector", ", ".join(map(repr, left_out)))
    kept = [name for name in names if name not in left_out]
    matrices = [np.stack([part[name] for name in kept]) for part in parts]
    joined = join_parts(matrices, normalize_parts=facts["normalize"] == "parts")
    made_by = f"cagnet-hf {version('cagnet-hf')}"
    metadata = {"sources": json.dumps(records), "made_by": made_by} | facts
    save_embedding_table(output, [plain_name(name) for name in kept], joined, metadata)
    logger.info("Wrote %s: %d names, %d numbers each", output, len(kept), joined.shape[1])
