"""Generators with an anchor: class means in closed form, to which trained layers add what scatters around them."""

import pytest
import torch
from tiny import tiny_recipe
from torch.nn import functional as F

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation
from cagnet_hf.methods.options import RecipeError
from cagnet_hf.training.loop import Trainer
from cagnet_hf.training.optimizers import build_optimizers

CLASSES = {"id2label": {0: "a", 1: "b", 2: "c"}, "seen_ids": [0, 1], "unseen_ids": [2], "dataset_ids": [0, 1, 2]}
ANCHORED = [
    *("trackers=[]", "num_workers=0", "model.generator_anchor=ridge"),
    *("stages.pretrain.iterations=2", "stages.pretrain.batch_size=2", "stages.pretrain.generator=null"),
    *("stages.finetune.iterations=4", "stages.finetune.batch_size=2", "stages.finetune.anchor={ridge: 1.0e-6}"),
]


def anchored(generator="contextual", **fields):
    contextual = generator == "contextual"
    torch.manual_seed(0)
    return CaGNetForSemanticSegmentation(
        CaGNetConfig(
            **(CLASSES | {"backbone": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "stem_size": 4}),
            **{"feature_size": 6, "embedding_size": 5, "context_hidden_size": 4, "generator_hidden_sizes": [7]},
            **{"generator_dropout": [0.0], "generator": generator, "contextual": contextual},
            **{"generator_anchor": "ridge", "classifier": "convolutional" if contextual else "linear"} | fields,
        )
    ).eval()


@pytest.fixture
def fitted():
    """A model whose anchor knows the means of the two seen classes."""
    model = anchored("moment_matching")
    model.class_embeddings.copy_(torch.randn(3, 5))
    anchor = model.generator.anchor
    anchor.closed_form.class_counts.copy_(torch.tensor([4.0, 2.0, 0.0]))
    anchor.closed_form.class_means[:2] = torch.randn(2, 6)
    anchor.fit(model.class_embeddings, ridge=0.1)
    return model


def test_a_class_with_pixels_has_its_own_mean_and_the_others_the_closed_form(fitted):
    anchor = fitted.generator.anchor
    means = anchor(fitted.embed_classes(torch.tensor([[[0, 1, 2]]])))[0, :, 0].t()
    torch.testing.assert_close(means[:2], anchor.closed_form.class_means[:2])
    regressed = anchor.closed_form.mean(F.normalize(fitted.class_embeddings[2], dim=0)[None, :, None, None])
    torch.testing.assert_close(means[2], regressed[0, :, 0, 0])


def test_the_layers_hear_the_latent_alone(fitted):
    ids, generator = torch.tensor([[[0, 1, 2]]]), torch.Generator()
    made = fitted.synthesize_features(ids, generator=generator.manual_seed(1))
    latent = fitted.generator.draw_latent((1, fitted.generator.latent_size, 1, 3), generator=generator.manual_seed(1))
    residual = fitted.generator.layers(latent)
    torch.testing.assert_close(made, fitted.generator.anchor(fitted.embed_classes(ids)) + residual)


def test_features_of_the_contextual_generator_stay_between_0_and_1_and_near_their_mean():
    model = anchored()
    anchor = model.generator.anchor
    anchor.closed_form.class_counts[:2] = 1
    anchor.closed_form.class_means[0] = torch.linspace(0.1, 0.9, 6)
    anchor.closed_form.class_means[1] = torch.tensor([-1.0, 0, 0.5, 1, 2, 0.5])
    anchor.fit(model.class_embeddings.copy_(torch.randn(3, 5)), ridge=0.1)
    with torch.no_grad():
        model.generator.layers[-1].weight.zero_()
    made = model.synthesize_features(torch.tensor([[[0, 1]]]))[0, :, 0].t()
    torch.testing.assert_close(made[0], torch.linspace(0.1, 0.9, 6))
    assert ((made > 0) & (made < 1)).all()


def test_no_optimizer_moves_the_closed_form(fitted):
    stage = tiny_recipe("zs3net").stages["finetune"]
    build_optimizers(fitted, stage)
    learning = {name for name, parameter in fitted.generator.named_parameters() if parameter.requires_grad}
    assert learning == {"layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"}
    made = fitted.synthesize_features(torch.tensor([[[0, 2]]]))
    made.sum().backward()
    assert all(parameter.grad is None for parameter in fitted.generator.anchor.parameters())


def test_a_new_class_has_the_closed_form_and_old_ones_keep_their_means(fitted):
    before = fitted.generator.anchor(fitted.embed_classes(torch.tensor([[[0, 1]]])))
    fitted.add_classes(["d"], torch.randn(1, 5))
    after = fitted.generator.anchor(fitted.embed_classes(torch.tensor([[[0, 1]]])))
    torch.testing.assert_close(after, before)
    assert fitted.generator.anchor.keys.shape == (4, 5)


def test_a_saved_model_keeps_its_anchor(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    again = CaGNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert again.generator.anchor.keys.any()
    ids = torch.tensor([[[0, 1, 2]]])
    torch.testing.assert_close(
        again.generator.anchor(again.embed_classes(ids)), fitted.generator.anchor(fitted.embed_classes(ids))
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generator_anchor": "mean"}, "generator_anchor='mean': choose one of 'ridge', 'prototypes', None"),
        ({"generator_anchor": "prototypes"}, "needs known_classes"),
        ({"generator": None, "classifier": "linear"}, "needs layers that add to it"),
        ({"generator": "gaussian", "classifier": "linear"}, "needs layers that add to it"),
    ],
)
def test_configurations_without_a_meaning_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        anchored(**{"generator": "moment_matching"} | fields)


@pytest.mark.parametrize("cached", [False, True])
def test_a_stage_fits_the_anchor_to_the_features_of_all_images(tiny_dataset, tmp_path, cached):
    frozen = ["augmentation={scale_range: [1, 1]}", "stages.pretrain.scales=[1.0]", "stages.finetune.scales=[1.0]"]
    frozen += ["stages.pretrain.network.multipliers.backbone=0", "feature_cache={}"]
    trainer = Trainer(
        tiny_recipe("cagnet_pi", f"dataset={tiny_dataset}", *ANCHORED, *(frozen if cached else [])), tmp_path
    )
    trainer.run()
    model, anchor = trainer.model, trainer.model.generator.anchor
    seen = len(model.config.seen_ids)
    counts = anchor.closed_form.class_counts
    assert anchor.keys.any() and counts[:seen].any() and not counts[seen:].any()
    means = anchor(model.embed_classes(counts.nonzero().t()[None]))[0, :, 0].t()
    torch.testing.assert_close(means, anchor.closed_form.class_means[counts > 0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stages.finetune.anchor=null"],
            r"no stage so far fits the generator's anchor: set stages.finetune.anchor=\{\}",
        ),
        (["stages.pretrain.anchor={}"], "stages.pretrain.anchor: the features of a learning network do not stay"),
        (["model.generator_anchor=null"], "stages.finetune.anchor needs model.generator_anchor"),
    ],
)
def test_stages_without_a_meaning_are_refused(tiny_dataset, tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        Trainer(tiny_recipe("cagnet_pi", f"dataset={tiny_dataset}", *ANCHORED, *overrides), tmp_path)
