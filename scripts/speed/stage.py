"""A stage of a published recipe on images of noise: an iteration of training, and what its parts cost alone."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from cagnet_hf.methods import method_of
from cagnet_hf.methods.options import Recipe
from cagnet_hf.model.configuration_cagnet import CaGNetConfig
from cagnet_hf.model.maps_cagnet import resize_labels, to_pixel_list
from cagnet_hf.model.modeling_cagnet import CaGNetForSemanticSegmentation
from cagnet_hf.patches.layouts import PatchSource
from cagnet_hf.training.learner import Learner
from cagnet_hf.training.optimizers import build_optimizers
from cagnet_hf.training.recipe_files import load_recipe

from .measuring import Setting

NUM_CLASSES, UNSEEN = 20, tuple(range(15, 20))  # those of Pascal-VOC


def new_model(setting: Setting, **fields) -> CaGNetForSemanticSegmentation:
    """A model with random weights in the layout that it is trained in."""
    torch.manual_seed(0)
    classes = {"id2label": {i: f"class {i}" for i in range(NUM_CLASSES)}, "unseen_ids": UNSEEN}
    model = CaGNetForSemanticSegmentation(CaGNetConfig(**classes, **fields))
    torch.nn.init.normal_(model.class_embeddings)
    return model.to(setting.device, memory_format=torch.channels_last)


class Stage:
    """A stage of `pascal_voc/METHOD`, or of a recipe, with its model, optimisers and a batch of images of noise."""

    def __init__(
        self,
        setting: Setting,
        method: str,
        name: str,
        model: CaGNetForSemanticSegmentation | None = None,
        recipe: Recipe | None = None,
    ):
        self.setting, self.recipe = setting, recipe or load_recipe(f"pascal_voc/{method}")
        self.stage = self.recipe.stages[name]
        if (
            recipe is None and not setting.published
        ):  # half the side, one image: a thirty-second of the work, in the same proportions
            self.stage = self.stage.model_copy(update={"crop_size": self.stage.crop_size // 2, "batch_size": 1})
        elif recipe is None and not setting.on_gpu:
            self.stage = self.stage.model_copy(update={"batch_size": 2})
        self.model = (model or new_model(setting, **self.recipe.model)).train()
        self.learner = Learner(Accelerator(cpu=not setting.on_gpu), build_optimizers(self.model, self.stage))
        self.method = method_of(method, self.recipe.model)(self.recipe, self.stage, self.model)
        if self.model.config.patch_size > 1:  # patches drawn at random: a step costs the same whatever they show
            bank = torch.randint(NUM_CLASSES, (64, *[self.model.config.patch_size] * 2), device=setting.device)
            self.method._patches = PatchSource(bank, self.method.class_odds())
        self.batch = self._batch()

    def _batch(self) -> dict[str, torch.Tensor]:
        """Images of noise; labels in blocks of a quarter of a side, one in sixteen ignored."""
        size, count = self.stage.crop_size, self.stage.batch_size
        pixels = torch.randn(count, 3, size, size).contiguous(memory_format=torch.channels_last)
        blocks = torch.randint(NUM_CLASSES - len(UNSEEN), (count, 4, 4))
        blocks[:, 0, 0] = self.model.config.ignore_index
        labels = resize_labels(blocks, (size, size))
        batch = {"pixel_values": pixels, "labels": labels, "padding": torch.zeros_like(labels, dtype=torch.bool)}
        return {key: value.to(self.setting.device) for key, value in batch.items()}

    def step(self, batch: dict[str, torch.Tensor] | None) -> None:
        """One iteration of the training loop: a real step with a batch, a synthetic step without one."""
        with self.setting.autocast():
            self.method.iterate([batch], self.learner)

    def real_step(self) -> None:
        self.step(self.batch)

    def synthetic_step(self) -> None:
        self.step(None)

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
            scores = [*model.classify_scales(maps), classifier(made.detach())]
            scores += [classifier.criticise(features) for features in (real, made.detach())]
            judged = classifier.criticise(made)
        sum(score.float().mean() for score in scores).backward()
        judged.float().mean().backward(inputs=list(model.generator.parameters()))

    def generator_and_classifier(self) -> Callable[[], None]:
        """What a synthetic step cannot do without, on inputs that lie ready."""
        model, side = self.model, self.stage.synthetic_size
        shape = (self.stage.batch_size, side, side)  # patch-wise, too, there are as many pixels as the map has
        ids = torch.randint(NUM_CLASSES, shape, device=self.setting.device)
        embeddings = model.embed_classes(ids.view(1, 1, -1))
        latent = torch.randn(1, model.config.feature_size, 1, ids.numel(), device=self.setting.device)

        def run():
            model.zero_grad()
            with self.setting.autocast():
                with torch.no_grad():
                    features = model.generator(embeddings, latent)
                if model.config.patch_size == 1:
                    loss = F.cross_entropy(model.classifier(features), ids.view(1, 1, -1))
                else:
                    tiled = features[0, :, 0].t().view(*shape, -1).movedim(-1, 1)
                    loss = F.cross_entropy(model.classifier.classify_centres(tiled), ids[:, 1::3, 1::3])
            loss.backward()

        return run
