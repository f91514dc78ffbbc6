"""What contexts of the generator and schedules of its fine-tuning are worth: CaGNet(pi) on cells of a rested network.

python scripts/ablations/rested_network.py --study contexts --runs outputs/held_out/seed_0 outputs/held_out/seed_1 \
    --output contexts.json

Every run is a pre-training (`train --recipe pascal_voc_frozen/cagnet_pi until=pretrain split=tuning seed=N`), whose
network rests from here on. The features of the labelled cells of all images are computed once. The stages that follow,
`fit_generator` and `finetune`, are repeated on these cells for every variant: without crops, and with the latent of
the network at its mean, so that a variant takes a minute. Scores count cells, not pixels.
"""

import argparse
import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

IMAGES = 8  # of a step
PROBED = 200  # cells of a class in either half of the images, for the probe that reads the class from the latent
PENALTY = 1e-2  # on the squared weights of that probe


@dataclass(frozen=True)
class Context:
    """What the generator hears beside the class.

    Attributes:
        of: `"noise"`, which is what the latent of the released objective comes to; `"surroundings"`, the mean feature
            of the image's other segments, so that a cell's own segment is not in it; `"learnt"`, the latent of a
            contextual module that learns with the generator (`objective: paper`, L2 of weight 10, a free variance).
        kl: Of `"learnt"`, the weight of the distance of the latent from a standard normal.
        whitened: Give the latents of every class the mean 0 and one variance, so that no mean tells the class.
        synthetic: What synthetic steps draw: `"normal"` latents; those of a `"bank"` of real contexts; or normal ones
            around a mean that is regressed from the class vector, `"of_class"`.
    """

    of: str = "noise"
    kl: float = 0.0
    whitened: bool = False
    synthetic: str = "normal"


@dataclass(frozen=True)
class Schedule:
    """How the classifier is fine-tuned.

    Attributes:
        block: Real steps in turn with as many synthetic ones.
        together: Every step is real and synthetic at once; half as many steps.
        falls: The classifier's rate falls to zero.
        averaged: The share of the last steps over which the classifier's weights are averaged.
        corrected: Synthetic logits are corrected for the odds that classes are drawn with, in training alone.
        weight: Of the loss of synthetic steps; the recipe's when None.
        image_prior: Of the configuration, when the model is scored.
    """

    block: int = 50
    together: bool = False
    falls: bool = False
    averaged: float = 0.0
    corrected: bool = False
    weight: float | None = None
    image_prior: float = 0.0


CONTEXTS = {
    "noise": Context(),
    "surroundings, bank": Context("surroundings", synthetic="bank"),
    "surroundings, whitened, bank": Context("surroundings", whitened=True, synthetic="bank"),
    "learnt, KL 100": Context("learnt", kl=100),
    "learnt, KL 0.1": Context("learnt", kl=0.1),
    "learnt, KL 0.1, bank": Context("learnt", kl=0.1, synthetic="bank"),
    "learnt, KL 0.1, of class": Context("learnt", kl=0.1, synthetic="of_class"),
    "learnt, KL 0.1, whitened, bank": Context("learnt", kl=0.1, whitened=True, synthetic="bank"),
}
SCHEDULES = {
    "blocks of 50": Schedule(),
    "blocks of 50, averaged": Schedule(averaged=0.5),
    "blocks of 50, corrected": Schedule(corrected=True),
    "in turn": Schedule(block=1),
    "in turn, weight 4, falling rate": Schedule(block=1, weight=4, falls=True),
    "in turn, weight 16, falling rate": Schedule(block=1, weight=16, falls=True),
    "in turn, weight 4, averaged": Schedule(block=1, weight=4, averaged=0.5),
    "together, weight 4": Schedule(together=True, weight=4),
    "together, weight 16, falling rate": Schedule(together=True, weight=16, falls=True),
    "blocks of 50, image prior 1": Schedule(image_prior=1),
    "blocks of 50, image prior 2": Schedule(image_prior=2),
    "blocks of 50, image prior 3": Schedule(image_prior=3),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Repeat the last stages of CaGNet(pi) on cells of a network that rests, once for every variant. "
        "contexts: what the generator hears beside the class; measured are how far the latent is from a standard "
        "normal (nats per channel), the share of its variance that the image decides, how well a linear probe reads "
        "the class from it (accuracy over classes), what tells made from real features, and scores of cells. "
        "schedules: how the classifier is fine-tuned, with scores alone. Choose on runs with split=tuning.",
    )
    parser.add_argument("--study", choices=["contexts", "schedules"], required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of finished pre-trainings")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of the study (default: all)")
    parser.add_argument("--recipe", default="pascal_voc_frozen/cagnet_pi", help="whose last stages are repeated")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run
    from cagnet_hf.data.names import did_you_mean
    from cagnet_hf.files import check_output, made_by, write_text_whole

    mark, known = made_by("rested_network"), {"contexts": CONTEXTS, "schedules": SCHEDULES}[args.study]

    def study():
        check_output(args.output, mark)
        for name in args.variants or ():
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"--variants: {args.study} has no {name!r}{hint}; known: {'; '.join(known)}")
        missing = [folder for folder in args.runs if not (folder / "metrics.json").is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is no finished run: metrics.json is not there")
        found = {name: {} for name in args.variants or known}
        if args.output.exists():  # variants that were measured before stay
            found |= json.loads(args.output.read_text("utf-8"))["variants"]
        for folder in args.runs:
            rested = None
            for name in args.variants or known:
                if str(seed_of(folder)) in found[name]:
                    continue
                rested = rested or Rested(folder, args.recipe)
                found[name][str(seed_of(folder))] = scores = rounded(rested.scores_of(known[name]))
                print(folder, name, json.dumps(scores), flush=True)
                write_text_whole(args.output, as_text(mark, args.study, found))

    return run(study)


def seed_of(folder: Path) -> int:
    from cagnet_hf.training.recipe_files import load_recipe

    return load_recipe(str(folder / "recipe.yaml")).seed


def as_text(mark: str, study: str, found: dict) -> str:
    """JSON with a line for every run."""
    variants = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(seed)}: {json.dumps(scores)}" for seed, scores in seeds.items())
        + "\n  }"
        for name, seeds in found.items()
    )
    head = f' "made_by": {json.dumps(mark)},\n "study": {json.dumps(study)},\n "variants": {{\n'
    return f"{{\n{head}{variants}\n }}\n}}\n"


def rounded(values: dict) -> dict:
    return {
        key: rounded(value) if isinstance(value, dict) else round(value, 4) if isinstance(value, float) else value
        for key, value in values.items()
    }


class Cells:
    """Labelled cells of images, as a network that rests describes them.

    Attributes:
        features: `(P, D)`.
        classes: `(P,)`.
        images: `(P,)`, the number of the image, rising.
        surroundings: `(P, D)`, the mean feature of the image's cells that do not have the label of the cell.
        maps: The maps `(D, h, w)` that the contextual module hears, by image.
        described: The features `(D, h, w)` of all cells, by image.
        places: `(h, w)` bool by image, where the cells are.
    """

    def __init__(self, model, maps, label_maps):
        import torch

        ignore, found = model.config.ignore_index, []
        self.maps, self.described, self.places = [], [], []
        with torch.no_grad():
            for of_backbone, labels in zip(maps, label_maps, strict=True):
                output = model.cagnet(backbone_features=of_backbone[None].float(), output_hidden_states=True)
                features, labelled = output.features[0].movedim(0, -1), labels != ignore
                number = torch.full_like(labels, len(self.maps))
                around = surroundings(features, labels)
                found.append([values[labelled] for values in (features, labels, number, around)])
                self.maps.append(output.hidden_states[1][0].clone())
                self.described.append(output.features[0])
                self.places.append(labelled)
        self.features, self.classes, self.images, self.surroundings = (
            torch.cat(parts).clone() for parts in zip(*found, strict=True)
        )
        counts = torch.bincount(self.images, minlength=len(self.maps))
        self.ends = counts.cumsum(0).tolist()
        self.labelled_images = counts.nonzero().flatten()

    def draw(self):
        """The positions of the cells of some images, and the numbers of these images."""
        import torch

        chosen = self.labelled_images[torch.randperm(len(self.labelled_images))[:IMAGES]].tolist()
        starts = [0, *self.ends]
        return torch.cat([torch.arange(starts[image], self.ends[image]) for image in chosen]), chosen


def surroundings(features, labels):
    """Of every cell the mean feature of the cells that have another label, or none: `(h, w, D)`, 0 where all agree."""
    import torch

    classes, of_cell = labels.unique(return_inverse=True)
    members = torch.nn.functional.one_hot(of_cell.flatten(), len(classes)).to(features.dtype)  # (P, S)
    flat = features.flatten(0, 1)
    others = len(flat) - members.sum(0)
    means = (flat.sum(0) - members.t() @ flat) / others.clamp_min(1)[:, None]
    return (means * (others > 0)[:, None])[of_cell]


class Rested:
    """A pre-trained network that rests, with its cells, and the last stages repeated on them.

    Args:
        folder: The finished pre-training.
        recipe: The recipe whose last stages are repeated, with the data, vectors and seed of the run.
    """

    def __init__(self, folder: Path, recipe: str):
        from accelerate import Accelerator

        from cagnet_hf.training.features import cached_features
        from cagnet_hf.training.recipe_files import load_recipe
        from cagnet_hf.training.setup import dataset_of
        from cagnet_hf.weights.folders import load_model

        ran = load_recipe(str(folder / "recipe.yaml"))
        if ran.feature_cache is None:
            raise ValueError(f"{folder} was trained without feature_cache: give runs of {recipe}")
        keys = [f"{key}={getattr(ran, key)}" for key in ("benchmark", "dataset", "class_embeddings", "seed", "split")]
        place = ran.feature_cache.folder or folder / "features"
        self.recipe = load_recipe(recipe, [*keys, f"feature_cache.folder={place}"])
        self.model, processor = load_model(str(folder / "model"))
        self.model.eval()
        self.start = copy.deepcopy(self.model.state_dict())
        rows = {split: dataset_of(ran, split) for split in (ran.train_split, ran.test_split)}
        caches = [
            cached_features(ran, Path(place), images, self.model, processor, Accelerator(), scored=scored)
            for images, scored in zip(rows.values(), (False, True), strict=True)
        ]
        labels = [labels.long() for _, labels in caches[0]]
        self.cells = Cells(self.model, (maps[0] for maps, _ in caches[0]), labels)
        caches[1].hide_unseen = False
        self.test = Cells(self.model, (maps[0] for maps, _ in caches[1]), (labels.long() for _, labels in caches[1]))
        self._fitted: dict[Context, tuple[dict, Latents]] = {}
        self._learnt: dict[float, tuple] = {}

    def scores_of(self, variant: Context | Schedule) -> dict:
        """What a variant ends in; of a context what its latent says, too."""
        if isinstance(variant, Schedule):
            self.fit(Context())
            self.fine_tune(variant)
            return self.scores(variant.image_prior)
        latents = self.fit(variant)
        self.fine_tune(Schedule())
        return self.scores() | latents.description() | self.made_features()

    def fit(self, context: Context) -> "Latents":
        """Bring the model to where its generator has been fitted to a context."""
        import torch

        if context not in self._fitted:
            torch.manual_seed(self.recipe.seed)
            latents = self.latents_of(context)
            self.model.load_state_dict(self.start)
            self.model.generator.apply(self.model._init_weights)
            method, learner, step = self._stage("fit_generator", self.recipe)
            for iteration in range(step.iterations):
                self._step_rates(learner, step, iteration)
                self._real(method, learner, latents)
                learner.step(("classifier", "generator"))
            self._fitted = {context: (copy.deepcopy(self.model.state_dict()), latents)}
        weights, latents = self._fitted[context]
        self.model.load_state_dict(weights)
        self._latents = latents
        return latents

    def latents_of(self, context: Context) -> "Latents":
        """The latents of the training cells."""
        import torch

        cells = self.cells
        if context.of == "noise":
            mean, deviation = torch.zeros_like(cells.features), torch.ones_like(cells.features)
        elif context.of == "surroundings":
            mean = cells.surroundings - cells.surroundings.mean(0)
            mean, deviation = mean / mean.std(0).clamp_min(1e-6), torch.zeros_like(mean)
        else:
            mean, deviation = latent_of_cells(self.learnt_module(context.kl), cells)
        return Latents(mean, deviation, cells, self.model, context)

    def learnt_module(self, kl: float):
        """A contextual module that has learnt with a generator, by the papers' text."""
        import torch

        from cagnet_hf.methods.losses import kl_to_standard_normal
        from cagnet_hf.model.parts_cagnet import ContextualModule

        if kl in self._learnt:
            return self._learnt[kl]
        config = copy.deepcopy(self.model.config)
        config.context_variance = "free"
        module = ContextualModule(config)
        module.apply(self.model._init_weights)
        options = {"objective": "paper", "content_loss": "l2"}
        self.model.load_state_dict(self.start)
        self.model.generator.apply(self.model._init_weights)
        method, learner, stage = self._stage("fit_generator", self.recipe.model_copy(update=options))
        weights = stage.weights.model_copy(update={"generator_content": 10.0})
        method.stage = stage.model_copy(update={"weights": weights})
        learner.optimizers["network"] = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=5e-4)
        for iteration in range(stage.iterations):
            self._step_rates(learner, stage, iteration)
            where, images = self.cells.draw()
            latents = [module(self.cells.maps[image][None]) for image in sorted(images)]
            places = [self.cells.places[image] for image in sorted(images)]
            latent, mean, log_variance = (
                torch.cat([values[0].movedim(0, -1)[place] for values, place in zip(parts, places, strict=True)])
                for parts in zip(*latents, strict=True)
            )
            terms = self._terms(method, where.sort().values, latent)
            maps = (values.t()[None, :, None] for values in (mean, log_variance))
            terms.add("kl", kl, kl_to_standard_normal(*maps, torch.ones(1, 1, len(mean), dtype=torch.bool)))
            learner.backward(sum(terms.weighted))
            learner.step(("network", "classifier", "generator"))
        self._learnt[kl] = module
        return module

    def fine_tune(self, schedule: Schedule) -> None:
        """The stage `finetune` on cells."""
        import torch

        torch.manual_seed(self.recipe.seed)
        recipe, stage = self.recipe, self.recipe.stages["finetune"]
        changes = {"real_block": schedule.block, "synthetic_block": schedule.block}
        if schedule.falls:
            changes["classifier"] = stage.classifier.model_copy(update={"schedule": "poly"})
        if schedule.together:
            changes["iterations"] = stage.iterations // 2
        if schedule.weight is not None:
            changes["weights"] = stage.weights.model_copy(update={"synthetic_step": schedule.weight})
        stage = stage.model_copy(update=changes)
        recipe = recipe.model_copy(update={"stages": recipe.stages | {"finetune": stage}})
        method, learner, stage = self._stage("finetune", recipe)
        averaged, count = copy.deepcopy(self.model.classifier), 0
        for iteration in range(stage.iterations):
            self._step_rates(learner, stage, iteration)
            synthetic = stage.is_synthetic(iteration)
            if schedule.together or not synthetic:
                self._real(method, learner, self._latents)
            if schedule.together or synthetic:
                learner.backward(self._synthetic(method, corrected=schedule.corrected))
            learner.step(("classifier",) if synthetic and not schedule.together else ("classifier", "generator"))
            if iteration >= stage.iterations * (1 - schedule.averaged):
                count += 1
                with torch.no_grad():
                    for mean, now in zip(averaged.parameters(), self.model.classifier.parameters(), strict=True):
                        mean.lerp_(now, 1 / count)
        if schedule.averaged:
            self.model.classifier.load_state_dict(averaged.state_dict())

    def _stage(self, name: str, recipe):
        from accelerate import Accelerator

        from cagnet_hf.methods import method_of
        from cagnet_hf.training.learner import Learner
        from cagnet_hf.training.optimizers import build_optimizers

        stage = recipe.stages[name]
        method = method_of(recipe.method, recipe.model)(recipe, stage, self.model)
        self.model.classifier.train()
        self.model.generator.train()
        return method, Learner(Accelerator(), build_optimizers(self.model, stage)), stage

    @staticmethod
    def _step_rates(learner, stage, iteration: int) -> None:
        from cagnet_hf.training.optimizers import set_learning_rates

        parts = {part: optimizer for part, optimizer in learner.optimizers.items() if part != "network"}
        set_learning_rates(parts, stage, iteration)

    def _real(self, method, learner, latents: "Latents") -> None:
        where, _ = self.cells.draw()
        learner.backward(sum(self._terms(method, where, latents.draw(where)).weighted))

    def _terms(self, method, where, latent):
        """The weighted losses of a real step on cells."""
        import torch

        from cagnet_hf.methods.base import RealStep
        from cagnet_hf.model.maps_cagnet import mean_cross_entropy

        features, labels = self.cells.features[where].t()[None, :, None], self.cells.classes[where][None, None]
        latent = latent.t()[None, :, None]
        output = SimpleNamespace(features=features, latent=latent, latent_log_variance=None)
        step = RealStep(output, labels, torch.ones_like(labels, dtype=torch.bool))
        loss = mean_cross_entropy(self.model.classifier(features), labels, ignore_index=self.model.config.ignore_index)
        step.add("classification", method.stage.weights.classifier_real, loss)
        method.add_terms(step)
        return step

    def _synthetic(self, method, *, corrected: bool):
        """The weighted loss of a synthetic step, with latents as the context draws them."""
        import torch

        model, stage = self.model, method.stage
        truth = method.draw_label_maps((1, 1, stage.batch_size * stage.synthetic_size**2))
        with torch.no_grad():
            latent = self._latents.draw_for(truth.flatten()).t()[None, :, None]
            made = model.generator(model.embed_classes(truth), latent)
        logits = model.classifier(made)
        if corrected:
            logits = logits + method.class_odds().log()[None, :, None, None]
        return stage.weights.synthetic_step * torch.nn.functional.cross_entropy(logits, truth)

    def scores(self, image_prior: float = 0.0) -> dict:
        """Scores of the labelled cells of the test images."""
        import torch

        from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix
        from cagnet_hf.model.maps_cagnet import with_image_prior

        self.model.eval()
        predicted = []
        with torch.no_grad():
            for features, labelled in zip(self.test.described, self.test.places, strict=True):
                logits = with_image_prior(self.model.classifier(features[None]), image_prior)
                predicted.append(logits[0].argmax(0)[labelled])
        matrix = ConfusionMatrix.of(self.model.config)
        matrix.add(torch.cat(predicted)[None], self.test.classes[None])
        scores = matrix.scores()
        return {column: scores[column] for column in ("hIoU", "S-mIoU", "U-mIoU")}

    def made_features(self) -> dict:
        """What tells made features from those of test images."""
        from made_features import compare_features

        model, latents = self.model, self._latents

        def synthesize(class_ids):
            latent = latents.draw_for(class_ids.flatten()).t()[None, :, None]
            return model.generator(model.embed_classes(class_ids), latent)

        model.synthesize_features = synthesize  # with latents of the context
        try:
            return compare_features(model, self.test.features, self.test.classes, self.test.images % 2)
        finally:
            del model.synthesize_features


def latent_of_cells(module, cells: Cells):
    """Mean and deviation `(P, D)` of a module's latent at the cells."""
    import torch

    module.train()  # in evaluation mode there is no variance
    with torch.no_grad():
        found = [
            [values[0].movedim(0, -1)[place] for values in module(hidden[None])[1:]]
            for hidden, place in zip(cells.maps, cells.places, strict=True)
        ]
    mean, log_variance = (torch.cat(parts).clone() for parts in zip(*found, strict=True))
    return mean, (0.5 * log_variance).exp()


class Latents:
    """The latents of cells: what real steps give the generator, and what synthetic steps draw.

    Args:
        mean, deviation: `(P, D)`.
        cells: The cells.
        model: Whose class vectors a class's mean is regressed from.
        context: The variant.
    """

    def __init__(self, mean, deviation, cells: Cells, model, context: Context):
        import torch

        self.cells, self.context = cells, context
        self.divergence = (mean.square() + deviation.square() - 1) / 2 - deviation.clamp_min(1e-12).log()
        self.from_image = mean.var(0).sum() / (mean.var(0).sum() + deviation.square().mean(0).sum())
        if context.whitened:
            classes, of_cell, counts = cells.classes.unique(return_inverse=True, return_counts=True)
            sums = torch.zeros(len(classes), mean.shape[1]).index_add_(0, of_cell, mean)
            mean = mean - (sums / counts[:, None])[of_cell]
            spread = (mean.square() + deviation.square()).mean(0).sqrt().clamp_min(1e-6)
            mean, deviation = mean / spread, deviation / spread
        self.mean, self.deviation = mean, deviation
        if context.synthetic == "of_class":
            self._regress(model)

    def _regress(self, model) -> None:
        """The mean latent of every class, by ridge regression from its vector."""
        import torch
        import torch.nn.functional as F

        present, of_cell, counts = self.cells.classes.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(present), self.mean.shape[1]).index_add_(0, of_cell, self.mean) / counts[:, None]
        vectors = F.normalize(model.class_embeddings, dim=1)
        centre, gram = means.mean(0), vectors[present] @ vectors[present].t()
        weights = torch.linalg.solve(gram + 0.1 * torch.eye(len(present)), means - centre)
        self.of_class = centre + vectors @ vectors[present].t() @ weights
        within = self.mean - means[of_cell]
        self.within = (within.square() + self.deviation.square()).mean(0).sqrt()

    def draw(self, where):
        """Latents `(n, D)` of these cells."""
        import torch

        return self.mean[where] + self.deviation[where] * torch.randn_like(self.mean[where])

    def draw_for(self, classes):
        """Latents `(n, D)` for synthetic cells of these classes."""
        import torch

        if self.context.synthetic == "bank":
            return self.draw(torch.randint(len(self.mean), classes.shape))
        noise = torch.randn(len(classes), self.mean.shape[1])
        return noise if self.context.synthetic == "normal" else self.of_class[classes] + self.within * noise

    def description(self) -> dict:
        """What the latent says of image and class."""
        finite = bool(self.divergence.isfinite().all()) and self.context.of != "surroundings"
        return {
            "nats_per_channel": self.divergence.mean().item() if finite else None,
            "variance_from_image": self.from_image.item(),
            "class_from_latent": self.leak(),
        }

    def leak(self) -> float:
        """Accuracy, averaged over classes, of a linear probe that reads the class from the latent of other images."""
        import torch
        import torch.nn.functional as F

        halves, drawn = self.cells.images % 2, []
        for half in (0, 1):
            found = []
            for number in self.cells.classes.unique().tolist():
                of_class = ((self.cells.classes == number) & (halves == half)).nonzero().flatten()
                found.append(of_class[torch.randperm(len(of_class))[:PROBED]])
            drawn.append(torch.cat(found))
        fitted, tested = ((self.draw(where), self.cells.classes[where]) for where in drawn)
        centre, spread = fitted[0].mean(0), fitted[0].std(0).clamp_min(1e-6)
        weight = torch.zeros(self.mean.shape[1] + 1, int(self.cells.classes.max()) + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

        def score(values):
            return (values - centre) / spread @ weight[:-1] + weight[-1]

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(score(fitted[0]), fitted[1]) + PENALTY * weight[:-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            right = (score(tested[0]).argmax(1) == tested[1]).float()
        accuracies = [right[tested[1] == number].mean() for number in tested[1].unique()]
        return (sum(accuracies) / len(accuracies)).item()


if __name__ == "__main__":
    sys.exit(main())
