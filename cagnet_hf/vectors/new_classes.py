"""Class embeddings of names that a trained model does not know yet, from the source of its own."""

import json
from collections.abc import Sequence

import numpy as np

from ..data.benchmarks import load_benchmark
from ..data.names import did_you_mean
from ..data.scenes import scenes_class_embeddings
from ..model.configuration_cagnet import plain_name
from ..model.new_classes_cagnet import check_new_names
from .class_embeddings import BUNDLED, check_vectors, embedding_files, join_parts, name_of, read_metadata, read_table
from .imagenet_names import warn_of_strangers
from .text_encoders import MAKES_ANY, PACKAGES, encode_names, installed_encoder, recorded_encoder

ATTRIBUTES = "attributes"  # of the synthetic benchmark
_ENCODING = ("encoder", "pooling", "prompt")
_ALIKE = 0.999  # cosine of one class's vectors: a source that was computed again differs in rounding only


def describe_source(source: str) -> dict:
    """What a configuration keeps of a recipe's `class_embeddings`: names and origins, no folders.

    Returns:
        `source`; of a table that one text encoder made `encoder`, `pooling` and `prompt`; `license` where it is known.
    """
    if source == ATTRIBUTES:
        return {"source": source}
    files = embedding_files(source)
    record = {"source": ",".join(map(name_of, files))}
    metadata = read_metadata(files[0]) if len(files) == 1 else {}
    origins = json.loads(metadata.get("sources", "[]"))
    if len(origins) == 1 and "encoder" in origins[0]:
        record |= {key: origins[0][key] for key in _ENCODING}
    return record | ({"license": metadata["license"]} if "license" in metadata else {})


def embed_new_classes(
    model, names: Sequence[str], source: str | None = None, *, encoder: str | None = None
) -> np.ndarray:
    """The embeddings of new classes, `(n, E)` float32, rows of length 1.

    What is found is compared with the embeddings of the model's own classes, so that vectors of another space are
    refused. Most must agree, not all: a class that was renamed has the vector of its old name.

    Args:
        model: The segmenter that is to learn them.
        names: Names of the new classes.
        source: `"bundled"`, `"attributes"` (the synthetic benchmark), a `.safetensors` or `.json` table, or several
            tables separated by commas; with at least one of the model's own classes in it. What the model's
            configuration names when None.
        encoder: The text encoder of the model's own embeddings, a folder or a Hub id: it makes the vectors of names
            that no table holds. The one that the source names when None, from an installed package if there is one.

    Raises:
        ValueError: A name is taken or has no vector, or the vectors are not from the source of the model's own.
        FileNotFoundError: There is no such table.
    """
    check_new_names(model.config, names)
    own = {plain_name(name): vector for name, vector in zip(model.config.id2label.values(), _own(model), strict=True)}
    record = model.config.class_embedding_source or {}
    if source is None:
        source = next((known for known in (BUNDLED, ATTRIBUTES) if _is_source(known, record, own)), None)
    elif source != record.get("source"):
        record = describe_source(source)
    table = _vectors(source) if source else {}
    wanted = [plain_name(name) for name in names]
    missing, made = [name for name in wanted if name not in table], {}
    if missing or not table.keys() & own.keys():
        encoder = encoder or recorded_encoder(record.get("encoder"))
        if encoder is not None:
            made_names = [*missing, *own]
            vectors = encode_names(made_names, encoder, pooling=_pooling(record), prompt=record.get("prompt", "{}"))
            made = dict(zip(made_names, vectors, strict=True))
            _compare(made, own, encoder)
            if _is_like_bundled(record):
                warn_of_strangers(missing, vectors[: len(missing)])
        elif missing or not source:
            raise ValueError(_no_vector(missing or wanted, source, record))
    if table:
        _compare(table if table.keys() & own.keys() else table | made, own, source)
    vectors = np.stack([(made | table)[name] for name in wanted])
    check_vectors(source or encoder, names, vectors)
    return vectors


def embed_names(names: Sequence[str], *, encoder: str | None = None) -> np.ndarray:
    """The vectors of names in the space of the bundled table, `(n, E)` float32, rows of length 1.

    Args:
        names: Any names.
        encoder: Where the bundled table's text encoder lies; from an installed package, if there is one, when None. It
            is needed for names that the table does not hold.

    Raises:
        ValueError: A name has no vector.
    """
    table, record = _vectors(BUNDLED), describe_source(BUNDLED)
    wanted = [plain_name(name) for name in names]
    missing = [name for name in wanted if name not in table]
    if missing:
        encoder = encoder or installed_encoder(record["encoder"])
        if encoder is None:
            hint = did_you_mean(missing[0], table, 0.8)
            raise ValueError(f"no bundled vector of {', '.join(map(repr, missing))}{hint}; {MAKES_ANY}")
        vectors = encode_names(missing, encoder, pooling=_pooling(record), prompt=record["prompt"])
        table = table | dict(zip(missing, vectors, strict=True))
    return np.stack([table[name] for name in wanted])


def _own(model) -> np.ndarray:
    return join_parts([model.class_embeddings.float().cpu().numpy()])


def _pooling(record: dict) -> str | None:
    return None if record.get("pooling", "own") == "own" else record["pooling"]


def _vectors(source: str) -> dict[str, np.ndarray]:
    """The vectors of all names that every part of a source holds."""
    if source == ATTRIBUTES:
        benchmark = load_benchmark("scenes")
        return dict(zip(benchmark.class_names, scenes_class_embeddings(benchmark), strict=True))
    tables = {path: read_table(path) for path in embedding_files(source)}
    for path, table in tables.items():
        check_vectors(path, list(table), np.stack(list(table.values())) if table else np.empty((0, 0)))
    tables = list(tables.values())
    names = [name for name in tables[0] if all(name in table for table in tables)]
    if not names:
        raise ValueError(f"{source}: no name is in every table")
    return dict(zip(names, join_parts([np.stack([table[name] for name in names]) for table in tables]), strict=True))


def _is_source(source: str, record: dict, own: dict[str, np.ndarray]) -> bool:
    """Whether a source that comes with the package is what the model's embeddings are from."""
    if record:
        return record["source"] == source or (source == BUNDLED and _is_like_bundled(record))
    return _differing(_vectors(source), own) is False


def _is_like_bundled(record: dict) -> bool:
    """Whether the encoder of the bundled table made the vectors, as it made those of the table."""
    bundled = describe_source(BUNDLED)
    return all(record.get(key) == bundled[key] for key in _ENCODING)


def _differing(table: dict[str, np.ndarray], own: dict[str, np.ndarray]) -> str | bool | None:
    """A class whose vectors differ, as do those of most; False where most agree, None where none is shared."""
    shared = table.keys() & own.keys()
    wrong = [name for name in sorted(shared) if len(table[name]) != len(own[name]) or table[name] @ own[name] < _ALIKE]
    if not shared:
        return None
    return wrong[0] if 2 * len(wrong) > len(shared) else False


def _compare(table: dict[str, np.ndarray], own: dict[str, np.ndarray], source: str) -> None:
    sizes = len(next(iter(table.values()))), len(next(iter(own.values())))
    if sizes[0] != sizes[1]:
        raise ValueError(f"{source}: vectors of {sizes[0]} numbers, but the model's class embeddings have {sizes[1]}")
    differing = _differing(table, own)
    if differing is None:
        raise ValueError(
            f"{source}: holds none of the model's own classes, so it cannot be told whether it is from the source of "
            f"their embeddings; make it with one of them, too, such as {next(iter(own))!r}"
        )
    if differing:
        raise ValueError(f"{source}: its vector of {differing!r} is not the model's; use the source of the model's")


def _no_vector(missing: Sequence[str], source: str | None, record: dict) -> str:
    where = f" in {source}" if source else ""
    named = f" (the model's are from {record['source']})" if record else ""
    way_out = (
        MAKES_ANY
        if record.get("encoder") in PACKAGES
        else "make a table with `cagnet-hf prepare_embeddings` from the source of the model's own, with one of its "
        "classes in it, and give it as class embeddings"
    )
    return f"no embedding of class {', '.join(map(repr, missing))}{where}{named}; {way_out}"
