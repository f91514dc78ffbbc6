"""A batch in parts, on one process or on two, teaches what the whole batch teaches."""

import copy
import os
import subprocess
import sys
from contextlib import closing
from itertools import islice

import pytest
import torch
from conftest import REPOSITORY
from tiny import method_for, new_model, noise_batch, real_step, tiny_recipe

from cagnet_hf.methods.options import RecipeError
from cagnet_hf.training.batches import StageBatches
from cagnet_hf.training.learner import Learner
from cagnet_hf.training.loop import Trainer
from cagnet_hf.training.optimizers import build_optimizers
from cagnet_hf.training.setup import benchmark_of, build_stage_models

# Without what a batch is drawn or normalised by: noise, dropout, statistics of a batch, and the MMD of its classes.
FIXED = [
    "model.freeze_batch_norm=true",
    "model.classifier_dropout=0",
    "model.generator_dropout=[0, 0]",
    "content_loss=l2",
]
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


def half_and_whole(index: int):
    """(model with gradients, optimisers, terms) of a real step on the image `index` alone and on both images."""
    recipe, results = tiny_recipe("cagnet_pi", *FIXED), []
    for images in (slice(index, index + 1), slice(None)):
        model, optimizers = new_model(recipe)
        model.double().cagnet.context.register_forward_pre_hook(lambda _, inputs: (inputs[0], torch.zeros(1)))
        batch = {key: value[images] for key, value in equally_labelled_batch().items()}
        result = real_step(model, batch, recipe, recipe.stages["pretrain"])
        result.total.backward()
        results.append((model, optimizers, result.terms))
    return results


def equally_labelled_batch() -> dict[str, torch.Tensor]:
    """As many labelled pixels in each image: a process takes the mean over its own."""
    batch = noise_batch()
    batch["pixel_values"] = batch["pixel_values"].double()
    batch["labels"] = torch.where(batch["labels"] == 255, 3, batch["labels"])
    batch["labels"][:, :8] = 255
    return batch


def check_gradients(parts, whole) -> None:
    learning = {name: parameter for name, parameter in whole.named_parameters() if parameter.grad is not None}
    assert learning.keys() == parts.keys()
    for name, parameter in learning.items():
        torch.testing.assert_close(parts[name], parameter.grad, **TOLERANCE, msg=name)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    halves = [half_and_whole(index) for index in (0, 1)]
    gradients = [{n: p.grad for n, p in half[0][0].named_parameters() if p.grad is not None} for half in halves]
    whole = halves[0][1]
    check_gradients({name: (gradients[0][name] + gradients[1][name]) / 2 for name in gradients[0]}, whole[0])
    for term, value in whole[2].items():
        torch.testing.assert_close((halves[0][0][2][term] + halves[1][0][2][term]) / 2, value, **TOLERANCE)


IN_EACH_PROCESS = """
from accelerate import Accelerator
from test_scaling import TOLERANCE, check_gradients, half_and_whole
from cagnet_hf.training.learner import average_gradients
import torch
accelerator = Accelerator(cpu=True)
(model, optimizers, terms), whole = half_and_whole(accelerator.process_index)
average_gradients(accelerator, optimizers.values())
learning = {name: parameter for name, parameter in model.named_parameters() if parameter.grad is not None}
check_gradients({name: parameter.grad for name, parameter in learning.items()}, whole[0])
for term, value in whole[2].items():
    torch.testing.assert_close(accelerator.reduce(terms[term].clone(), "mean"), value, **TOLERANCE)
assert accelerator.num_processes == 2
accelerator.state.destroy_process_group()
"""


def test_two_processes_give_the_losses_and_gradients_of_twice_the_batch(tmp_path):
    script = tmp_path / "each.py"
    script.write_text(IN_EACH_PROCESS)
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(launch, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.fixture
def accumulating(tiny_dataset, tmp_path):
    """(trainer, its only stage) of SPNet, which draws nothing in a step; three batches of two make one."""
    keys = ["trackers=[]", "num_workers=0", f"dataset={tiny_dataset}", "model.freeze_batch_norm=true"]
    keys += ["stages.pretrain.batch_size=2", "stages.pretrain.accumulate=3"]
    recipe = tiny_recipe("spnet", *keys)
    return Trainer(recipe, tmp_path / "run"), recipe.stages["pretrain"]


def batches_of(trainer, stage) -> StageBatches:
    images, rows = trainer.train_images, trainer.train_set
    of_run = (images, rows, trainer.processor, trainer.accelerator)
    return StageBatches(trainer.recipe, stage, 0, *of_run, ignore_index=trainer.model.config.ignore_index)


def test_a_step_has_the_mean_gradient_and_loss_of_its_batches(accumulating):
    trainer, stage = accumulating
    batches = batches_of(trainer, stage)
    with closing(batches.start(0)) as stream:
        three = batches.take(stream, 0)
    optimizers = build_optimizers(trainer.model.train(), stage)
    whole, losses = copy.deepcopy(trainer.model), []
    for batch in three:
        result = real_step(whole, batch, trainer.recipe, stage)
        (result.total / 3).backward()
        losses.append(result.terms["classification"])
    before = copy.deepcopy(trainer.model.state_dict())
    learner = Learner(trainer.accelerator, optimizers)
    terms = method_for(trainer.model, trainer.recipe, stage).iterate(three, learner)
    torch.testing.assert_close(terms["classification"], sum(losses) / 3)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    for name, parameter in whole.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_a_run_goes_on_with_the_batches_that_follow(accumulating):
    trainer, stage = accumulating
    batches = batches_of(trainer, stage)
    positions = [position for batch in islice(batches._order(2), 3) for position, _ in batch]
    assert positions == list(range(12, 18))
    assert len(batches.image_ids(2)) == 6


@pytest.mark.parametrize(("method", "stage"), [("zs3net", "finetune"), ("gaussian", "fit")])
def test_steps_that_are_no_gradient_of_a_batch_are_not_accumulated(method, stage):
    recipe = tiny_recipe(method, f"stages.{stage}.accumulate=2")
    with pytest.raises(RecipeError, match=rf"stages\.{stage}\.accumulate: its steps are no gradient of a batch"):
        build_stage_models(recipe, benchmark_of(recipe))


def test_accumulation_by_the_launcher_is_refused_rather_than_done_by_halves(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with pytest.raises(ValueError, match="set accumulate of the stages instead"):
        Trainer(tiny_recipe("cagnet_pi", "trackers=[]"), tmp_path)
