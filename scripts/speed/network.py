"""Lines of the network: steps, evaluation, prediction, and on a GPU what share of its ceilings they reach."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from cagnet_hf.methods.steps import LabelMapSource, updates, weights_fixed
from torch.utils.flop_counter import FlopCounterMode

from cagnet_hf.methods.options import Recipe, StageRecipe
from cagnet_hf.model.configuration_cagnet import CaGNetConfig
from cagnet_hf.model.maps_cagnet import resize_labels, to_pixel_list
from cagnet_hf.model.modeling_cagnet import CaGNetForSemanticSegmentation
from cagnet_hf.training.optimizers import build_optimizers
from cagnet_hf.training.peak_memory import forget_peak_memory, peak_memory
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import label_map_source

from .measuring import Line, Setting

NUM_CLASSES, UNSEEN = 20, tuple(range(15, 20))  # Pascal-VOC's
PATCHES_IN_BANK = 64  # random ones: what a step costs does not depend on what the patches show


def new_model(setting: Setting, **fields) -> CaGNetForSemanticSegmentation:
    """A model with random weights in the layout that it is trained in."""
    torch.manual_seed(0)
    classes = {"id2label": {i: f"class {i}" for i in range(NUM_CLASSES)}, "unseen_ids": UNSEEN}
    model = CaGNetForSemanticSegmentation(CaGNetConfig(**classes, **fields))
    torch.nn.init.normal_(model.class_embeddings)
    return model.to(setting.device, memory_format=torch.channels_last)


class Stage:
    """A stage of the published recipe on noise images: its steps and what its parts alone cost."""

    def __init__(self, setting: Setting, method: str, name: str, model: CaGNetForSemanticSegmentation | None = None):
        self.setting = setting
        self.recipe: Recipe = load_recipe(f"pascal_voc/{method}")
        self.stage: StageRecipe = self.recipe.stages[name]
        if not setting.published:  # half the side, one image: a thirty-second of the work, in the same proportions
            self.stage = self.stage.model_copy(update={"crop_size": self.stage.crop_size // 2, "batch_size": 1})
        elif not setting.on_gpu:
            self.stage = self.stage.model_copy(update={"batch_size": 2})
        self.model = model or new_model(setting, **self.recipe.model)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.enter()
        self.batch = self._batch()
        self.label_maps: LabelMapSource = label_map_source(
            self.recipe, self.stage, self.model, self._bank() if self.model.config.patch_size > 1 else None
        )

    def enter(self) -> None:
        """Let the parts of this stage learn; stages that share a model take turns."""
        self.optimizers = build_optimizers(self.model, self.stage)
        self.model.train()

    def _batch(self) -> dict[str, torch.Tensor]:
        """Images of noise; labels in blocks of a quarter of a side, one in sixteen ignored."""
        size, count = self.stage.crop_size, self.stage.batch_size
        pixels = torch.randn(count, 3, size, size).contiguous(memory_format=torch.channels_last)
        blocks = torch.randint(NUM_CLASSES - len(UNSEEN), (count, 4, 4))
        blocks[:, 0, 0] = 255
        labels = resize_labels(blocks, (size, size))
        batch = {"pixel_values": pixels, "labels": labels, "padding": torch.zeros_like(labels, dtype=torch.bool)}
        return {key: value.to(self.setting.device) for key, value in batch.items()}

    def _bank(self) -> torch.Tensor:
        size = self.model.config.patch_size
        return torch.randint(NUM_CLASSES, (PATCHES_IN_BANK, size, size), device=self.setting.device)

    def step(self, batch: dict[str, torch.Tensor] | None) -> None:
        """An iteration of the training loop: real with a batch, synthetic without."""
        with self.setting.autocast():
            (result,) = updates(self.model, batch, self.recipe, self.stage, self.label_maps)
        self._learn(result.total, result.learners)

    def _learn(self, total: torch.Tensor, parts) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        total.backward()
        for part in parts:
            if part in self.optimizers:
                self.optimizers[part].step()

    def network_alone(self) -> None:
        """Backbone, pyramid and contextual module at the three scales, forward and backward."""
        self.model.zero_grad()
        with self.setting.autocast():
            maps = self.model.cagnet.multi_scale(self.batch["pixel_values"], self.stage.scales)[1]
        sum(features.float().mean() for features in maps).backward()

    def parts_alone(self) -> None:
        """The network forward; generator, critic and classifier forward and backward, each where a real step needs it.

        The critic sees real and made features, and the made ones once more for the generator.
        """
        model, classifier = self.model, self.model.classifier
        model.zero_grad()
        with self.setting.autocast():
            with torch.no_grad():
                output, maps = model.cagnet.multi_scale(self.batch["pixel_values"], self.stage.scales)
                labels = resize_labels(self.batch["labels"], maps[0].shape[-2:])
                labelled = labels != model.config.ignore_index
                real, latent = (to_pixel_list(m, labelled) for m in (output.features, output.latent))
                embeddings = model.embed_classes(labels[labelled][None, None])
            made = model.generator(embeddings, latent)
            fixed = made.detach()
            scores = [*model.classify_scales(maps), classifier(fixed)]
            scores += [classifier.criticise(features) for features in (real, fixed)]
            with weights_fixed(classifier):
                scores.append(classifier.criticise(made))
        sum(score.float().mean() for score in scores).backward()

    def generator_and_classifier(self) -> Callable[[], None]:
        """What a synthetic step cannot do without, on inputs that lie ready: `run()`."""
        model, side = self.model, self.stage.synthetic_size
        count = (self.stage.batch_size, side, side)  # patch-wise, too, as many pixels as the map has
        ids = torch.randint(NUM_CLASSES, (1, 1, count[0] * side * side), device=self.setting.device)
        embeddings = model.embed_classes(ids)
        latent = torch.randn_like(embeddings)
        centres = ids.view(count)[:, 1::3, 1::3]

        def run():
            model.zero_grad()
            with self.setting.autocast():
                with torch.no_grad():
                    features = model.generator(embeddings, latent)
                if model.config.patch_size == 1:
                    loss = F.cross_entropy(model.classifier(features), ids)
                else:
                    tiled = features[0, :, 0].t().view(*count, -1).movedim(-1, 1)
                    loss = F.cross_entropy(model.classifier.classify_centres(tiled), centres)
            loss.backward()

        return run


def network_lines(setting: Setting) -> Iterator[Line]:
    """Each line with what it needs; the next is prepared when the last has been measured."""
    pretrain = Stage(setting, "cagnet_pi", "pretrain")
    count = pretrain.stage.batch_size
    shape = f"crop {pretrain.stage.crop_size}, batch {count}"
    step = partial(pretrain.step, pretrain.batch)
    yield Line(
        f"real step, pre-training, {shape}",
        step,
        "network forward and backward at three scales",
        pretrain.network_alone,
        at_most=1.2,
    )
    yield Line("pre-training, images a second", step, value=lambda s: count / s, unit="images/s", warms_up=False)
    yield memory_line(setting, step)
    finetune = Stage(setting, "cagnet_pi", "finetune", pretrain.model)
    yield Line(
        f"real step, fine-tuning, {shape}",
        partial(finetune.step, finetune.batch),
        "network forward; generator, critic, classifier forward and backward",
        finetune.parts_alone,
        at_most=1.15,
    )
    yield synthetic_line(finetune, "pixel-wise")
    yield from evaluation_lines(setting, pretrain.model, "pixel-wise")
    if setting.on_gpu:
        yield from ceiling_lines(setting, pretrain, finetune)
    patch_wise = Stage(setting, "cagnet_pa", "finetune")
    yield synthetic_line(patch_wise, "patch-wise")
    yield from evaluation_lines(setting, patch_wise.model, "patch-wise")


def memory_line(setting: Setting, step: Callable[[], None]) -> Line:
    """The most memory that was in use in the step."""
    device = torch.device(setting.device)

    def measured() -> None:
        forget_peak_memory(device)
        step()

    def peak(_seconds: float) -> float:
        return peak_memory(device)

    return Line("pre-training, peak memory", measured, value=peak, unit="MiB", repeats=1, warms_up=False)


def synthetic_line(finetune: Stage, kind: str) -> Line:
    return Line(
        f"synthetic step, {kind}, batch {finetune.stage.batch_size} of {finetune.stage.synthetic_size} squared",
        partial(finetune.step, None),
        "generator forward; classifier forward and backward",
        finetune.generator_and_classifier(),
        at_most=1.15,
    )


def evaluation_lines(setting: Setting, model: CaGNetForSemanticSegmentation, kind: str) -> Iterator[Line]:
    """Evaluation of one image by the protocol `paper`."""
    size = 513 if setting.published else 257
    model.eval()
    image = torch.randn(1, 3, size, size).to(setting.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def evaluate():
        with setting.autocast():
            model(image).logits.argmax(1).cpu()

    @torch.inference_mode()
    def forward():
        with setting.autocast():
            model.cagnet(image)

    name = f"evaluation of one image of {size}, {kind}"
    yield Line(name, evaluate, "one forward of the network", forward, at_most=1.15)
    if kind == "pixel-wise":
        yield Line("evaluation, images a second", evaluate, value=lambda s: 1 / s, unit="images/s", warms_up=False)


def ceiling_lines(setting: Setting, pretrain: Stage, finetune: Stage) -> Iterator[Line]:
    """A GPU's ceilings, how near a real step comes to them, and how long the published recipe would take."""
    side = 8192
    a, b = torch.randn(2, side, side, device=setting.device, dtype=torch.bfloat16)
    destination = torch.empty_like(a)
    setting.seconds(lambda: a @ b)
    ceiling = 2 * side**3 / min(setting.seconds(lambda: a @ b) for _ in range(10))
    yield Line(
        f"ceiling: bf16 product of {side} squares", lambda: a @ b, value=lambda s: 2e-12 * side**3 / s, unit="TFLOP/s"
    )
    yield Line(
        "ceiling: copy of 128 MiB, bytes read and written",
        lambda: destination.copy_(a),
        value=lambda s: 2e-9 * a.nbytes / s,
        unit="GB/s",
    )
    pretrain.enter()
    real = partial(pretrain.step, pretrain.batch)
    with FlopCounterMode(display=False) as counter:
        real()
    yield Line(
        "real step, pre-training, share of the bf16 product's ceiling",
        real,
        value=lambda s: counter.get_total_flops() / s / ceiling,
        unit="of 1",
        at_least=0.5,
    )

    def minutes(_seconds: float) -> float:
        """Of the published iterations, at the pace of this moment; scoring and patch bank apart."""
        pretrain.enter()
        real()
        seconds = setting.seconds(real) * pretrain.recipe.stages["pretrain"].iterations
        finetune.enter()
        for step in (partial(finetune.step, finetune.batch), partial(finetune.step, None)):  # half of them each
            step()
            seconds += setting.seconds(step) * finetune.recipe.stages["finetune"].iterations / 2
        return seconds / 60

    if setting.published:
        yield Line("the published Pascal-VOC recipe, projected", lambda: None, value=minutes, unit="min", at_most=45)
