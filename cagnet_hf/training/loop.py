"""The training loop: it runs the stages of a recipe, whatever the method."""

import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast, gather_object, set_seed
from tqdm.auto import tqdm

from ..data.label_space import LabelSpace
from ..data.memory import hold
from ..data.stream import LabelledImages, check_training_labels
from ..evaluation.scoring import score
from ..methods import method_of
from ..methods.base import Method
from ..methods.known_names import check_anchors, fit_anchor
from ..methods.options import PassRecipe, Recipe, RecipeError, StageRecipe
from ..model.backbones_cagnet import freeze_batch_norm
from .batches import FeatureBatches, StageBatches
from .checkpoints import RunState, record_scores, save_checkpoint
from .features import FEATURES, FeatureCache, cached_features, check_feature_cache
from .interruption import Stopped, StopSignal
from .learner import Learner, average_statistics
from .measurements import Measurements, NotFinite, total_norm
from .optimizers import build_optimizers, set_learning_rates
from .passes import WholeImages, WholeMaps, WholePass
from .peak_memory import forget_peak_memory, peak_memory
from .record import run_record
from .run_folder import RunFolder
from .setup import (
    LabelMapsAtFeatureStride,
    benchmark_of,
    build_processor,
    build_stage_models,
    dataset_of,
    hand_network_on,
    use_deterministic_algorithms,
)

logger = logging.getLogger(__name__)


class Trainer:
    """One training run in one output folder.

    Args:
        features: Where features of a resting backbone lie, unless the recipe says so; in the output folder when None.
    """

    def __init__(self, recipe: Recipe, output_dir: str | Path, *, resume: bool = False, features: Path | None = None):
        self.recipe, self.output_dir = recipe, Path(output_dir)
        self.features_folder = features or self.output_dir / FEATURES
        self.accelerator = Accelerator(
            log_with=recipe.trackers or None,
            project_config=ProjectConfiguration(str(self.output_dir), logging_dir=str(self.output_dir / "logs")),
        )
        if self.accelerator.mixed_precision == "fp16":
            raise RecipeError("several optimisers share no loss scale, which fp16 needs: use --mixed_precision bf16")
        if self.accelerator.gradient_accumulation_steps > 1:
            raise RecipeError("the launcher cannot accumulate gradients: set accumulate of the stages instead")
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched != self.accelerator.num_processes:
            raise RecipeError(
                f"the launcher started {launched} processes, but each of them trains alone: "
                "on CPUs write ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 …"
            )
        missing = [name for name in recipe.trackers if name not in map(str, self.accelerator.log_with)]
        if missing:
            raise RecipeError(
                f"trackers: {', '.join(missing)} is not installed: install it, or leave it out of trackers"
            )
        self.folder = RunFolder(self.output_dir)
        self._features: tuple[Sequence, FeatureCache] | None = None
        self._test_features: FeatureCache | None = None
        self.state = self.folder.enter(recipe, resume=resume, locks=self.accelerator.is_main_process)
        self.stop = StopSignal()
        use_deterministic_algorithms(recipe.deterministic)
        set_seed(recipe.seed)
        self.benchmark = benchmark_of(recipe)
        self.train_set, self.test_set = (dataset_of(recipe, s) for s in (recipe.train_split, recipe.test_split))
        splits = {"train": self.train_set, "test": self.test_set}
        record = {"run": self.state.run} | run_record(recipe, splits, self.accelerator, self.folder.record())
        self.processor = build_processor(recipe)
        self.models = build_stage_models(recipe, self.benchmark)  # of the stages to come
        self.model = self.models[list(recipe.stages)[self.state.stage]]
        labels = LabelSpace.of(self.model.config)
        self.train_images = LabelledImages(self.train_set, labels, hide_unseen=not recipe.supervised)
        check_training_labels(self.train_images, self.train_set)
        check_feature_cache(recipe, self.models)
        check_anchors(recipe, self.models)
        if recipe.in_memory and recipe.feature_cache is None:
            self.train_images = hold(self.train_images, self.accelerator.device)
        if self.accelerator.process_index:  # the model starts equal everywhere; noise and label maps must differ
            set_seed(recipe.seed + self.accelerator.process_index)
        # Last, and once every process has looked into the folder: a refused recipe leaves it free.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.write(recipe, record)

    def run(self) -> dict:
        """Train every stage that is left; returns the final metrics. The processes stay together for another run.

        Raises:
            Stopped: SIGTERM or Ctrl-C came; what was done is in a checkpoint.
            FloatingPointError: A loss or a weight is not finite.
            OSError: A checkpoint could not be written.
        """
        stages = list(self.recipe.stages)
        with self.stop.heard():
            if self.recipe.trackers:
                config = {"recipe": self.recipe.method, "benchmark": self.recipe.benchmark}
                self.accelerator.init_trackers("cagnet", config=config)
            try:
                # Stages before the one that was interrupted are skipped; a finished last one hands over its model.
                for index in range(min(self.state.stage, len(stages) - 1), len(stages)):
                    StageRun(self, index, stages[index]).run()
            except RuntimeError:
                if self.stop.asked:  # data workers and other processes may have heard the signal first
                    raise Stopped from None
                raise
        for tracker in self.accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:  # a service of others may raise anything, and the model is still to be saved
                logger.warning("%s could not be ended: %s", tracker.name, error)
        return self.state.stages[-1]["metrics"]

    def features(self) -> tuple[Sequence, FeatureCache]:
        """The features of the resting backbone, on the device where the recipe says so, and the cache that has them;
        computed by the first stage that trains on them."""
        if self._features is None:
            images, accelerator = self.train_set, self.accelerator
            cache = cached_features(self.recipe, self.features_folder, images, self.model, self.processor, accelerator)
            self._features = hold(cache, accelerator.device) if self.recipe.in_memory else cache, cache
        return self._features

    def test_features(self) -> FeatureCache | None:
        """The maps of the test images; None where the recipe keeps no features, or images are not scored as they are
        kept."""
        recipe = self.recipe
        if (
            recipe.feature_cache is None
            or recipe.evaluation_protocol != "full"
            or len(self.model.config.test_scales) > 1
        ):
            return None
        if self._test_features is None:
            parts = self.test_set, self.model, self.processor, self.accelerator
            self._test_features = cached_features(recipe, self.features_folder, *parts, scored=True)
        return self._test_features

    def new_method(self, stage: StageRecipe, model) -> Method:
        """The method that runs a stage on a model."""
        return method_of(self.recipe.method, self.recipe.model)(self.recipe, stage, model)


class StageRun:
    """One stage of a run, from the checkpoint it was interrupted at or from its start."""

    def __init__(self, trainer: Trainer, index: int, name: str):
        self.trainer, self.index, self.name = trainer, index, name
        self.recipe, self.stage = trainer.recipe, trainer.recipe.stages[name]
        self.accelerator, self.state, self.stop = trainer.accelerator, trainer.state, trainer.stop
        self.folder = trainer.folder
        self.measured = Measurements()

    def run(self) -> None:
        """Train what is left of the stage and score it."""
        trainer, accelerator, state, stage = self.trainer, self.accelerator, self.state, self.stage
        accelerator.free_memory()
        hand_network_on(trainer.model, to=trainer.models[self.name])
        # Channels last: the layout that convolutions on CPUs and tensor cores are fastest in.
        trainer.model = trainer.models.pop(self.name).to(memory_format=torch.channels_last)
        self.model = accelerator.prepare_model(trainer.model, evaluation_mode=True)
        optimizers = build_optimizers(self.model, stage)
        optimizers = {part: accelerator.prepare_optimizer(optimizer) for part, optimizer in optimizers.items()}
        self.learner = Learner(accelerator, optimizers)
        self.method = trainer.new_method(stage, self.model)
        if state.stage != self.index:
            state.stage, state.iteration, state.peak_memory_mib = self.index, 0, 0
        if state.iteration == 0:
            self._reinitialize()
            self._fit_anchor()
        self.batches = self._new_batches(self.stage)
        with closing(self.batches.start(state.iteration)) as batches:
            with accelerator.main_process_first():
                label_maps = LabelMapsAtFeatureStride(
                    trainer.train_set, trainer.benchmark.label_space, self.recipe, self.model.cagnet
                )
                self.method.prepare(label_maps, trainer.output_dir)
            if self.folder.checkpoint is not None:
                # After everything that draws random numbers, so that the run goes on with the saved ones.
                accelerator.load_state(str(self.folder.checkpoint))
                self.folder.checkpoint = None
            forget_peak_memory(accelerator.device)
            self._train(batches)
        self.method.finish()
        if len(state.stages) <= self.index:  # not scored before an interruption
            self._keep_scores(self._score())

    def _fit_anchor(self) -> None:
        """Fit the generator's anchor where the stage says how."""
        options = getattr(self.stage, "anchor", None)
        if options is not None:
            images = self._new_batches(PassRecipe())
            fit_anchor(self.model, options, images.take(images, 0))

    def _new_batches(self, stage: StageRecipe) -> StageBatches | WholePass:
        trainer, recipe, config = self.trainer, self.recipe, self.model.config
        rows, processor, accelerator = trainer.train_set, trainer.processor, self.accelerator
        if isinstance(stage, PassRecipe):
            if recipe.feature_cache is not None:
                return WholeMaps(stage, trainer.features()[1], accelerator)
            labels = LabelSpace.of(config)
            return WholeImages(stage, rows, labels, processor, accelerator, hide_unseen=not recipe.supervised)
        ignore_index, images = config.ignore_index, trainer.train_images
        if recipe.feature_cache is not None:
            options = {"stride": self.model.cagnet.feature_stride, "ignore_index": ignore_index}
            return FeatureBatches(recipe, stage, self.index, *trainer.features(), accelerator, **options)
        return StageBatches(recipe, stage, self.index, images, rows, processor, accelerator, ignore_index=ignore_index)

    def _reinitialize(self) -> None:
        for part in self.stage.reinitialize:
            getattr(self.model, part).apply(self.model._init_weights)
            for parameter in getattr(self.model, part).parameters():  # every process drew its own
                parameter.data.copy_(broadcast(parameter.data))

    def _train(self, batches) -> None:
        """The iterations of the stage that are left: the loop."""
        state, stage, accelerator, learner = self.state, self.stage, self.accelerator, self.learner
        started, seconds_before = time.monotonic(), state.seconds
        self._set_training_mode()
        bar = tqdm(
            total=stage.iterations, initial=state.iteration, desc=self.name, disable=not accelerator.is_main_process
        )
        with bar, self.stop.until_asked():
            while state.iteration < stage.iterations:
                looks = (state.iteration + 1) % self.recipe.log_every == 0
                learner.with_norms, learner.norms = looks, {}
                set_learning_rates(learner.optimizers, stage, state.iteration)
                taken = self.batches.take(batches, state.iteration)
                # A pass takes long and leaves nothing half done: a signal ends it at once.
                at_once = isinstance(stage, PassRecipe)
                with accelerator.autocast(), self.stop.until_asked(waits=not at_once):
                    terms = self.method.iterate(taken, learner)
                losses = {f"loss/{term}": value for term, value in terms.items()}
                self.measured.add(state.iteration, losses | learner.norms)
                state.iteration += 1
                state.seconds = seconds_before + time.monotonic() - started
                bar.update()
                self._look_up(looks, bar)

    def _look_up(self, logs: bool, bar) -> None:
        """After an iteration: log, save, stop and score where it is time to."""
        state, every = self.state, self.recipe.evaluate_every
        finished = state.iteration == self.stage.iterations
        scores = bool(every) and state.iteration % every == 0 and not finished
        saves = state.iteration % self.recipe.checkpoint_every == 0 or scores or finished
        stops = self._everyone_stops(logs or saves)
        # Before a checkpoint, too: none is made of a loss that is not finite, and no mean spans two runs.
        if logs or saves or stops:
            self._log(bar)
        if saves or stops:
            state.peak_memory_mib = max(state.peak_memory_mib, round(peak_memory(self.accelerator.device)))
            self._save()
        if stops:
            raise Stopped
        if scores:
            with self.stop.until_asked(waits=False):
                self.method.finish()
                self._show(f"{self.name} {state.iteration}", self._score())
            self._set_training_mode()

    def _set_training_mode(self) -> None:
        self.model.train()
        if self.stage.network is None:
            freeze_batch_norm(self.model.cagnet)

    def _everyone_stops(self, may_ask: bool) -> bool:
        """Whether SIGTERM or Ctrl-C came. Several processes agree on it, where they wait for each other anyway."""
        if self.accelerator.num_processes == 1:
            return self.stop.asked
        return may_ask and any(gather_object([self.stop.asked]))

    def _log(self, bar) -> None:
        """Means since the last call go to the history, the bar and the trackers; a non-finite one stops the run."""
        means, problem = {}, None
        try:
            means = self.measured.take()
        except NotFinite as error:
            images = self.batches.image_ids(error.iteration)
            made_of = f" (images {', '.join(images)})" if images else " (a synthetic step)"
            problem = error.iteration, f"{error.what} is not finite", made_of
        self._stop_where_not_finite(problem)
        iteration, iterations = self.state.iteration, self.stage.iterations
        before = list(self.recipe.stages.values())[: self.index]
        step = sum(stage.iterations for stage in before) + iteration
        rates = {
            part: optimizer.lr_at(iteration - 1, iterations) for part, optimizer in self.stage.optimizers().items()
        }
        means |= {f"learning_rate/{part}": rate for part, rate in rates.items()}
        self.state.history.append({"iteration": step, "stage": self.name, **means})
        losses = {name.removeprefix("loss/"): value for name, value in means.items() if name.startswith("loss/")}
        bar.set_postfix({term: f"{value:.3g}" for term, value in losses.items()})
        self.accelerator.log(means, step=step)

    def _stop_where_not_finite(self, problem: tuple[int, str, str] | None) -> None:
        """End every process's run at the earliest problem that one of them has."""
        problems = [problem] if self.accelerator.num_processes == 1 else gather_object([problem])
        found = sorted(problem for problem in problems if problem is not None)
        if found:
            iteration, what, made_of = found[0]
            kept = self.folder.newest_checkpoint or "none was saved yet"
            raise FloatingPointError(
                f"{what} at iteration {iteration + 1} of {self.name}{made_of}; lower the learning rate, or look at "
                f"the images; last good checkpoint: {kept}"
            )

    def _save(self) -> None:
        average_statistics(self.accelerator, self.model)
        floating = [values for values in self.model.state_dict().values() if values.is_floating_point()]
        problem = None
        if not total_norm(floating).isfinite():  # a gradient may overflow where every loss is finite
            problem = self.state.iteration - 1, "a weight is not finite or far too large", ""
        self._stop_where_not_finite(problem)
        save_checkpoint(self.folder.checkpoints, self.accelerator, self.state, keep=self.recipe.checkpoints_kept)

    def _score(self) -> dict:
        trainer = self.trainer
        cache = trainer.test_features()
        options = {"protocol": self.recipe.evaluation_protocol, "accelerator": self.accelerator}
        maps = None if cache is None else cache.in_order()
        return score(self.model, trainer.processor, trainer.test_set, maps=maps, **options)

    def _keep_scores(self, metrics: dict) -> None:
        """The scores at the end of the stage go to the state of the run and into its last checkpoint."""
        self._show(self.name, metrics)
        state = self.state
        before = state.stages[: self.index]
        seconds = round(state.seconds - sum(entry["seconds"] for entry in before), 1)
        facts = {"name": self.name, "iterations": self.stage.iterations, "seconds": seconds}
        facts["peak_memory_mib"] = state.peak_memory_mib
        state.stages = [*before, facts | {"metrics": metrics}]
        if self.accelerator.is_main_process:
            record_scores(self.folder.checkpoints, state)

    def _show(self, title: str, metrics: dict) -> None:
        columns = ("S-mIoU", "U-mIoU", "hIoU", "PA")
        line = "  ".join(f"{key} {metrics[key]:.4f}" for key in columns if metrics[key] is not None)
        if self.accelerator.is_main_process:
            logger.info("%s: %s  (%.0f s)", title, line, self.state.seconds)


def metrics_json(state: RunState) -> str:
    """`metrics.json`: the final metrics, and those after every stage."""
    final = dict(state.stages[-1]["metrics"])
    return json.dumps(final | {"seconds": round(state.seconds, 1), "stages": state.stages}, indent=1)
