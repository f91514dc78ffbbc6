"""The training loop: it runs the stages of a recipe, whatever the method."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast, gather_object, set_seed
from tqdm import tqdm

from ..data.label_space import LabelSpace
from ..data.memory import hold
from ..data.rows import StreamedRows
from ..data.stream import EndlessBatches, LabelledImages, StreamedBatches, TrainingBatches, TrainingExamples
from ..data.transforms import TrainingTransform
from ..evaluation.scoring import score
from ..files import write_text_whole
from ..methods.steps import LabelMapSource, updates
from ..model.modeling_cagnet import freeze_batch_norm
from .checkpoints import RunState, checkpoints, load_run_state, record_scores, save_checkpoint
from .interruption import Stopped, StopSignal
from .measurements import Measurements, NotFinite, gradient_norms, total_norm
from .optimizers import PARTS, build_optimizers, set_learning_rates
from .peak_memory import forget_peak_memory, peak_memory
from .recipe import Recipe, RecipeError, StageRecipe, changed_keys
from .record import RECORD_FILE, run_record
from .setup import (
    benchmark_of,
    build_processor,
    build_stage_models,
    dataset_of,
    hand_network_on,
    label_map_source,
    patches_of,
    use_deterministic_algorithms,
)

RECIPE_FILE, PATCHES = "recipe.yaml", "patches"


class Trainer:
    """One training run in one output folder."""

    def __init__(self, recipe: Recipe, output_dir: str | Path, *, resume: bool = False):
        self.recipe = recipe
        self.output_dir = Path(output_dir)
        self.accelerator = Accelerator(
            log_with=recipe.trackers or None,
            project_config=ProjectConfiguration(str(self.output_dir), logging_dir=str(self.output_dir / "logs")),
        )
        if self.accelerator.mixed_precision == "fp16":
            raise RecipeError("several optimisers share no loss scale, which fp16 needs: use --mixed_precision bf16")
        if self.accelerator.gradient_accumulation_steps > 1:
            raise RecipeError("the launcher cannot accumulate gradients: set accumulate of the stages instead")
        self.checkpoint = self._checkpoint_to_resume(resume)
        self.state = load_run_state(self.checkpoint) if self.checkpoint else RunState()
        self.stop = StopSignal()
        use_deterministic_algorithms(recipe.deterministic)
        set_seed(recipe.seed)
        self.benchmark = benchmark_of(recipe)
        self.train_set, self.test_set = (dataset_of(recipe, s) for s in (recipe.train_split, recipe.test_split))
        record = self._run_record()
        self.processor = build_processor(recipe)
        self.models = build_stage_models(recipe, self.benchmark)  # of the stages to come
        self.model = self.models[list(recipe.stages)[self.state.stage]]
        labels = LabelSpace.of(self.model.config)
        self.train_images = LabelledImages(self.train_set, labels, hide_unseen=not recipe.supervised)
        if recipe.in_memory:
            self.train_images = hold(self.train_images, self.accelerator.device)
        if self.accelerator.process_index:  # the model starts equal everywhere; noise and label maps must differ
            set_seed(recipe.seed + self.accelerator.process_index)
        self._record(record)  # last: a refused recipe leaves the folder free

    def _checkpoint_to_resume(self, resume: bool) -> Path | None:
        """The checkpoint to resume from, if any; refuses a folder that holds another run."""
        record = self.output_dir / RECIPE_FILE
        if not record.is_file():
            return None
        if not resume:
            raise RecipeError(f"{self.output_dir} holds a run: add --resume, or choose another --output_dir")
        recorded = Recipe.model_validate(yaml.safe_load(record.read_text(encoding="utf-8")))
        changed = changed_keys(recorded, self.recipe)
        if changed:
            raise RecipeError(f"cannot resume {self.output_dir}: the recipe changed in {', '.join(changed)}")
        return next(reversed(checkpoints(self.output_dir / "checkpoints")), None)

    def _run_record(self) -> dict:
        """What `run.json` will say; refuses to go on with other data or another number of processes."""
        earlier, path = None, self.output_dir / RECORD_FILE
        if self.checkpoint is not None and path.is_file():
            earlier = json.loads(path.read_text(encoding="utf-8"))
        return run_record(self.recipe, {"train": self.train_set, "test": self.test_set}, self.accelerator, earlier)

    def _record(self, record: dict) -> None:
        """Write down what this folder's run depends on, once every process has looked into it."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            recipe = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False)
            write_text_whole(self.output_dir / RECORD_FILE, json.dumps(record, indent=1) + "\n")
            write_text_whole(self.output_dir / RECIPE_FILE, recipe)

    def run(self) -> dict:
        """Train every stage that is left; returns the final metrics. The processes stay together for another run.

        Raises:
            Stopped: SIGTERM or Ctrl-C came; what was done is in a checkpoint.
            FloatingPointError: A loss or a weight is not finite.
            OSError: A checkpoint could not be written.
        """
        with self.stop.heard():
            if self.recipe.trackers:
                self.accelerator.init_trackers(
                    "cagnet", config={"recipe": self.recipe.method, "benchmark": self.recipe.benchmark}
                )
            stages = list(self.recipe.stages.items())
            try:
                # Stages before the one that was interrupted are skipped; a finished last one hands over its model.
                for index in range(min(self.state.stage, len(stages) - 1), len(stages)):
                    self._run_stage(index, *stages[index])
            except RuntimeError:
                if self.stop.asked:  # data workers and other processes may have heard the signal first
                    raise Stopped from None
                raise
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self.state.stages[-1]["metrics"]

    def _run_stage(self, index: int, name: str, stage: StageRecipe) -> None:
        accelerator, state = self.accelerator, self.state
        accelerator.free_memory()
        hand_network_on(self.model, to=self.models[name])
        # Channels last: the layout that convolutions on CPUs and tensor cores are fastest in.
        self.model = self.models.pop(name).to(memory_format=torch.channels_last)
        model = accelerator.prepare_model(self.model, evaluation_mode=True)
        optimizers = {
            part: accelerator.prepare_optimizer(optimizer)
            for part, optimizer in build_optimizers(model, stage).items()
        }
        if state.stage != index:
            state.stage, state.iteration, state.peak_memory_mib = index, 0, 0
        if state.iteration == 0:
            for part in stage.reinitialize:
                getattr(model, part).apply(model._init_weights)
                for parameter in getattr(model, part).parameters():  # every process drew its own
                    parameter.data.copy_(broadcast(parameter.data))
        with closing(self._batches(index, stage, start=state.iteration)) as batches:
            label_maps = label_map_source(self.recipe, stage, model, self._patches(model, stage))
            if self.checkpoint is not None:
                # After everything that draws random numbers, so that the run goes on with the saved ones.
                accelerator.load_state(str(self.checkpoint))
                self.checkpoint = None
            forget_peak_memory(accelerator.device)
            self._train(name, stage, model, optimizers, batches, label_maps)
        if len(state.stages) > index:  # scored before the interruption
            return
        metrics = self._score(model)
        self._show(name, metrics)
        before = state.stages[:index]
        seconds = round(state.seconds - sum(entry["seconds"] for entry in before), 1)
        facts = {"name": name, "iterations": stage.iterations, "seconds": seconds}
        facts["peak_memory_mib"] = state.peak_memory_mib
        state.stages = [*before, facts | {"metrics": metrics}]
        if accelerator.is_main_process:
            record_scores(self.output_dir / "checkpoints", state)

    def _train(self, name: str, stage: StageRecipe, model, optimizers, batches, label_maps: LabelMapSource) -> None:
        """The iterations of a stage that are left."""
        accelerator, state = self.accelerator, self.state
        started, seconds_before = time.monotonic(), state.seconds
        measured = Measurements()
        self._set_training_mode(model, stage)
        with (
            tqdm(
                total=stage.iterations, initial=state.iteration, desc=name, disable=not accelerator.is_main_process
            ) as bar,
            self.stop.until_asked(),
        ):
            while state.iteration < stage.iterations:
                logs = (state.iteration + 1) % self.recipe.log_every == 0
                set_learning_rates(optimizers, stage, state.iteration)
                for values in self._iterate(model, optimizers, batches, stage, label_maps, with_norms=logs):
                    measured.add(state.iteration, values)
                state.iteration += 1
                state.seconds = seconds_before + time.monotonic() - started
                bar.update()
                finished = state.iteration == stage.iterations
                every = self.recipe.evaluate_every
                scores = bool(every) and state.iteration % every == 0 and not finished
                saves = state.iteration % self.recipe.checkpoint_every == 0 or scores or finished
                stops = self._everyone_stops(logs or saves)
                # Before a checkpoint, too: none is made of a loss that is not finite, and no mean spans two runs.
                if logs or saves or stops:
                    self._log(name, stage, measured, bar)
                if saves or stops:
                    peak = round(peak_memory(accelerator.device))
                    state.peak_memory_mib = max(state.peak_memory_mib, peak)
                    self._save(name, model)
                if stops:
                    raise Stopped
                if scores:
                    with self.stop.until_asked(waits=False):
                        self._show(f"{name} {state.iteration}", self._score(model))
                    self._set_training_mode(model, stage)

    def _set_training_mode(self, model, stage: StageRecipe) -> None:
        model.train()
        if stage.network is None:
            freeze_batch_norm(model.cagnet)

    def _batches(self, index: int, stage: StageRecipe, start: int) -> TrainingBatches:
        """Training batches of the stage from iteration `start` on; only real steps take one."""
        recipe, accelerator = self.recipe, self.accelerator
        augmentation = stage.augmentation or recipe.augmentation
        ignore_index = self.model.config.ignore_index
        transform = TrainingTransform(
            self.processor, stage.crop_size, **augmentation.model_dump(), ignore_index=ignore_index
        )
        # What is on the device already needs no workers.
        num_workers = 0 if recipe.in_memory else recipe.num_workers
        pin_memory = accelerator.device.type == "cuda" and not recipe.in_memory
        examples = TrainingExamples(self.train_images, transform, self._seed_of_batches(index))
        order = self._order_of_batches(index, stage, start)
        return TrainingBatches(examples, order, num_workers, pin_memory)

    def _order_of_batches(self, index: int, stage: StageRecipe, start: int) -> EndlessBatches | StreamedBatches:
        streamed = isinstance(self.train_set, StreamedRows)
        return (StreamedBatches if streamed else EndlessBatches)(
            self.train_set if streamed else len(self.train_set),
            stage.batch_size,
            self._seed_of_batches(index),
            start=stage.accumulate * sum(not stage.is_synthetic(i) for i in range(start)),  # real steps done
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )

    def _images_of(self, stage: StageRecipe, iteration: int) -> list[str]:
        """The ids of the images that this process saw in an iteration of the current stage."""
        if stage.is_synthetic(iteration):
            return []
        batches = islice(self._order_of_batches(self.state.stage, stage, iteration), stage.accumulate)
        rows = [row for batch in batches for _position, row in batch]
        return self.train_set.image_ids(rows)

    def _seed_of_batches(self, index: int) -> int:
        return self.recipe.seed * 1000 + index

    def _patches(self, model, stage: StageRecipe) -> torch.Tensor | None:
        """The patches that a stage's synthetic label maps are made of; None for single pixels."""
        if model.config.patch_size == 1 or not stage.synthetic_block:
            return None
        with self.accelerator.main_process_first():
            return patches_of(self.recipe, model, self.benchmark, self.train_set, self.output_dir / PATCHES)

    def _iterate(
        self, model, optimizers, batches, stage: StageRecipe, label_maps, *, with_norms: bool
    ) -> Iterator[dict[str, torch.Tensor]]:
        """One iteration: its updates are made here; their loss terms and gradient norms are handed out."""
        accelerator = self.accelerator
        parts = [
            updates(model, self._next_batch(batches, stage), self.recipe, stage, label_maps)
            for _ in range(stage.accumulate)
        ]
        while True:
            values: dict[str, torch.Tensor] = {}
            for number, part in enumerate(parts):
                with accelerator.autocast():
                    result = next(part, None)
                if result is None:
                    return
                for term, value in result.terms.items():
                    values[f"loss/{term}"] = values.get(f"loss/{term}", 0) + value / len(parts)
                if result.total is not None:
                    if number == 0:
                        for optimizer in optimizers.values():
                            optimizer.zero_grad()
                    accelerator.backward(result.total / len(parts))
            if result.total is not None:
                stepping = {part: optimizer for part, optimizer in optimizers.items() if part in result.learners}
                if accelerator.num_processes > 1:
                    average_gradients(accelerator, stepping.values())
                if with_norms:
                    values |= gradient_norms(stepping)
                for optimizer in stepping.values():
                    optimizer.step()
            yield values

    def _next_batch(self, batches, stage: StageRecipe) -> dict[str, torch.Tensor] | None:
        """A batch on the device for a real step; None for a synthetic one."""
        if stage.is_synthetic(self.state.iteration):
            return None
        return {key: value.to(self.accelerator.device, non_blocking=True) for key, value in next(batches).items()}

    def _everyone_stops(self, may_ask: bool) -> bool:
        """Whether SIGTERM or Ctrl-C came. Several processes agree on it, where they wait for each other anyway."""
        if self.accelerator.num_processes == 1:
            return self.stop.asked
        return may_ask and any(gather_object([self.stop.asked]))

    def _log(self, stage_name: str, stage: StageRecipe, measured: Measurements, bar) -> None:
        """Means since the last call go to the history, the bar and the trackers; a non-finite one stops the run."""
        means, problem = {}, None
        try:
            means = measured.take()
        except NotFinite as error:
            images = self._images_of(stage, error.iteration)
            made_of = f" (images {', '.join(images)})" if images else " (a synthetic step)"
            problem = error.iteration, f"{error.what} is not finite", made_of
        self._stop_where_not_finite(problem, stage_name)
        step = sum(s.iterations for s in list(self.recipe.stages.values())[: self.state.stage]) + self.state.iteration
        means |= {
            f"learning_rate/{part}": getattr(stage, part).lr_at(self.state.iteration - 1, stage.iterations)
            for part in PARTS
            if getattr(stage, part) is not None
        }
        self.state.history.append({"iteration": step, "stage": stage_name, **means})
        losses = {name.removeprefix("loss/"): value for name, value in means.items() if name.startswith("loss/")}
        bar.set_postfix({term: f"{value:.3g}" for term, value in losses.items()})
        self.accelerator.log(means, step=step)

    def _stop_where_not_finite(self, problem: tuple[int, str, str] | None, stage_name: str) -> None:
        """End every process's run at the earliest problem that one of them has."""
        problems = [problem] if self.accelerator.num_processes == 1 else gather_object([problem])
        found = sorted(problem for problem in problems if problem is not None)
        if found:
            iteration, what, made_of = found[0]
            kept = next(reversed(checkpoints(self.output_dir / "checkpoints")), "none was saved yet")
            raise FloatingPointError(
                f"{what} at iteration {iteration + 1} of {stage_name}{made_of}; lower the learning rate, or look at "
                f"the images; last good checkpoint: {kept}"
            )

    def _save(self, stage_name: str, model) -> None:
        average_statistics(self.accelerator, model)
        floating = [values for values in model.state_dict().values() if values.is_floating_point()]
        problem = None
        if not total_norm(floating).isfinite():  # a gradient may overflow where every loss is finite
            problem = self.state.iteration - 1, "a weight is not finite or far too large", ""
        self._stop_where_not_finite(problem, stage_name)
        save_checkpoint(
            self.output_dir / "checkpoints", self.accelerator, self.state, keep=self.recipe.checkpoints_kept
        )

    def _score(self, model) -> dict:
        return score(
            model,
            self.processor,
            self.test_set,
            protocol=self.recipe.evaluation_protocol,
            accelerator=self.accelerator,
        )

    def _show(self, title: str, metrics: dict) -> None:
        columns = ("S-mIoU", "U-mIoU", "hIoU", "PA")
        line = "  ".join(f"{key} {metrics[key]:.4f}" for key in columns if metrics[key] is not None)
        self.accelerator.print(f"{title}: {line}  ({self.state.seconds:.0f} s)")


def average_gradients(accelerator: Accelerator, optimizers) -> None:
    """Average gradients over processes. Steps use different parts of the model, so each step sends what it updates.

    A parameter that one process did not reach (a crop without a labelled pixel) counts as zero there; one that none
    reached keeps no gradient, so that its optimiser leaves it alone.
    """
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    reached = torch.tensor([float(p.grad is not None) for p in parameters], device=accelerator.device)
    reached = accelerator.reduce(reached, "sum").tolist()
    parameters = [parameter for parameter, processes in zip(parameters, reached, strict=True) if processes]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]), "mean")
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(gradient.view_as(parameter))


def average_statistics(accelerator: Accelerator, model) -> None:
    """Average the running statistics of batch normalisation over processes, which see different images."""
    if accelerator.num_processes > 1:
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(accelerator.reduce(buffer, "mean"))


def metrics_json(state: RunState) -> str:
    """`metrics.json`: the final metrics, and those after every stage."""
    final = dict(state.stages[-1]["metrics"])
    return json.dumps(final | {"seconds": round(state.seconds, 1), "stages": state.stages}, indent=1)
