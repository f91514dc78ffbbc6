"""A backbone joins from outside of the package: by its class and a row in the table, or by a folder."""

import json

import pytest
import torch
from tiny import tiny_recipe
from torch import nn
from transformers import AutoConfig, ResNetForImageClassification

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation
from cagnet_hf.hub.models import published_recipe
from cagnet_hf.model.backbones_cagnet import BACKBONES
from cagnet_hf.training.loop import Trainer
from cagnet_hf.training.setup import LabelMapsAtFeatureStride, benchmark_of, build_model, dataset_of
from cagnet_hf.weights.backbones import load_backbone_weights

TWO_ITERATIONS = [
    *("stages.pretrain.iterations=1", "stages.pretrain.batch_size=2"),
    *("stages.finetune.iterations=1", "stages.finetune.batch_size=2"),
    *("trackers=[]", "num_workers=0"),
]


class Squares(nn.Module):
    """A backbone in one file: a convolution over squares of 8 pixels."""

    weight_fields = ("stem_size",)

    @staticmethod
    def check(config):
        if config.stem_size % 2:
            raise ValueError(f'stem_size={config.stem_size}: backbone="squares" needs an even one')

    def __init__(self, config):
        super().__init__()
        self.num_channels = config.stem_size
        self.squares = nn.Conv2d(3, config.stem_size, 8, stride=8)

    def forward(self, pixel_values):
        return self.squares(pixel_values).relu()


@pytest.fixture
def squares(monkeypatch):
    monkeypatch.setitem(BACKBONES, "squares", Squares)


def train(folder, tiny_dataset, *keys, method="cagnet_pi") -> Trainer:
    trainer = Trainer(tiny_recipe(method, f"dataset={tiny_dataset}", *TWO_ITERATIONS, *keys), folder)
    trainer.run()
    return trainer


def test_a_backbone_from_outside_trains_and_opens_again(squares, tmp_path, tiny_dataset):
    trainer = train(tmp_path / "run", tiny_dataset, "model.backbone=squares")
    model = trainer.model.eval()
    assert type(model.cagnet.backbone) is Squares
    assert len(trainer.state.stages) == 2
    model.save_pretrained(tmp_path / "model")
    again = CaGNetForSemanticSegmentation.from_pretrained(tmp_path / "model")
    pixels = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(again(pixels).logits, model(pixels).logits)
    fresh = build_model(trainer.recipe, trainer.benchmark)
    assert load_backbone_weights(fresh, str(tmp_path / "model")) == "backbone, aspp and context weights: model"


def test_patches_are_cut_by_the_stride_that_a_backbone_has(squares, tmp_path, tiny_dataset):
    """The recipe's `output_stride` is 4; a backbone from outside need not look at it."""
    recipe = tiny_recipe("cagnet_pa", f"dataset={tiny_dataset}", "model.backbone=squares")
    benchmark = benchmark_of(recipe)
    network = build_model(recipe, benchmark).cagnet
    assert (network.config.output_stride, network.feature_stride) == (4, 8)
    label_maps = LabelMapsAtFeatureStride(dataset_of(recipe, "train"), benchmark.label_space, recipe, network)
    assert next(iter(label_maps)).shape == network(torch.zeros(1, 3, 96, 96)).features.shape[2:]


def test_a_backbone_says_what_it_needs_of_the_configuration(squares):
    with pytest.raises(ValueError, match='stem_size=7: backbone="squares" needs an even one'):
        CaGNetConfig(backbone="squares", stem_size=7)


def test_a_name_that_is_no_longer_in_the_table_is_refused(squares, monkeypatch):
    config = CaGNetConfig(backbone="squares")
    monkeypatch.delitem(BACKBONES, "squares")
    with pytest.raises(ValueError, match="backbone='squares': choose one of 'resnet', "):
        CaGNetForSemanticSegmentation(config)


@pytest.mark.filterwarnings("ignore:output_stride=4 is left aside")
def test_a_recipe_names_the_folder_of_a_transformers_backbone(tmp_path, tiny_dataset, monkeypatch):
    published = tmp_path / "published"
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    resnet = ResNetForImageClassification(AutoConfig.for_model("resnet", **sizes))
    resnet.save_pretrained(published)
    keys = [f"model.backbone={published}", f"backbone_weights={published}"]
    trainer = train(tmp_path / "run", tiny_dataset, *keys, "stages.pretrain.network=null")
    trained = trainer.model.cagnet.backbone.backbone.state_dict()
    weights = {name: tensor for name, tensor in resnet.state_dict().items() if name.endswith("convolution.weight")}
    assert all(torch.equal(tensor, trained[name.removeprefix("resnet.")]) for name, tensor in weights.items())
    assert trainer.model.cagnet.feature_stride == 8
    assert str(tmp_path) not in json.dumps(published_recipe(trainer.recipe))
    trainer.model.save_pretrained(tmp_path / "model")
    published.rename(tmp_path / "gone")
    again = CaGNetForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert again.config.backbone_config.hidden_sizes == [8, 16]
