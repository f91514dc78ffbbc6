"""How far the features that generators make are from real ones: what a linear probe tells, spread and means by class.

python scripts/ablations/made_features.py --runs outputs/rows/seed_0/zs3net outputs/rows/seed_0/gaussian \
    --dataset data/voc_subset --output made_features.json
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

CELLS = 400  # of a class, in either half of the images
PENALTY = 1e-2  # on the squared weights of the probe
SMALLEST = 20  # a class with fewer cells in either half is left out


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="For every run, compare real features of labelled cells of the test images with features that the "
        "run's generator makes of the same classes, with its dropout, as the classifier met them. Measured are, class "
        "by class, the accuracy of a linear probe that tells the two apart (0.5 where they do not differ along a "
        "line), the variance of made features over that of real ones, and the distance of their means in standard "
        "deviations of real features; shown are the means over seen and over unseen classes, beside the run's scores. "
        "A probe is fitted on one half of the images and tested on the other. Gaussians are made with the widened "
        "covariance of their recipe.",
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of finished runs")
    parser.add_argument("--dataset", required=True, help="prepared folder, Hub id, or scenes:SEED")
    parser.add_argument("--split", default="test", help="split of the dataset (default: test)")
    parser.add_argument("--images", type=int, default=300, help="images to look at, spread over the split")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    import torch

    from cagnet_hf.cli import run
    from cagnet_hf.data.sources import open_with_classes
    from cagnet_hf.evaluation.scoring import check_classes
    from cagnet_hf.files import check_output, made_by, write_text_whole
    from cagnet_hf.weights.folders import load_model

    mark = made_by("made_features")

    def measure():
        check_output(args.output, mark)
        dataset, classes = open_with_classes(args.dataset, args.split)
        missing = [str(folder) for folder in args.runs if not (folder / "metrics.json").is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is no finished run: metrics.json is not there")
        if len({folder.name for folder in args.runs}) < len(args.runs):
            raise ValueError("--runs: two runs of one name would be one line")
        models = {folder: load_model(str(folder / "model")) for folder in args.runs}
        for folder, (model, _) in models.items():
            check_classes(model.config, classes, args.dataset)
            if model.generator is None:
                raise ValueError(f"{folder} has no generator, so there are no made features to compare")
        found = {}
        for folder, (model, processor) in models.items():
            scores = json.loads((folder / "metrics.json").read_text("utf-8"))
            torch.manual_seed(0)
            cells = real_cells(model, processor, dataset, args.images)
            of_run = {column: scores[column] for column in ("S-mIoU", "U-mIoU", "hIoU")}
            found[folder.name] = rounded(of_run | compare_features(model, *cells))
            print(folder.name, json.dumps(found[folder.name]), flush=True)
        write_text_whole(args.output, json.dumps({"made_by": mark, "runs": found}, indent=1) + "\n")

    return run(measure)


def rounded(values: dict) -> dict:
    """With four digits after the point: a second draw moves the third."""
    return {
        key: rounded(value) if isinstance(value, dict) else round(value, 4) if isinstance(value, float) else value
        for key, value in values.items()
    }


def real_cells(model, processor, dataset, images: int):
    """Features `(P, D)`, classes `(P,)` and the half of the images `(P,)`, 0 or 1, of the labelled cells."""
    import torch

    from cagnet_hf.data.label_space import LabelSpace
    from cagnet_hf.model.maps_cagnet import centre_labels

    labels, found = LabelSpace.of(model.config), []
    model.eval()
    with torch.inference_mode():
        for number in range(min(images, len(dataset))):
            sample = dataset[number * len(dataset) // min(images, len(dataset))]
            features = model.cagnet(processor.prepare(sample.image)[None]).features[0]
            truth = labels.to_model_order(sample.labels, hide_unseen=False, source=f"mask of {sample.id}")
            truth = centre_labels(torch.as_tensor(truth).long(), features.shape[-2:])
            labelled = truth != model.config.ignore_index
            classes = truth[labelled]
            found.append((features.movedim(0, -1)[labelled], classes, torch.full_like(classes, number % 2)))
    return [torch.cat(parts).clone() for parts in zip(*found, strict=True)]


def compare_features(model, features, classes, halves, synthesize=None) -> dict:
    """What tells made features from real ones, of seen and unseen classes; made by the model, or by `synthesize`."""
    import torch

    unseen, report = set(model.config.unseen_ids), {}
    for group in ("seen", "unseen"):
        ids = [c for c in range(model.config.num_labels) if (c in unseen) == (group == "unseen")]
        real, made, accuracies = [], [], []
        for class_id in ids:
            of_class = [features[(classes == class_id) & (halves == half)] for half in (0, 1)]
            if min(map(len, of_class)) < SMALLEST:
                continue
            drawn = [cells[torch.randperm(len(cells))[:CELLS]] for cells in of_class]
            like = [make_features(model, class_id, len(cells), synthesize) for cells in drawn]
            accuracies.append(probe_accuracy(*drawn, *like))
            real.append(torch.cat(drawn))
            made.append(torch.cat(like))
        if real:
            accuracy = fmean(accuracies)
            report[group] = {"classes": len(real), "probe_accuracy": accuracy} | spread_and_distance(real, made)
    return report


def make_features(model, class_id: int, count: int, synthesize=None):
    """`(count, D)` features of a class, each with a latent of its own, as training makes them: with dropout."""
    import torch

    size = model.config.patch_size
    model.generator.train()
    with torch.no_grad():
        made = (synthesize or model.synthesize_features)(torch.full((1, size, count * size), class_id))
    model.generator.eval()
    return made[0, :, size // 2, size // 2 :: size].t().clone()


def probe_accuracy(real, real_of_test, made, made_of_test) -> float:
    """The share that a logistic regression on `(P, D)` features gets right on the other half."""
    import torch
    import torch.nn.functional as F

    inputs = torch.cat([real, made])
    mean, deviation = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    truth = torch.cat([torch.ones(len(real)), torch.zeros(len(made))])
    weight = torch.zeros(inputs.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def score(values):
        return (values - mean) / deviation @ weight[:-1] + weight[-1]

    def closure():
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(score(inputs), truth) + PENALTY * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        right = [(score(real_of_test) > 0).float(), (score(made_of_test) <= 0).float()]
        return sum(half.mean().item() for half in right) / 2


def spread_and_distance(real: list, made: list) -> dict[str, float]:
    """Means over the classes: variance of made over that of real features, and how far their means are apart."""
    variances = [(r.var(0).sum(), m.var(0).sum()) for r, m in zip(real, made, strict=True)]
    apart = [
        ((r.mean(0) - m.mean(0)).square().sum() / variance).sqrt().item()
        for r, m, (variance, _) in zip(real, made, variances, strict=True)
    ]
    ratios = [(of_made / of_real).item() for of_real, of_made in variances]
    return {"variance_ratio": fmean(ratios), "distance_of_means": fmean(apart)}


if __name__ == "__main__":
    sys.exit(main())
