"""What a comparison leaves: its numbers, and tables that say how sure they are."""

import json
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from ..data.names import markdown
from ..evaluation.uncertainty import LEVEL, interval, sign_flip_test
from ..files import made_by, write_text_whole
from ..methods import title_of

COLUMNS = ("hIoU", "mIoU", "PA", "MA", "S-mIoU", "U-mIoU", "U-PA", "U-MA")
SCORES = ("S-mIoU", "U-mIoU", "hIoU")
WITH_BACKGROUND = (*SCORES, "background_IoU", "background_unlabelled")  # where background counts as a class
COMPARED = "hIoU"  # the score that rows are compared by

Rows = dict[str, dict[str, dict]]  # row -> seed -> scores


def write_comparison(
    benchmark: str,
    runs: dict[int, dict[str, dict]],
    folder: Path,
    published: dict[str, dict[str, float]],
    variants: dict[str, list[str]] | None = None,
    others: dict[int, dict[str, dict]] | None = None,
) -> str:
    """Write `comparison.json` and `comparison.md`; returns the tables.

    Args:
        runs: seed -> row -> metrics.
        published: From `published_rows`.
        variants: Where changed rows are compared: name -> row and the keys that were changed.
        others: seed -> row -> what `other_scores` gave, where that was asked for.
    """
    rows = {row: {str(seed): _summary(run[row]) for seed, run in runs.items()} for row in next(iter(runs.values()))}
    compared = (
        {"made_by": made_by("compare"), "benchmark": benchmark}
        | ({"variants": variants} if variants else {})
        | {"rows": rows}
        | ({"other_scores": _other_summaries(others)} if others else {})
    )
    write_text_whole(folder / "comparison.json", _lines(compared, levels=3) + "\n")
    tables = comparison_tables(benchmark, rows, published, compared.get("other_scores"))
    write_text_whole(folder / "comparison.md", tables)
    return tables


def comparison_tables(
    benchmark: str, rows: Rows, published: dict[str, dict[str, float]], others: Rows | None = None
) -> str:
    """The table of the scores; that of the differences, where there are two seeds or more; and that of other scores,
    where they were measured."""
    tables = [comparison_table(benchmark, rows, published), differences_table(rows)]
    return "\n".join(filter(None, [*tables, others_table(benchmark, others) if others else ""]))


def _lines(value: Any, levels: int, line: str = "\n") -> str:
    """JSON in which what is deeper than `levels` stands on one line: a line for each seed."""
    if not (levels and isinstance(value, dict) and value):
        return json.dumps(value)
    inner = f"{line} "
    entries = (f"{inner}{json.dumps(key)}: {_lines(entry, levels - 1, inner)}" for key, entry in value.items())
    return f"{{{','.join(entries)}{line}}}"


def _summary(metrics: dict) -> dict:
    kept = {column: metrics[column] for column in COLUMNS}
    return kept | {key: metrics[key] for key in ("protocol", "num_images", "seconds")}


def comparison_table(benchmark: str, rows: Rows, published: dict[str, dict[str, float]]) -> str:
    """Markdown: the published columns in percent, over several seeds the mean ± half its interval of level 95 %, and
    the published numbers below.

    These were measured by protocol `paper` on the full benchmark with a ResNet-101, whatever the rows above them are.
    """
    run = next(iter(next(iter(rows.values())).values()))
    title = f"{markdown(benchmark)}, protocol {run['protocol']}, {run['num_images']} images"
    lines = [f"| {title} | " + " | ".join(COLUMNS) + " | seconds |", "|---" * (2 + len(COLUMNS)) + "|"]
    for row, runs in rows.items():
        cells = [_cell([run[column] for run in runs.values()]) for column in COLUMNS]
        seconds = [run["seconds"] for run in runs.values()]
        cells.append(f"{fmean(seconds):.0f}")
        lines.append(f"| {title_of(row)} | " + " | ".join(cells) + " |")
        if row in published:
            cells = [f"*{100 * published[row][column]:.1f}*" for column in COLUMNS]
            lines.append("| *published, full benchmark* | " + " | ".join(cells) + " | |")
    return "\n".join(lines) + "\n"


def _other_summaries(others: dict[int, dict[str, dict]]) -> Rows:
    """row -> seed -> scores by protocol `paper`, and with background by each probability."""
    return {
        row: {
            str(seed): {"paper": _of(run[row]["paper"], COLUMNS)}
            | {
                f"with_background {min_score}": _of(scores, WITH_BACKGROUND)
                for min_score, scores in run[row].get("with_background", {}).items()
            }
            for seed, run in others.items()
        }
        for row in next(iter(others.values()))
    }


def _of(scores: dict, columns: Iterable[str]) -> dict:
    return {column: None if scores[column] is None else round(scores[column], 5) for column in columns}


def others_table(benchmark: str, others: Rows) -> str:
    """Markdown: scores by protocol `paper`, and with background as a class, whose columns name the probability below
    which a pixel was left without a class."""
    kinds = next(iter(next(iter(others.values())).values()))
    columns = [(kind, column) for kind in kinds for column in (SCORES if kind == "paper" else WITH_BACKGROUND)]
    heads = [f"{kind}: {column}".replace("with_background", "with background, min_score") for kind, column in columns]
    lines = [f"| {markdown(benchmark)} | {' | '.join(heads)} |", "|---" * (1 + len(columns)) + "|"]
    for row, runs in others.items():
        cells = [_cell([run[kind][column] for run in runs.values()]) for kind, column in columns]
        lines.append(f"| {title_of(row)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float | None]) -> str:
    defined = [100 * value for value in values if value is not None]
    return with_interval(defined) if defined else "–"


def with_interval(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """The mean and, of several values, half its interval."""
    mean, half_width = interval(values)
    shown = f"{mean:{sign}.{digits}f}".replace("-", "−")
    return shown if len(values) == 1 else f"{shown} ± {half_width:.{digits}f}"


def differences_table(rows: Rows) -> str:
    """Markdown: hIoU of each row less that of the rows above, on the same seeds; empty where there are no two seeds.

    Differences are in points, with the interval of their mean and the p value of `sign_flip_test`. What this test
    resolves is bold.
    """
    pairs = {(row, other): _differences(rows[row], rows[other]) for other, row in combinations(rows, 2)}
    tested = {pair: (values, sign_flip_test(values)) for pair, values in pairs.items() if len(values) > 1}
    if not tested:
        return ""
    *columns, _ = rows
    lines = [
        f"| {COMPARED}: row less column | {' | '.join(title_of(column) for column in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for row in list(rows)[1:]:
        cells = [_difference(*tested[row, column]) if (row, column) in tested else "" for column in columns]
        lines.append(f"| {title_of(row)} | {' | '.join(cells)} |")
    most = max(len(values) for values, _ in tested.values())
    return "\n".join(lines) + f"\n\n{_what_is_resolved([p for _, p in tested.values()], most)}\n"


def _differences(row: dict[str, dict], other: dict[str, dict], column: str = COMPARED) -> list[float]:
    common = [(row[seed][column], other[seed][column]) for seed in row if seed in other]
    return [100 * (one - two) for one, two in common if one is not None and two is not None]


def differences_from(first: dict[str, dict], rows: Rows, column: str = COMPARED) -> tuple[list[str], str]:
    """A score of every row less that of a first one, in points, over their common seeds: mean, interval and p value;
    and the sentence on what is resolved."""
    values = [_differences(row, first, column) for row in rows.values()]
    tested = [(of_row, sign_flip_test(of_row)) if of_row else None for of_row in values]
    ps = [pair[1] for pair in tested if pair]
    said = _what_is_resolved(ps, max(map(len, values))) if ps else ""
    return [_difference(*pair) if pair else "–" for pair in tested], said


def _difference(values: Sequence[float], p: float) -> str:
    shown = f"{with_interval(values, sign='+')}, p {p:.3f}"
    return f"**{shown}**" if p < 1 - LEVEL else shown


def _what_is_resolved(tested: Sequence[float], most: int) -> str:
    smallest, share = 2 / 2**most, f"{1 - LEVEL:.2f}"
    if smallest >= 1 - LEVEL:
        return (
            f"Nothing is resolved: {most} seeds cannot give a p value below {smallest:.3f} by flips of the signs of "
            "paired differences."
        )
    resolved = sum(p < 1 - LEVEL for p in tested)
    return (
        f"Bold: p below {share} by flips of the signs of paired differences. {resolved} of {len(tested)} differences "
        f"are resolved so; of {len(tested)} that are none, at most {len(tested) * (1 - LEVEL):.1f} would seem so by "
        "chance."
    )


def points(runs: Iterable[dict[str, dict]]) -> dict[str, list[tuple[float, float]]]:
    """title -> (S-mIoU, U-mIoU) of every seed, for the figure."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        for row, metrics in run.items():
            found.setdefault(title_of(row), []).append((metrics["S-mIoU"], metrics["U-mIoU"]))
    return found
