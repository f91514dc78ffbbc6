"""A pre-trained CaGNet whose network rests, and its last stages repeated on cells."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from made_features import compare_features

from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix
from cagnet_hf.methods import method_of
from cagnet_hf.methods.base import RealStep
from cagnet_hf.methods.losses import kl_to_standard_normal
from cagnet_hf.model.maps_cagnet import mean_cross_entropy, with_image_prior
from cagnet_hf.model.parts_cagnet import GENERATORS, ContextualModule
from cagnet_hf.training.features import cached_features
from cagnet_hf.training.learner import Learner
from cagnet_hf.training.optimizers import build_optimizers, set_learning_rates
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import dataset_of
from cagnet_hf.weights.folders import load_model

from .cells import Cells, Latents, latent_of_cells
from .variants import Context, Schedule

OFFSETS = [step / 2 for step in range(-8, 13)]  # added to the logits of unseen classes; the best is chosen crosswise


class Rested:
    """A pre-trained network that rests, with its cells, and the last stages repeated on them.

    Args:
        folder: The finished pre-training.
        recipe: The recipe whose last stages are repeated, with the data, vectors and seed of the run.
    """

    def __init__(self, folder: Path, recipe: str):
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
        self.model.load_state_dict(self.start)
        new = GENERATORS.build(self.model.config)  # weights that were loaded would not be drawn anew
        new.apply(self.model._init_weights)
        self.model.generator.load_state_dict(new.state_dict())

    def latents_of(self, context: Context):
        """Mean and deviation `(P, D)` of the latents of the training cells."""
        cells = self.cells
        if context.of == "noise":
            return torch.zeros_like(cells.features), torch.ones_like(cells.features)
        if context.of == "surroundings":
            mean = cells.surroundings - cells.surroundings.mean(0)
            return mean / mean.std(0).clamp_min(1e-6), torch.zeros_like(mean)
        return latent_of_cells(self.learnt_module(context.kl), cells)

    def learnt_module(self, kl: float):
        """A contextual module that has learnt with a generator, by the papers' text."""
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
        parts = {part: optimizer for part, optimizer in learner.optimizers.items() if part != "network"}
        set_learning_rates(parts, stage, iteration)

    def _real(self, method, learner, latents: "Latents") -> None:
        where, _ = self.cells.draw(method.stage.batch_size)
        learner.backward(sum(self._terms(method, where, latents.draw(where)).weighted))

    def _terms(self, method, where, latent):
        """The weighted losses of a real step on cells."""
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
        model, stage = self.model, method.stage
        truth = method.draw_label_maps((1, 1, stage.batch_size * stage.synthetic_size**2))
        with torch.no_grad():
            latent = self._latents.draw_for(truth.flatten()).t()[None, :, None]
            made = model.generator(model.embed_classes(truth), latent)
        logits = model.classifier(made)
        if corrected:
            logits = logits + method.class_odds().log()[None, :, None, None]
        return stage.weights.synthetic_step * F.cross_entropy(logits, truth)

    def scores(self, image_prior: float = 0.0) -> dict:
        """Scores of the labelled cells of the test images; and hIoU where a number is added to the logits of unseen
        classes, which is chosen on one half of the images for the other half."""
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
        model, latents = self.model, self._latents

        def synthesize(class_ids):
            latent = latents.draw_for(class_ids.flatten()).t()[None, :, None]
            return model.generator(model.embed_classes(class_ids), latent)

        cells = self.test.features, self.test.classes, self.test.images % 2
        return compare_features(model, *cells, synthesize=synthesize)


def scores_of_counts(config, counts) -> dict:

    matrix = ConfusionMatrix.of(config)
    matrix.merge(counts)
    return matrix.scores()
