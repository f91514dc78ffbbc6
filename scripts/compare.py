"""Train and score several systems on one benchmark, and put them into one table.

accelerate launch scripts/compare.py --benchmark scenes --rows spnet zs3net cagnet_pi --output_dir outputs/comparison
accelerate launch scripts/compare.py --benchmark scenes --variants scripts/ablations/scenes.yaml --output_dir outputs/A
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train and score several systems on one benchmark. Rows share the first stages that they have in "
        "common, finished rows are kept, and the same command resumes after an interruption.",
        epilog="Writes OUTPUT_DIR/seed_N/ROW (as train.py does), comparison.json, comparison.md and comparison.png.",
    )
    parser.add_argument("--benchmark", required=True, help="a folder of recipes, such as scenes or pascal_voc_edge")
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="methods such as cagnet_pi_st (default: all there are)"
    )
    parser.add_argument(
        "--variants",
        type=Path,
        metavar="YAML",
        help="a file of changed rows to compare instead: NAME: [ROW, key=value, ...]",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run of every row per seed (default: 0)")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="key=value",
        help="recipe keys to change in every row (a stage's: in the rows that have it)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from accelerate import PartialState

    from cagnet_hf.apps.charts import seen_unseen_scatter
    from cagnet_hf.apps.comparison import points, published_rows, run_rows, write_comparison
    from cagnet_hf.cli import resuming_command, run, use_every_core
    from cagnet_hf.data.benchmarks import did_you_mean
    from cagnet_hf.training.interruption import Stopped
    from cagnet_hf.training.recipe_files import load_recipe, recipe_names

    def compare():
        names = [name.split("/") for name in recipe_names()]
        known = [row for benchmark, row in names if benchmark == args.benchmark]
        if not known:
            benchmarks = sorted({benchmark for benchmark, _ in names})
            hint = did_you_mean(args.benchmark, benchmarks)
            raise ValueError(f"no benchmark {args.benchmark!r}{hint}; known: {', '.join(benchmarks)}")
        if args.rows and args.variants:
            raise ValueError("--rows and --variants exclude each other: leave out one")
        given = read_variants(args.variants) if args.variants else None
        variants = given or {row: [row] for row in args.rows or known}
        for row, *_ in variants.values():
            if row not in known:
                hint = did_you_mean(row, known)
                raise ValueError(f"{args.benchmark} has no row {row!r}{hint}; rows: {', '.join(known)}")
        shared = keys_of_rows(args.benchmark, {row for row, *_ in variants.values()}, args.set)
        # All recipes first: a typing error must not be found after hours.
        recipes = {
            seed: {
                name: load_recipe(f"{args.benchmark}/{row}", [*shared[row], *keys, f"seed={seed}"])
                for name, (row, *keys) in variants.items()
            }
            for seed in args.seeds
        }
        runs = {seed: run_rows(recipes[seed], args.output_dir / f"seed_{seed}") for seed in args.seeds}
        if PartialState().is_main_process:
            first = next(iter(recipes[args.seeds[0]].values()))
            print(write_comparison(args.benchmark, runs, args.output_dir, published_rows(first), given), end="")
            seen_unseen_scatter(points(runs.values()), args.output_dir / "comparison.png", title=args.benchmark)
        PartialState().destroy_process_group()

    def compare_or_stop():
        try:
            compare()
        except Stopped:
            if PartialState().is_main_process:
                print(f"Stopped; to go on: {resuming_command(__file__, argv, option=None)}")

    use_every_core()
    return run(compare_or_stop)


def read_variants(path: Path) -> dict[str, list[str]]:
    """name -> row and the keys that are changed in it."""
    import yaml

    try:
        variants = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(variants, dict) or not variants:
        raise ValueError(f"{path}: variants are a mapping, NAME: [ROW, key=value, ...]")
    for name, words in variants.items():
        if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name)):
            raise ValueError(f"{path}: {name!r} is to name a folder: use letters, digits, - and _")
        if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
            raise ValueError(f"{path}: {name}: write [ROW, key=value, ...]")
    return variants


def keys_of_rows(benchmark: str, rows: Iterable[str], keys: list[str]) -> dict[str, list[str]]:
    """The keys to change in each row: those of a stage only where the row has it."""
    from cagnet_hf.methods.options import RecipeError
    from cagnet_hf.training.recipe_files import load_recipe, stage_of_key

    stages = {row: load_recipe(f"{benchmark}/{row}").stages for row in rows}
    for key in keys:
        stage = stage_of_key(key)
        if stage is not None and not any(stage in of_row for of_row in stages.values()):
            known = dict.fromkeys(name for of_row in stages.values() for name in of_row)
            raise RecipeError(f"{key!r}: none of the rows has a stage {stage!r}; stages: {', '.join(known)}")
    return {
        row: [key for key in keys if stage_of_key(key) is None or stage_of_key(key) in of_row]
        for row, of_row in stages.items()
    }


if __name__ == "__main__":
    sys.exit(main())
