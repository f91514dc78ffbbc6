"""Class tables: the label names of a benchmark, and its split into seen and unseen classes.

The published ones lie in `class_tables/`; a dataset of one's own brings a class table along:

    name: farm                # what reports call it
    classes:
    - {id: 0, name: nothing}
    - {id: 1, name: sheep}    # for masks of colours, every class with its color: [r, g, b]
    - {id: 2, name: cow}
    seen: [sheep]             # by name or by id
    unseen: [cow]
    ignored: [nothing]        # may be left out, as may what follows
    tuning: [sheep]           # seen classes that play unseen ones with split=tuning; some of them where left out
    unannotated: [cow]        # classes that no mask shows
    origin: {description: Photographs of a farm.}  # also source, license, terms, citation (see `Origin`)

Instead of `classes`, a table may have `names: {0: nothing, 1: sheep}`; `ignored_ids` is another word for `ignored`,
and `ignore_index` may say what is so in any case, 255.

Ids are those that masks store (see `label_space`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import yaml

from ..files import parse_yaml
from .label_space import UNLABELLED, LabelSpace
from .names import did_you_mean, has_hidden, is_background

CLASS_TABLE = "classes.yaml"
_PUBLISHED = Path(__file__).with_name("class_tables")
# What a class table calls groups of classes -> the field of a benchmark.
_GROUPS = {
    "seen": "seen_ids",
    "unseen": "unseen_ids",
    "ignored": "ignored_ids",
    "tuning": "seen_ids_for_tuning",
    "unannotated": "unannotated_ids",
}


class Origin(NamedTuple):
    """Where a dataset comes from.

    Attributes:
        description: A sentence on what it is.
        source: Where it is distributed, or what it was made from.
        license: The Hub's name of a licence; "other" where `terms` are none of these.
        terms: What the licence says, in words.
        citation: BibTeX of what to cite.
        images: How many images the official splits have.
    """

    description: str
    source: str = "images and masks of its owner"
    license: str = "unknown"
    terms: str = "not stated by its owner"
    citation: str = ""
    images: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Benchmark:
    """Label names by stored id ("" where there is no such class) and the split into seen and unseen classes.

    `colors` are what masks of colours show instead of stored ids; empty where a benchmark names none. `table` is the
    file that the benchmark was read from; empty for the published ones.
    """

    name: str
    label_names: tuple[str, ...]
    seen_ids: tuple[int, ...]
    unseen_ids: tuple[int, ...]
    ignored_ids: tuple[int, ...] = ()
    seen_ids_for_tuning: tuple[int, ...] = ()
    unannotated_ids: tuple[int, ...] = ()
    colors: Mapping[int, tuple[int, int, int]] = field(default_factory=dict, hash=False)
    origin: Origin | None = field(default=None, compare=False)
    table: str = field(default="", compare=False)

    def __post_init__(self):
        both = set(self.seen_ids) & set(self.unseen_ids)
        if both:
            raise ValueError(f"benchmark {self.name}: ids {sorted(both)} are both seen and unseen")
        for stored_id in self.class_ids:
            if not 0 <= stored_id < len(self.label_names):
                raise ValueError(f"benchmark {self.name}: id {stored_id} has no label name")

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Stored ids in model order."""
        return self.seen_ids + self.unseen_ids

    @property
    def class_names(self) -> tuple[str, ...]:
        """Label names in model order."""
        return tuple(self.label_names[i] for i in self.class_ids)

    @cached_property
    def label_space(self) -> LabelSpace:
        """What the masks of this benchmark mean."""
        return LabelSpace(
            self.class_ids,
            len(self.seen_ids),
            self.ignored_ids,
            names={i: name for i, name in enumerate(self.label_names) if name},
            colors=self.colors,
            benchmark=self.name,
            **({"table": self.table} if self.table else {}),
        )

    def config_fields(self) -> dict:
        """What a model's configuration says about its classes (see `CaGNetConfig`)."""
        num_seen = len(self.seen_ids)
        return {
            "id2label": dict(enumerate(self.class_names)),
            "seen_ids": list(range(num_seen)),
            "unseen_ids": list(range(num_seen, len(self.class_ids))),
            "dataset_ids": list(self.class_ids),
            "ignored_dataset_ids": list(self.ignored_ids),
        }

    @property
    def background_id(self) -> int | None:
        """The stored id of pixels that were looked at and show no class, unlike pixels without a label: that of the
        class called background, unless the class is unseen. None where the benchmark has no such class."""
        known = self.seen_ids + self.ignored_ids
        return next((i for i in known if is_background(self.label_names[i])), None)

    def with_background_seen(self) -> "Benchmark":
        """The benchmark in which background is a seen class, the last of them.

        Raises:
            ValueError: The benchmark has no class called background.
        """
        background = self.background_id
        if background is None:
            raise ValueError(f"benchmark {self.name} has no class called background, so it cannot be a seen one")
        return replace(
            self,
            seen_ids=(*(i for i in self.seen_ids if i != background), background),
            ignored_ids=tuple(i for i in self.ignored_ids if i != background),
        )

    def for_tuning(self) -> "Benchmark":
        """The split that rates, schedules and calibrations are chosen on: some *seen* classes play the unseen ones.

        The truly unseen classes become ignored ids, so that nothing about them can leak into a choice. Where the class
        table names no classes for tuning, as many seen ones are held out as there are unseen ones, but at most a third
        of the seen ones, spread evenly over the seen ones in their order.

        Raises:
            ValueError: There is one seen class alone.
        """
        held_out, number = self.seen_ids_for_tuning, len(self.seen_ids)
        if not held_out and number < 2:
            raise ValueError(f"benchmark {self.name} has one seen class, so that none can play an unseen one")
        if not held_out:
            many = max(1, min(len(self.unseen_ids), number // 3))
            held_out = tuple(self.seen_ids[(2 * i + 1) * number // (2 * many)] for i in range(many))
        return replace(
            self,
            seen_ids=tuple(i for i in self.seen_ids if i not in held_out),
            unseen_ids=held_out,
            ignored_ids=self.ignored_ids + self.unseen_ids,
            seen_ids_for_tuning=(),
        )


def benchmark_names() -> list[str]:
    """The published benchmarks and the synthetic one."""
    return sorted(path.stem for path in _PUBLISHED.glob("*.yaml"))


@cache
def _published_benchmark(name: str) -> Benchmark:
    return parse_class_table((_PUBLISHED / f"{name}.yaml").read_text(encoding="utf-8"), name, name)


def load_benchmark(name: str | Path) -> Benchmark:
    """A benchmark by its name (see `benchmark_names`), by a prepared dataset's folder, or by a class table's file.

    Raises:
        ValueError: There is no such benchmark, or its class table is wrong.
    """
    known, path = benchmark_names(), Path(name)
    if str(name) in known:
        return _published_benchmark(str(name))
    table = path / CLASS_TABLE if path.is_dir() else path
    if table.suffix in (".yaml", ".yml") and table.is_file():
        return read_class_table(table, table.absolute().parent.name)
    if path.is_dir():
        raise ValueError(f"{path}: no {CLASS_TABLE} in it; `cagnet-hf prepare_data` makes folders that have one")
    raise ValueError(
        f"unknown benchmark {str(name)!r}{did_you_mean(str(name), known)}; known: {', '.join(known)}, and folders "
        "of prepared datasets"
    )


def read_class_table(table, name: str, roles: Mapping[str, Sequence[str]] | None = None) -> Benchmark:
    """The benchmark of a class table's file, a `Path` or one in an archive (see `parse_class_table`)."""
    return replace(parse_class_table(table.read_text(encoding="utf-8"), str(table), name, roles), table=str(table))


def format_class_table(benchmark: Benchmark) -> str:
    """The class table of a benchmark, as YAML."""
    names, colors = benchmark.label_names, benchmark.colors
    table = {
        "name": benchmark.name,
        "classes": [
            {"id": i, "name": name} | ({"color": list(colors[i])} if i in colors else {})
            for i, name in enumerate(names)
            if name
        ],
        **{group: [names[i] for i in getattr(benchmark, field)] for group, field in _GROUPS.items()},
    }
    table = {key: value for key, value in table.items() if value}
    return yaml.safe_dump(table, sort_keys=False, default_flow_style=None, allow_unicode=True, width=119)


def parse_class_table(text: str, where: str, name: str, roles: Mapping[str, Sequence[str]] | None = None) -> Benchmark:
    """The benchmark of a class table (see above).

    Args:
        text: The table, YAML.
        where: What to call it in an error.
        name: What to call the benchmark if the table does not.
        roles: The names of the classes that are `unseen` and that are `ignored`, in place of what the table says; the
            others are seen. A table may then say nothing of roles.

    Raises:
        ValueError: The table is wrong; the message is one line.
    """
    try:
        return _parse_class_table(text, name, roles)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _parse_class_table(text: str, name: str, roles: Mapping[str, Sequence[str]] | None) -> Benchmark:
    table = parse_yaml(text)
    known = ["name", "classes", *_GROUPS, "origin"]
    if not isinstance(table, dict):
        raise ValueError(f"not a mapping of {', '.join(known)}")
    if "ignored_ids" in table and "ignored" not in table:
        table["ignored"] = table.pop("ignored_ids")
    if table.pop("ignore_index", UNLABELLED) != UNLABELLED:
        raise ValueError(f"ignore_index: pixels without a label are {UNLABELLED} in every mask")
    if isinstance(table.get("names"), dict) and "classes" not in table:
        table["classes"] = [{"id": stored_id, "name": label} for stored_id, label in table.pop("names").items()]
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
            raise ValueError(f"unknown key {key!r}{hint}")
    if roles is not None:
        table = _with_roles(table, roles)
    for key in ("classes", "seen", "unseen"):
        if not table.get(key):
            raise ValueError(f"no {key}; a class table has classes, seen and unseen")
    for key in table.keys() - {"name", "origin"}:
        if not isinstance(table[key], list):
            raise ValueError(f"{key} is a list, got {table[key]!r}")
    if has_hidden(str(table.get("name", ""))):
        raise ValueError(f"name {table['name']!r}: it holds a control character")
    names, colors = _parse_classes(table["classes"])
    groups = {field: _parse_group(group, table.get(group) or [], names) for group, field in _GROUPS.items()}
    told = [*groups["seen_ids"], *groups["unseen_ids"], *groups["ignored_ids"]]
    for stored_id, label in names.items():
        if told.count(stored_id) != 1:
            many = (
                "neither seen, unseen nor ignored" if stored_id not in told else "in several of seen, unseen, ignored"
            )
            raise ValueError(f"class {label!r} is {many}")
    for stored_id in groups["seen_ids_for_tuning"]:
        if stored_id not in groups["seen_ids"]:
            raise ValueError(f"tuning: {names[stored_id]!r} is no seen class")
    label_names = tuple(names.get(i, "") for i in range(max(names) + 1))
    origin = _parse_origin(table["origin"]) if "origin" in table else None
    return Benchmark(str(table.get("name", name)), label_names, **groups, colors=colors, origin=origin)


def _parse_origin(entry: object) -> Origin:
    try:
        return Origin(**entry)
    except TypeError:
        raise ValueError(
            f"origin {entry!r}: write a description, and any of {', '.join(Origin._fields[1:])}"
        ) from None


def _with_roles(table: dict, roles: Mapping[str, Sequence[str]]) -> dict:
    """The table with these roles, in which every other class is seen."""
    names, _ = _parse_classes(table.get("classes") or [])
    kept = {key: table[key] for key in ("name", "classes", "origin") if key in table}
    groups = {role: [*labels] for role, labels in roles.items()}
    told = {label for labels in groups.values() for label in labels}
    return kept | groups | {"seen": [label for label in names.values() if label not in told]}


def _parse_classes(entries: list) -> tuple[dict[int, str], dict[int, tuple[int, int, int]]]:
    names: dict[int, str] = {}
    colors: dict[int, tuple[int, int, int]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not {"id", "name"} <= entry.keys() <= {"id", "name", "color"}:
            raise ValueError(f"{entry!r} is no class: write {{id: 1, name: sheep}}, with color: [r, g, b] if need be")
        stored_id, label, color = entry["id"], entry["name"], entry.get("color")
        if type(stored_id) is not int or not 0 <= stored_id < UNLABELLED:
            raise ValueError(f"id {stored_id!r} of class {label!r}: an id is a number from 0 to {UNLABELLED - 1}")
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"name {label!r} of id {stored_id}: a name is a text (in quotes where YAML needs them)")
        if has_hidden(label):
            raise ValueError(f"name {label!r} of id {stored_id}: it holds a control character")
        if stored_id in names:
            raise ValueError(f"id {stored_id} is both {names[stored_id]!r} and {label!r}")
        if label in names.values():
            raise ValueError(f"two classes are called {label!r}")
        names[stored_id] = label
        if color is not None:
            if not isinstance(color, list) or len(color) != 3 or not all(value in range(256) for value in color):
                raise ValueError(f"color {color!r} of class {label!r}: write [r, g, b], each from 0 to 255")
            colors[stored_id] = tuple(color)
    if colors and len(colors) < len(names):
        without = next(label for stored_id, label in names.items() if stored_id not in colors)
        raise ValueError(f"class {without!r} has no color: give one to every class or to none")
    for stored_id, color in colors.items():
        if list(colors.values()).count(color) > 1:
            raise ValueError(f"color {list(color)} of class {names[stored_id]!r} is that of another, too")
    return names, colors


def _parse_group(group: str, members: Iterable, names: dict[int, str]) -> tuple[int, ...]:
    """Stored ids of classes that are named by name or id."""
    ids = {name: stored_id for stored_id, name in names.items()}
    found = []
    for member in members:
        stored_id = ids.get(member) if isinstance(member, str) else member
        if type(stored_id) is not int or stored_id not in names:
            raise ValueError(f"{group}: {member!r} is no class{did_you_mean(member, ids)}")
        found.append(stored_id)
    return tuple(found)
