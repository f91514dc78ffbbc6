"""What contexts of the generator and schedules of its fine-tuning are worth: CaGNet(pi) on cells of a rested network.

python scripts/ablations/rested_network.py --study contexts --runs outputs/held_out/seed_0 outputs/held_out/seed_1 \
    --output contexts.json

Every run is a pre-training (`train --recipe pascal_voc_frozen/cagnet_pi until=pretrain split=tuning seed=N`), whose
network rests from here on. The features of the labelled cells of all images are computed once. The stages that follow,
`fit_generator` and `finetune`, are repeated on these cells for every variant: without crops, and with the latent of
the network at its mean, so that a variant takes a minute. The features therefore do not depend on the latent that the
generator hears. Scores count cells, not pixels.
"""

import argparse
import json
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Repeat the last stages of CaGNet(pi) on cells of a network that rests, once for every variant. "
        "contexts: what the generator hears beside the class; measured are how far the latent is from a standard "
        "normal (nats per channel), the share of its variance that the image decides, how well a probe reads the "
        "class from it (accuracy over classes), what tells made from real features, and scores of cells. schedules: "
        "how the classifier is fine-tuned, with scores alone. Choose on runs with split=tuning.",
    )
    parser.add_argument("--study", choices=["contexts", "schedules"], required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of finished pre-trainings")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of the study (default: all)")
    parser.add_argument("--recipe", default="pascal_voc_frozen/cagnet_pi", help="whose last stages are repeated")
    parser.add_argument(
        "--output", type=Path, required=True, help="JSON file; what stands in it is not measured again"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from rested.variants import CONTEXTS, SCHEDULES

    from cagnet_hf.cli import run
    from cagnet_hf.data.names import did_you_mean
    from cagnet_hf.files import check_output, made_by, write_text_whole

    known = {"contexts": CONTEXTS, "schedules": SCHEDULES}[args.study]
    facts = {"made_by": made_by("rested_network"), "study": args.study, "recipe": args.recipe}

    def study():
        from made_features import rounded
        from rested.network import Rested

        check_output(args.output, facts["made_by"])
        for name in args.variants or ():
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"--variants: {args.study} has no {name!r}{hint}; known: {'; '.join(known)}")
        runs = by_seed(args.runs)
        found = {} if not args.output.exists() else read_study(args.output, facts, runs)
        for seed, folder in runs.items():
            left = [name for name in args.variants or known if seed not in found.get(name, {})]
            rested = Rested(folder, args.recipe) if left else None
            for name in left:
                scores = {"run": run_of(folder)} | rounded(rested.scores_of(known[name]))
                found.setdefault(name, {})[seed] = scores
                print(folder, name, json.dumps(scores), flush=True)
                ordered = {name: found[name] for name in known if name in found}
                write_text_whole(args.output, as_text(facts, ordered))

    return run(study)


def by_seed(folders: list[Path]) -> dict[str, Path]:
    """Finished runs by their seeds."""
    from cagnet_hf.training.recipe_files import load_recipe

    runs = {}
    for folder in folders:
        if not (folder / "metrics.json").is_file():
            raise FileNotFoundError(f"{folder} is no finished run: metrics.json is not there")
        seed = str(load_recipe(str(folder / "recipe.yaml")).seed)
        if seed in runs:
            raise ValueError(f"{folder} and {runs[seed]} both have seed {seed}: give one run a seed")
        runs[seed] = folder
    return runs


def run_of(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text("utf-8"))["run"]


def read_study(path: Path, facts: dict, runs: dict[str, Path]) -> dict:
    """What was measured before, if it is of the same study, recipe and runs."""
    written = json.loads(path.read_text("utf-8"))
    for key, value in facts.items():
        if written.get(key) != value:
            raise ValueError(f"{path} has {key} {written.get(key)!r}, not {value!r}: choose another --output")
    for seeds in written["variants"].values():
        for seed, scores in seeds.items():
            if seed in runs and scores["run"] != run_of(runs[seed]):
                raise ValueError(f"{path} has another run of seed {seed} than {runs[seed]}: choose another --output")
    return written["variants"]


def as_text(facts: dict, found: dict) -> str:
    """JSON with a line for every run."""
    variants = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(seed)}: {json.dumps(scores)}" for seed, scores in seeds.items())
        + "\n  }"
        for name, seeds in found.items()
    )
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in facts.items())
    return f'{{\n{head} "variants": {{\n{variants}\n }}\n}}\n'


if __name__ == "__main__":
    sys.exit(main())
