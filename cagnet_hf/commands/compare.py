"""`cagnet-hf compare`."""

from logging import getLogger
from pathlib import Path

logger = getLogger(__name__)


def compare(
    *,
    benchmark: str,
    rows: list[str] = (),
    variants: Path | None = None,
    seeds: list[int] = (0,),
    output_dir: Path,
    all_scores: bool = False,
    set_: list[str] = (),
) -> None:
    """Train and score several systems on one benchmark.

    The scores are put into one table, over several seeds with intervals of 95 %. A second table has the paired
    differences of rows and says which of the differences are resolved. Rows share the first stages that they have in
    common, finished rows are kept, and the same command resumes after an interruption. The command writes
    OUTPUT_DIR/seed_N/ROW (as `cagnet-hf train` does), comparison.json, comparison.md and comparison.png, and keeps
    features of a backbone that rests in OUTPUT_DIR/features, once for all rows and seeds.

    Args:
        benchmark: A folder of recipes, such as scenes or pascal_voc_edge; or a prepared folder of your own, on which
            the recipes of pascal_voc_frozen are compared.
        rows (ROW): Methods such as cagnet_pi_st (default: all there are).
        variants (YAML): A file of changed rows to compare instead: NAME: [ROW, key=value, ...].
        seeds (SEED): One run of every row for each of these seeds.
        output_dir: The folder that gets the runs, the table and the figure.
        all_scores: Score every row by protocol paper, too, and, where the benchmark has a class called background,
            with background counted as a class.
        set_ (key=value): Recipe keys to change in every row; the keys of a stage in the rows that have the stage.

    Examples:
        cagnet-hf compare --benchmark scenes --rows spnet zs3net cagnet_pi --output_dir outputs/comparison
        cagnet-hf compare --benchmark scenes --variants variants.yaml --output_dir outputs/variants
        cagnet-hf compare --benchmark data/photos --rows spnet gaussian --output_dir outputs/photos_rows
    """
    from accelerate import PartialState

    from ..apps.charts import check_drawing, seen_unseen_scatter
    from ..apps.comparison import (
        check_comparison,
        name_of_comparison,
        published_rows,
        recipes_for,
        recipes_of,
        run_rows,
        variants_of,
    )
    from ..apps.comparison_tables import points, write_comparison
    from ..apps.other_scores import other_scores
    from ..training.features import FEATURES

    if rows and variants:
        raise ValueError("--rows and --variants exclude each other: leave out one")
    folder, own = recipes_for(benchmark)
    changed = variants_of(folder, rows, variants)
    check_comparison(benchmark, output_dir)
    check_drawing()
    # All recipes first: a typing error must not be found after hours.
    recipes = {seed: recipes_of(folder, changed, [*own, *set_, f"seed={seed}"]) for seed in seeds}
    features = output_dir / FEATURES
    runs = {seed: run_rows(recipes[seed], output_dir / f"seed_{seed}", features) for seed in seeds}
    others = {}
    for seed in seeds if all_scores else ():
        folders = {row: output_dir / f"seed_{seed}" / row for row in recipes[seed]}
        others[seed] = {row: other_scores(recipe, folders[row], features) for row, recipe in recipes[seed].items()}
    if PartialState().is_main_process:
        recipe = next(iter(recipes[seeds[0]].values()))
        published, title = published_rows(recipe), name_of_comparison(folder, recipe)
        table = write_comparison(title, runs, output_dir, published, changed if variants else None, others)
        logger.info(table.rstrip("\n"))
        seen_unseen_scatter(points(runs.values()), output_dir / "comparison.png", title=title)
