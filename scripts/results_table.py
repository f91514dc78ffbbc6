"""Write tables, figures and model cards from the metrics files under model_cards.

python scripts/results_table.py
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev

REPOSITORY = Path(__file__).resolve().parents[1]
CARDS = REPOSITORY / "model_cards"
MEASURED = REPOSITORY / "cagnet_hf" / "apps" / "measured_results.json"
# Rows in the order of the published tables; any other row comes after them.
ROWS = "spnet spnet_c zs3net cagnet_pi cagnet_pa spnet_st zs3net_st cagnet_pi_st cagnet_pa_st gaussian".split()
SCORES = ("S-mIoU", "U-mIoU", "hIoU")
FIGURES = ("seen_unseen.png", "per_class.png")
OF_LATENTS = {  # what `rested_network.py` measures of a latent, and its head
    "nats_per_channel": "nats per channel",
    "variance_from_image": "variance decided by the image",
    "class_from_latent": "class read from the latent",
}
_RUN = re.compile(r"(?P<row>.+?)_(?P<kind>seed\d+|seed\d+_paper|tuning)")


def build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description="Write the tables of model_cards/README.md and the figures of each benchmark from "
        "model_cards/BENCHMARK/ROW_seedN.json, which are the metrics.json files of train.py, ROW_seedN_paper.json, "
        "which are those of evaluate.py --protocol paper, and ROW_tuning.json, of a run with split=tuning; of the "
        "ablations from model_cards/BENCHMARK/ablations.json, the comparison.json of compare.py --variants; and those "
        "of model_cards/frozen.md and README.md from model_cards/frozen/BENCHMARK.json, which are a comparison.json, "
        "too, and from what the scripts made_features, rested_network and image_prior wrote there. Where "
        "ROW_seedN.yaml holds the recipe of the run, its card ROW_seedN.md is written, too. The package gets "
        "the numbers that `cagnet-hf recipes` lists."
    )


def title_of(row: str) -> str:
    from cagnet_hf import methods

    return "supervised (upper bound)" if row == "supervised" else methods.title_of(row)


def benchmarks(cards: Path) -> list[Path]:
    return sorted({path.parent for path in cards.glob("*/*_seed*.json")})


def rows_of(folder: Path) -> dict[str, dict[str, list[dict]]]:
    """row -> "full", "paper" or "tuning" -> metrics of its runs; rows in the order of the published tables."""
    found: dict[str, dict[str, list[dict]]] = {}
    for path in sorted(folder.glob("*.json")):
        if match := _RUN.fullmatch(path.stem):
            kind = {"g": "tuning", "r": "paper"}.get(match["kind"][-1], "full")
            runs = found.setdefault(match["row"], {"full": [], "paper": [], "tuning": []})
            runs[kind].append(json.loads(path.read_text("utf-8")))
    order = [*ROWS, *found]
    return {row: found[row] for row in sorted(found, key=order.index) if found[row]["full"]}


def results_of(folder: Path) -> dict[str, dict[str, list[dict]]]:
    """The measured scores by the title of a row instead of its name."""
    return {title_of(row): results for row, results in rows_of(folder).items()}


def measured(cards: Path) -> dict[str, dict[str, float]]:
    """recipe -> mean scores and minutes of its runs, which `cagnet-hf recipes` lists."""
    rows = ((folder, row, found["full"]) for folder in benchmarks(cards) for row, found in rows_of(folder).items())
    results = {}
    for folder, row, runs in rows:
        columns = {score: [run[score] for run in runs] for score in SCORES}
        columns |= {"minutes": [run["seconds"] / 60 for run in from_scratch(runs)]}
        means = {key: fmean(values) for key, values in columns.items() if values}
        results[f"{folder.name}/{row}"] = {key: round(mean, 3) for key, mean in means.items()}
    for row, runs in comparisons(cards).get("pascal_voc", {"rows": {}})["rows"].items():
        columns = (*SCORES, "seconds")
        means = [fmean(run[column] for run in runs.values()) for column in columns]
        found = dict(zip((*SCORES, "minutes"), [*means[:-1], means[-1] / 60], strict=True))
        results[f"pascal_voc_frozen/{row}"] = {key: round(mean, 3) for key, mean in found.items()}
    return results


def from_scratch(runs: Iterable[dict]) -> list[dict]:
    """The runs that took no network from another run, which would say nothing about the minutes that the row takes."""
    return [run for run in runs if run.get("stages") and all(stage["iterations"] for stage in run["stages"])]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def spread(values: Iterable[float | None], digits: int = 3) -> str:
    """The mean and, over several runs, the lowest and the highest value."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def scores_of(runs: Iterable[dict], columns: Iterable[str] = SCORES) -> list[str]:
    return [spread(run[column] for run in runs) for column in columns]


def differences(values: list[float]) -> str:
    """The mean and, of several, each difference, with its sign."""
    rounded = (round(value, 3) + 0.0 for value in (fmean(values), *values))  # no −0.000
    mean, *each = (f"{value:+.3f}".replace("-", "−") for value in rounded)
    return mean if len(each) == 1 else f"{mean} ({', '.join(each)})"


def comparisons(cards: Path) -> dict[str, dict]:
    """The comparisons on cached features by their benchmark; Pascal-VOC comes first."""
    paths = sorted((cards / "frozen").glob("*.json"), key=lambda path: (path.stem != "pascal_voc", path.stem))
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in paths}
    found = {name: c for name, c in found.items() if "rows" in c and "variants" not in c}
    for compared in found.values():
        rows = compared["rows"]
        compared["rows"] = {row: rows[row] for row in sorted(rows, key=[*ROWS, *rows].index)}
    return found


def comparison_block(name: str, compared: dict) -> str:
    """The tables of a comparison: all scores with their intervals, and the paired differences."""
    from cagnet_hf.apps.comparison_tables import comparison_tables

    return comparison_tables(name, compared["rows"], {}, compared.get("other_scores"))


def results_table(cards: Path) -> str:
    """The table of README.md: a line per system, three columns per benchmark."""
    found = {name: _runs_by_row(compared) for name, compared in comparisons(cards).items()}
    found["scenes"] = {row: results["full"] for row, results in rows_of(cards / "scenes").items()}
    head = ["system"]
    for name, rows in found.items():
        seeds = max(map(len, rows.values()))
        head += [f"`{name}` ({seeds} seed{'s' * (seeds > 1)}): {SCORES[0]}", *SCORES[1:]]
    order = [*ROWS, *(row for rows in found.values() for row in rows)]
    names = sorted({row for rows in found.values() for row in rows}, key=order.index)
    return table(head, ([title_of(row), *_on_every_benchmark(found, row)] for row in names))


def _runs_by_row(compared: dict) -> dict[str, list[dict]]:
    return {row: list(runs.values()) for row, runs in compared["rows"].items()}


def _on_every_benchmark(found: dict[str, dict[str, list[dict]]], row: str) -> list[str]:
    from cagnet_hf.apps.comparison_tables import with_interval

    runs = [rows.get(row, []) for rows in found.values()]
    return [with_interval([run[s] for run in of_row], 3) if of_row else "–" for of_row in runs for s in SCORES]


def made_features_table(path: Path) -> str:
    """What `made_features.py` found: what tells made features from real ones, beside the scores of the run."""
    head = ["run", "probe: seen", "unseen", "variance of made over real: seen", "unseen", "distance of means: seen"]
    rows = []
    for name, found in json.loads(path.read_text("utf-8"))["runs"].items():
        groups = [found["seen"], found["unseen"]]
        cells = [f"{group['probe_accuracy']:.2f}" for group in groups]
        cells += [f"{group['variance_ratio']:.3f}" for group in groups]
        cells += [f"{group['distance_of_means']:.2f}" for group in groups]
        rows.append([f"`{name}`", *cells, *(f"{found[score]:.3f}" for score in ("U-mIoU", "hIoU"))])
    return table([*head, "unseen", "U-mIoU", "hIoU"], rows)


def rested_table(path: Path) -> str:
    """What `rested_network.py` found: scores of every variant, and their differences from the first one."""
    from cagnet_hf.apps.comparison_tables import differences_from, with_interval

    (first, reference), *others = json.loads(path.read_text("utf-8"))["variants"].items()
    differing, said = differences_from(reference, dict(others))
    differing_at_best, _ = differences_from(reference, dict(others), "hIoU_at_best_offset")
    of_latents, rows = [column for column in OF_LATENTS if column in next(iter(reference.values()))], []
    for (name, seeds), *less in zip(
        [(first, reference), *others], ["–", *differing], ["–", *differing_at_best], strict=True
    ):
        runs = list(seeds.values())
        cells = [name, str(len(runs))]
        cells += [with_interval([run[score] for run in runs], 3) for score in (*SCORES, "hIoU_at_best_offset")]
        cells += [f"{stdev(run['hIoU'] for run in runs):.3f}" if len(runs) > 1 else "–", *less]
        cells += [_mean(run[column] for run in runs) for column in of_latents]
        if of_latents:
            groups = ("seen", "unseen")
            cells += [_mean(run.get(group, {}).get("probe_accuracy") for run in runs) for group in groups]
        rows.append(cells)
    head = ["variant", "seeds", *SCORES, "hIoU at the best offset", "deviation of hIoU"]
    head += [f"hIoU − that of {first}, in points", "the same at the best offset"]
    head += [OF_LATENTS[column] for column in of_latents]
    head += ["probe of made features: seen", "unseen"] if of_latents else []
    return table(head, rows) + (f"\n{said}\n" if said else "")


def image_prior_table(path: Path, rows: dict[str, dict[str, dict]]) -> str:
    """What `image_prior.py` found, beside the same rows without the prior."""
    from cagnet_hf.apps.comparison_tables import differences_from, with_interval

    lines = []
    for name, seeds in json.loads(path.read_text("utf-8"))["scores"].items():
        row, _, prior = name.partition(", ")
        (difference,), _ = differences_from(rows[row], {name: seeds})
        scores = [with_interval([run[score] for run in seeds.values()], 3) for score in SCORES]
        lines.append([f"{title_of(row)}, {prior}", str(len(seeds)), *scores, difference])
    return table(["system", "seeds", *SCORES, "hIoU − that without the prior, in points"], lines)


def _mean(values: Iterable[float | None]) -> str:
    values = [value for value in values if value is not None]
    return f"{fmean(values):.2g}" if values else "–"


def study_table(folder: Path) -> str:
    """A benchmark's table: every row by both protocols, what it took, and its score on held-out seen classes."""
    columns = ("S-mIoU", "U-mIoU", "hIoU", "PA", "MA")
    head = ["system", "seeds", *columns, "paper: S-mIoU", "U-mIoU", "hIoU", "held out: hIoU", "minutes", "GiB"]
    rows = []
    for title, results in results_of(folder).items():
        runs = results["full"]
        cells = [title, str(len(runs)), *scores_of(runs, columns), *scores_of(results["paper"])]
        peaks = [max((stage.get("peak_memory_mib", 0) for stage in run.get("stages", [])), default=0) for run in runs]
        cells.append(spread(run["hIoU"] for run in results["tuning"]))
        cells.append(spread((run["seconds"] / 60 for run in from_scratch(runs)), digits=1))
        cells.append(spread((peak / 1024 for peak in peaks if peak), digits=1))
        rows.append(cells)
    return table(head, rows)


def ablation_table(comparison: Path) -> str:
    """The table of a `comparison.json` that `compare.py --variants` wrote: what each variant changes and does.

    Seeds differ more than variants do, so the last column pairs them: hIoU less that of the first variant, mean and
    seed by seed.
    """
    compared = json.loads(comparison.read_text("utf-8"))
    first, unchanged = next(iter(compared["rows"].items()))
    rows = []
    for name, runs in compared["rows"].items():
        row, *keys = compared["variants"][name]
        cells = [name, title_of(row), ", ".join(f"`{key}`" for key in keys) or "–", ", ".join(runs)]
        gains = differences([run["hIoU"] - unchanged[seed]["hIoU"] for seed, run in runs.items()])
        rows.append([*cells, *scores_of(runs.values()), gains if name != first else "–"])
    return table(["variant", "row", "changed", "seeds", *SCORES, f"hIoU − that of `{first}`"], rows)


def self_training_table(cards: Path) -> str:
    """What self-training does to hIoU: a line per benchmark and row that has self-training."""
    rows = []
    for folder in benchmarks(cards):
        for title, results in results_of(folder).items():
            stages = [{stage["name"]: stage for stage in run.get("stages", [])} for run in results["full"]]
            cells = [_gains(stages, stage) for stage in ("self_train", "finetune_after_self_train")]
            if cells[0] != "–":
                rows.append([f"`{folder.name}`", title, *cells])
    return table(["benchmark", "system", "by self-training alone", "with what follows"], rows)


def _gains(stages: list[dict[str, dict]], name: str) -> str:
    """hIoU of the runs after a stage less that before self-training; "–" for runs that have no such stage."""
    after = [run for run in stages if name in run]
    gains = [run[name]["metrics"]["hIoU"] - run["finetune"]["metrics"]["hIoU"] for run in after]
    return differences(gains) if gains else "–"


def draw_figures(folder: Path) -> None:
    """The `FIGURES` of a benchmark."""
    from cagnet_hf.apps.charts import class_comparison, seen_unseen_scatter

    runs = {title: results["full"] for title, results in results_of(folder).items()}
    points = {title: [(run["S-mIoU"], run["U-mIoU"]) for run in found] for title, found in runs.items()}
    scatter, bars = (folder / name for name in FIGURES)
    seen_unseen_scatter(points, scatter, title=folder.name)
    classes = next(iter(runs.values()))[0]["per_class"]
    means = {title: {name: _mean_iou(found, name) for name in classes} for title, found in runs.items()}
    unseen = [name for name, entry in classes.items() if not entry["seen"]]
    class_comparison(means, unseen, bars, title=folder.name)


def draw_comparison(name: str, rows: dict[str, dict[str, dict]]) -> None:
    """The figure of a comparison on cached features: a marker for every run."""
    from cagnet_hf.apps.charts import seen_unseen_scatter

    points = {title_of(row): [(run["S-mIoU"], run["U-mIoU"]) for run in seeds.values()] for row, seeds in rows.items()}
    seen_unseen_scatter(points, CARDS / "frozen" / f"{name}.png", title=f"{name}, resting backbone")


def _mean_iou(runs: list[dict], name: str) -> float | None:
    from cagnet_hf.evaluation import class_iou

    values = [iou for run in runs if (iou := class_iou(run["per_class"][name])) is not None]
    return fmean(values) if values else None


def with_block(text: str, name: str, table: str) -> str:
    """The text with the table between its marks `<!-- NAME -->` and `<!-- /NAME -->`."""
    block = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    text, count = block.subn(lambda _: table, text)
    if not count:
        raise ValueError(f"no place for a table: write <!-- {name} --> and <!-- /{name} -->")
    return text


def cards_of_runs(folder: Path) -> dict[Path, str]:
    """The card of every run whose recipe lies beside its metrics, by the card's file."""
    import yaml

    from cagnet_hf.hub.cards.trained import model_card

    cards = {}
    for path in sorted(folder.glob("*/*_seed*.yaml")):
        recipe = yaml.safe_load(path.read_text("utf-8"))
        metrics = json.loads(path.with_suffix(".json").read_text("utf-8"))
        cards[path.with_suffix(".md")] = model_card(recipe, metrics)
    return cards


def check_outputs(cards: Iterable[Path], folders: Iterable[Path]) -> None:
    """Refuse to replace a text that is no card, and a picture that matplotlib did not draw."""
    from cagnet_hf.files import check_output

    for path in cards:
        check_output(path, "- zero-shot-segmentation")
    for folder in folders:
        for name in FIGURES:
            check_output(folder / name, "Matplotlib")


def main(argv: list[str] | None = None) -> int:
    build_parser().parse_args(argv)
    tables = {"README.md": {"results": results_table(CARDS)}}
    study = {folder.name: study_table(folder) for folder in benchmarks(CARDS)}
    study |= {f"{path.parent.name} ablations": ablation_table(path) for path in CARDS.glob("*/ablations.json")}
    tables["model_cards/README.md"] = study | {"self-training": self_training_table(CARDS)}
    frozen = {name: comparison_block(name, compared) for name, compared in comparisons(CARDS).items()}
    frozen["made features"] = made_features_table(CARDS / "frozen" / "made_features.json")
    frozen |= {name: rested_table(CARDS / "frozen" / f"{name}.json") for name in ("contexts", "schedules")}
    rows = comparisons(CARDS)["pascal_voc"]["rows"]
    frozen["image prior"] = image_prior_table(CARDS / "frozen" / "image_prior.json", rows)
    tables["model_cards/frozen.md"] = frozen
    MEASURED.write_text(json.dumps(measured(CARDS)).replace("}, ", "},\n ") + "\n", encoding="utf-8")
    texts = cards_of_runs(CARDS)
    check_outputs(texts, benchmarks(CARDS))
    for name, blocks in tables.items():
        text = (REPOSITORY / name).read_text("utf-8")
        for mark, block in blocks.items():
            text = with_block(text, mark, block)
        texts[REPOSITORY / name] = text
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    for folder in benchmarks(CARDS):
        draw_figures(folder)
    for name, compared in comparisons(CARDS).items():
        if max(map(len, compared["rows"].values())) > 1:  # what a figure shows beside the table is how seeds spread
            draw_comparison(name, compared["rows"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
