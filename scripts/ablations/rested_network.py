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
import copy
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

PROBED = 200  # cells of a class in either half of the images, for the probe that reads the class from the latent
PENALTY = 1e-2  # on the squared weights of that probe
OFFSETS = [step / 2 for step in range(-8, 13)]  # added to the logits of unseen classes; the best is chosen crosswise


@dataclass(frozen=True)
class Context:
    """What the generator hears beside the class.

    Attributes:
        of: `"noise"`, which is what the latent of the released objective comes to; `"surroundings"`, the mean feature
            of the image's cells that do not have the label of the cell, those without a label included; `"learnt"`,
            the latent of a contextual module of free variance that learns with a generator of its own by the papers'
            text (L2 of weight 10). The generator of the variant is fitted anew.
        kl: Of `"learnt"`, the weight of the distance of the latent from a standard normal.
        standardised: Give the latents of every class the mean 0 and the variance 1 in each channel.
        synthetic: What synthetic steps draw: `"normal"` latents; those of a `"bank"` of real contexts; or normal ones
            around a mean that is regressed from the class vector, `"of_class"`.
        content: The content loss of the generator. The MMD compares the features of a class as a set, so that nothing
            asks the generator to listen to the latent; `"l2"`, of weight 10, compares cell by cell.
    """

    of: str = "noise"
    kl: float = 0.0
    standardised: bool = False
    synthetic: str = "normal"
    content: str = "mmd"


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


LEARNT = Context("learnt", kl=0.1)
CONTEXTS = {
    "noise": Context(),
    "noise, L2": Context(content="l2"),
    "surroundings, L2, bank": Context("surroundings", content="l2", synthetic="bank"),
    "surroundings, standardised, L2, bank": Context("surroundings", 0, True, "bank", "l2"),
    "learnt, L2": replace(LEARNT, content="l2"),
    "learnt, L2, bank": replace(LEARNT, content="l2", synthetic="bank"),
    "learnt, L2, of class": replace(LEARNT, content="l2", synthetic="of_class"),
    "learnt, standardised, L2, bank": replace(LEARNT, standardised=True, content="l2", synthetic="bank"),
    "learnt": LEARNT,
    "learnt, of class": replace(LEARNT, synthetic="of_class"),
    "learnt, standardised, bank": replace(LEARNT, standardised=True, synthetic="bank"),
}
SCHEDULES = {
    "blocks of 50": Schedule(),
    "blocks of 50, image prior 1": Schedule(image_prior=1),
    "blocks of 50, image prior 2": Schedule(image_prior=2),
    "blocks of 50, image prior 3": Schedule(image_prior=3),
    "blocks of 50, weight 4": Schedule(weight=4),
    "blocks of 50, falling rate": Schedule(falls=True),
    "blocks of 50, averaged": Schedule(averaged=0.5),
    "blocks of 50, corrected": Schedule(corrected=True),
    "in turn": Schedule(block=1),
    "in turn, weight 4": Schedule(block=1, weight=4),
    "in turn, weight 4, falling rate": Schedule(block=1, weight=4, falls=True),
    "in turn, weight 16, falling rate": Schedule(block=1, weight=16, falls=True),
    "together, weight 4": Schedule(together=True, weight=4),
}


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
    from cagnet_hf.cli import run
    from cagnet_hf.data.names import did_you_mean
    from cagnet_hf.files import check_output, made_by, write_text_whole

    known = {"contexts": CONTEXTS, "schedules": SCHEDULES}[args.study]
    facts = {"made_by": made_by("rested_network"), "study": args.study, "recipe": args.recipe}

    def study():
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
        maps: By image the map `(D, h, w)` that the contextual module hears.
        described: By image the features `(D, h, w)` of all cells.
        places: By image where the labelled cells are, `(h, w)` bool.
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
                self.maps.append(output.hidden_states[1][0])
                self.described.append(output.features[0])
                self.places.append(labelled)
        self.features, self.classes, self.images, self.surroundings = (
            torch.cat(parts) for parts in zip(*found, strict=True)
        )
        counts = torch.bincount(self.images, minlength=len(self.maps))
        self.ends = counts.cumsum(0).tolist()
        self.labelled_images = counts.nonzero().flatten()

    def draw(self, images: int):
        """The positions of the cells of some images, and the numbers of these images, both rising."""
        import torch

        chosen = self.labelled_images[torch.randperm(len(self.labelled_images))[:images]].sort().values.tolist()
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
        missing = [name for name in ("fit_generator", "finetune") if name not in self.recipe.stages]
        if missing:
            raise ValueError(f"{recipe} has no stage {missing[0]}, which is to be repeated")
        self.model, processor = load_model(str(folder / "model"))
        if self.model.config.patch_size > 1:
            raise ValueError(f"{folder} looks at patches, and cells are looked at one by one: give runs of CaGNet(pi)")
        self.model.eval()
        self.start = copy.deepcopy(self.model.state_dict())
        self.accelerator = Accelerator(cpu=True)
        rows = {split: dataset_of(ran, split) for split in (ran.train_split, ran.test_split)}
        caches = [
            cached_features(ran, Path(place), images, self.model, processor, self.accelerator, scored=scored)
            for images, scored in zip(rows.values(), (False, True), strict=True)
        ]
        caches[1].hide_unseen = False
        self.cells, self.test = (
            Cells(self.model, (maps[0] for maps, _ in cache), (labels.long() for _, labels in cache))
            for cache in caches
        )
        self._fitted: tuple[Context, dict, tuple] | None = None  # what was heard, weights, latents of cells
        self._tuned: tuple[Schedule, dict] | None = None
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

        heard = replace(context, synthetic="normal")  # what synthetic steps draw comes later
        if self._fitted is None or self._fitted[0] != heard:
            mean, deviation = self.latents_of(context)
            torch.manual_seed(self.recipe.seed)  # whatever was learnt for the latents
            self._start()
            method, learner, stage = self._stage("fit_generator", self.recipe, context.content)
            latents = Latents(mean, deviation, self.cells, context)
            for iteration in range(stage.iterations):
                self._set_rates(learner, stage, iteration)
                self._real(method, learner, latents)
                learner.step(("classifier", "generator"))
            self._fitted = heard, copy.deepcopy(self.model.state_dict()), (mean, deviation)
            self._tuned = None
        _, weights, of_cells = self._fitted
        self.model.load_state_dict(weights)
        self._latents = Latents(*of_cells, self.cells, context)
        self._latents.regress(self.model.class_embeddings)
        return self._latents

    def _start(self) -> None:
        """The model as it was pre-trained, with a new generator."""
        from cagnet_hf.model.parts_cagnet import GENERATORS

        self.model.load_state_dict(self.start)
        new = GENERATORS.build(self.model.config)  # weights that were loaded would not be drawn anew
        new.apply(self.model._init_weights)
        self.model.generator.load_state_dict(new.state_dict())

    def latents_of(self, context: Context):
        """Mean and deviation `(P, D)` of the latents of the training cells."""
        import torch

        cells = self.cells
        if context.of == "noise":
            return torch.zeros_like(cells.features), torch.ones_like(cells.features)
        if context.of == "surroundings":
            mean = cells.surroundings - cells.surroundings.mean(0)
            return mean / mean.std(0).clamp_min(1e-6), torch.zeros_like(mean)
        return latent_of_cells(self.learnt_module(context.kl), cells)

    def learnt_module(self, kl: float):
        """A contextual module that has learnt with a generator, by the papers' text."""
        import torch

        from cagnet_hf.methods.losses import kl_to_standard_normal
        from cagnet_hf.model.parts_cagnet import ContextualModule

        if kl in self._learnt:
            return self._learnt[kl]
        torch.manual_seed(self.recipe.seed)
        config = copy.deepcopy(self.model.config)
        config.context_variance = "free"
        module = ContextualModule(config)
        module.apply(self.model._init_weights)
        self._start()
        recipe = self.recipe.model_copy(update={"objective": "paper"})
        method, learner, stage = self._stage("fit_generator", recipe, "l2")
        learner.optimizers["network"] = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=5e-4)
        for iteration in range(stage.iterations):
            self._set_rates(learner, stage, iteration)
            where, images = self.cells.draw(stage.batch_size)
            heard = [module(self.cells.maps[image][None]) for image in images]
            places = [self.cells.places[image] for image in images]
            latent, mean, log_variance = (
                torch.cat([values[0].movedim(0, -1)[place] for values, place in zip(parts, places, strict=True)])
                for parts in zip(*heard, strict=True)
            )
            terms = self._terms(method, where, latent)
            maps = (values.t()[None, :, None] for values in (mean, log_variance))
            terms.add("kl", kl, kl_to_standard_normal(*maps, torch.ones(1, 1, len(mean), dtype=torch.bool)))
            learner.backward(sum(terms.weighted))
            learner.step(("network", "classifier", "generator"))
        self._learnt[kl] = module
        return module

    def fine_tune(self, schedule: Schedule) -> None:
        """The stage `finetune` on cells."""
        import torch

        trained = replace(schedule, image_prior=0.0)
        if self._tuned is not None and self._tuned[0] == trained and self._fitted[0] == Context():
            self.model.load_state_dict(self._tuned[1])
            return
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
        method, learner, stage = self._stage("finetune", recipe, self._latents.context.content)
        averaged, count = copy.deepcopy(self.model.classifier), 0
        for iteration in range(stage.iterations):
            self._set_rates(learner, stage, iteration)
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
        self._tuned = trained, copy.deepcopy(self.model.state_dict())

    def _stage(self, name: str, recipe, content: str):
        from cagnet_hf.methods import method_of
        from cagnet_hf.training.learner import Learner
        from cagnet_hf.training.optimizers import build_optimizers

        stage = recipe.stages[name]
        if content == "l2":
            recipe = recipe.model_copy(update={"content_loss": "l2"})
            weights = stage.weights.model_copy(update={"generator_content": 10.0})
            stage = stage.model_copy(update={"weights": weights})
        method = method_of(recipe.method, recipe.model)(recipe, stage, self.model)
        self.model.classifier.train()
        self.model.generator.train()
        return method, Learner(self.accelerator, build_optimizers(self.model, stage)), stage

    @staticmethod
    def _set_rates(learner, stage, iteration: int) -> None:
        from cagnet_hf.training.optimizers import set_learning_rates

        parts = {part: optimizer for part, optimizer in learner.optimizers.items() if part != "network"}
        set_learning_rates(parts, stage, iteration)

    def _real(self, method, learner, latents: "Latents") -> None:
        where, _ = self.cells.draw(method.stage.batch_size)
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
        """Scores of the labelled cells of the test images; and hIoU where a number is added to the logits of unseen
        classes, which is chosen on one half of the images for the other half."""
        import torch

        from cagnet_hf.model.maps_cagnet import with_image_prior

        config = self.model.config
        self.model.eval()
        found = []
        with torch.no_grad():
            for features, labelled in zip(self.test.described, self.test.places, strict=True):
                logits = with_image_prior(self.model.classifier(features[None]), image_prior)
                found.append(logits[0].movedim(0, -1)[labelled])
        logits = torch.cat(found)
        unseen = torch.isin(torch.arange(config.num_labels), torch.tensor(config.unseen_ids))

        def counts(offset: float, half: int):
            of_half = self.test.images % 2 == half
            predicted = (logits[of_half] + offset * unseen).argmax(1)
            cells = self.test.classes[of_half] * config.num_labels + predicted
            return torch.bincount(cells, minlength=config.num_labels**2).view(config.num_labels, -1)

        plain = scores_of_counts(config, counts(0.0, 0) + counts(0.0, 1))
        best = [max(OFFSETS, key=lambda o: scores_of_counts(config, counts(o, half))["hIoU"]) for half in (0, 1)]
        crossed = scores_of_counts(config, counts(best[1], 0) + counts(best[0], 1))
        return {column: plain[column] for column in ("hIoU", "S-mIoU", "U-mIoU")} | {
            "hIoU_at_best_offset": crossed["hIoU"],
            "best_offset": sum(best) / 2,
        }

    def made_features(self) -> dict:
        """What tells made features from those of test images."""
        from made_features import compare_features

        model, latents = self.model, self._latents

        def synthesize(class_ids):
            latent = latents.draw_for(class_ids.flatten()).t()[None, :, None]
            return model.generator(model.embed_classes(class_ids), latent)

        cells = self.test.features, self.test.classes, self.test.images % 2
        return compare_features(model, *cells, synthesize=synthesize)


def scores_of_counts(config, counts) -> dict:
    from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix

    matrix = ConfusionMatrix.of(config)
    matrix.merge(counts)
    return matrix.scores()


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
        context: The variant.
    """

    def __init__(self, mean, deviation, cells: Cells, context: Context):
        self.cells, self.context = cells, context
        if context.standardised:
            of_class, of_cell = means_by_class(mean, cells.classes)
            mean = mean - of_class[of_cell]
            squares, _ = means_by_class(mean.square() + deviation.square(), cells.classes)
            spread = squares.sqrt().clamp_min(1e-6)[of_cell]
            mean, deviation = mean / spread, deviation / spread
        self.mean, self.deviation = mean, deviation

    def regress(self, class_embeddings) -> None:
        """Fit the mean latent of every class, by ridge regression from its vector."""
        import torch
        import torch.nn.functional as F

        if self.context.synthetic != "of_class":
            return
        present = self.cells.classes.unique()
        means, of_cell = means_by_class(self.mean, self.cells.classes)
        vectors = F.normalize(class_embeddings, dim=1)
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
        """What the latent, as the generator hears it, says of image and class; nats where it has a variance."""
        square, variance = self.mean.square(), self.deviation.square()
        divergence = ((square + variance - 1) / 2 - self.deviation.clamp_min(1e-12).log()).mean().item()
        of_image = self.mean.var(0).sum()
        return {
            "nats_per_channel": None if self.context.of == "surroundings" else divergence,
            "variance_from_image": (of_image / (of_image + variance.mean(0).sum())).item(),
            "class_from_latent": self.leak(),
        }

    def leak(self) -> float:
        """Accuracy, averaged over classes, of a probe that reads the class of other images from the latent and its
        squares."""
        import torch
        import torch.nn.functional as F

        halves, drawn = self.cells.images % 2, []
        for half in (0, 1):
            found = []
            for number in self.cells.classes.unique().tolist():
                of_class = ((self.cells.classes == number) & (halves == half)).nonzero().flatten()
                found.append(of_class[torch.randperm(len(of_class))[:PROBED]])
            drawn.append(torch.cat(found))
        latents = [self.draw(where) for where in drawn]
        fitted, tested = (
            (torch.cat([latent, latent.square()], dim=1), self.cells.classes[where])
            for latent, where in zip(latents, drawn, strict=True)
        )
        centre, spread = fitted[0].mean(0), fitted[0].std(0).clamp_min(1e-6)
        weight = torch.zeros(fitted[0].shape[1] + 1, int(self.cells.classes.max()) + 1, requires_grad=True)
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


def means_by_class(values, classes):
    """Means `(K, D)` of values `(P, D)` over the cells of each class that there is, and where a cell's class is."""
    import torch

    present, of_cell, counts = classes.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(present), values.shape[1]).index_add_(0, of_cell, values) / counts[:, None], of_cell


if __name__ == "__main__":
    sys.exit(main())
