"""What the loops of others rely on: the same properties for every configuration of the model."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from test_modeling import SPNET, build, images, with_backbone

from cagnet_hf import CaGNetForSemanticSegmentation, CaGNetModel

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def labels_of(batch):
    labels = torch.randint(0, 5, (len(batch), *batch.shape[2:]), generator=torch.Generator().manual_seed(2))
    labels[:, :10] = 255
    return labels


class Properties:
    """Every configuration inherits these tests."""

    options: dict = {}

    def model(self, kind=CaGNetForSemanticSegmentation, **changes):
        return build(kind, **(self.options | changes))

    def test_every_part_that_holds_a_gradient_gets_one_from_the_loss(self, tmp_path):
        built = self.model()
        built.save_pretrained(tmp_path)
        loaded = CaGNetForSemanticSegmentation.from_pretrained(tmp_path)
        for model in (built, loaded):
            model.train()
            model(images(), labels=labels_of(images())).loss.backward()
            waiting = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert waiting == []
        assert any(parameter.requires_grad for parameter in loaded.parameters())

    def test_gradient_checkpointing_changes_no_gradient(self):
        gradients = []
        for checkpointing in (False, True):
            model = self.model().train()
            if checkpointing:
                model.activation_checkpointing_enable()
                assert model.is_activation_checkpointing
            torch.manual_seed(3)
            model(images(), labels=labels_of(images())).loss.backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, msg=name)

    @torch.no_grad()
    def test_hidden_states_are_given_where_they_are_asked_for(self):
        model = self.model()
        assert model(images()).hidden_states is None
        for states in (
            model(images(), output_hidden_states=True).hidden_states,
            model.cagnet(images(), output_hidden_states=True).hidden_states,
        ):
            assert torch.equal(states[-1], model.cagnet(images()).last_hidden_state)
            assert torch.equal(states[0], model.cagnet.backbone(images()))
        model.config.output_hidden_states = True
        assert model(images()).hidden_states is not None

    @torch.no_grad()
    def test_the_configuration_asks_for_tuples(self):
        model = self.model(return_dict=False)
        named = model(images(), return_dict=True)
        assert isinstance(model(images()), tuple)
        assert torch.equal(model(images())[0], named.logits)
        features = model.cagnet(images())
        assert isinstance(features, tuple)
        assert torch.equal(features[0], model.cagnet(images(), return_dict=True).last_hidden_state)
        assert model.cagnet.feature_stride > 0
        assert torch.equal(model(images(), return_dict=False)[0], named.logits)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
    def test_labels_of_any_integer_type(self, dtype):
        model = self.model()
        labels = labels_of(images())
        assert torch.equal(model(images(), labels=labels.to(dtype)).loss, model(images(), labels=labels).loss)
        everywhere = labels.where(labels != 255, -100)
        assert torch.equal(model(images(), labels=everywhere).loss, model(images(), labels=labels).loss)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda labels: (labels + 1).where(labels != 255, 255), "label 5 is no class: allowed are 0 to 4 and 255"),
            (lambda labels: labels - 1, "label -1 is no class|label 254 is no class"),
            (lambda labels: labels.float(), "labels of type torch.float32"),
            (lambda labels: labels[:, None], r"labels of shape \(2, 1, 33, 49\)"),
            (lambda labels: labels[:1], r"labels of shape \(1, 33, 49\) for images that need \(2, 33, 49\)"),
            (lambda labels: labels[:, :10], r"labels of shape \(2, 10, 49\)"),
        ],
        ids=["too large", "negative", "floats", "a channel", "too few", "too small"],
    )
    def test_other_labels_are_refused_in_one_line(self, change, message):
        with pytest.raises(ValueError, match=message) as refusal:
            self.model()(images(), labels=change(labels_of(images())))
        assert "\n" not in str(refusal.value)

    def test_attentions_and_unknown_arguments_are_refused(self):
        for model in (self.model(), self.model(CaGNetModel)):
            with pytest.raises(ValueError, match="this model has no attentions to give"):
                model(images(), output_attentions=True)
            with pytest.raises(TypeError, match="latent_nose"):
                model(images(), latent_nose=1)

    def test_what_transformers_asks_of_the_classes(self):
        model = self.model(calibration=0.3)
        assert model.accepts_loss_kwargs is False
        assert model.config.keys_to_ignore_at_inference == ["calibration", "min_score"]
        assert model.config.get_text_config() is model.config


class TestResNet(Properties):
    pass


class TestLite(Properties):
    options = {"backbone": "efficientnet_lite0", "aspp": "depthwise"}


class TestAutoBackbone(Properties):
    options = with_backbone("resnet")


class TestAttentionBackbone(Properties):
    options = {"backbone": "auto", "backbone_config": {"model_type": "dinov2", **SIZES}}


class TestLinear(Properties):
    options = {"classifier": "linear", "contextual": False, "generator": "moment_matching"}


class TestProjection(Properties):
    options = SPNET | {"test_scales": (1.0, 0.5)}


class TestGaussian(Properties):
    options = {"classifier": "linear", "contextual": False, "generator": "gaussian"}


class TestPatches(Properties):
    options = {"patch_size": 3}


def test_checkpointing_with_statistics_that_learn_is_refused():
    with pytest.raises(ValueError, match="set freeze_batch_norm=True"):
        build(freeze_batch_norm=False).activation_checkpointing_enable()


def test_a_plain_loop_on_two_processes(tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch
            from accelerate import Accelerator
            from test_modeling import build, images

            accelerator = Accelerator(cpu=True)
            assert accelerator.num_processes == 2
            model = build().train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            model, optimizer = accelerator.prepare(model, optimizer)
            for step in range(3):
                labels = torch.full((2, 33, 49), accelerator.process_index)
                accelerator.backward(model(pixel_values=images(), labels=labels).loss)
                optimizer.step()
                optimizer.zero_grad()
            print("done", accelerator.process_index)
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    here = __file__.rpartition("/")[0]
    environment = {"PYTHONPATH": f"{here}:{here}/..", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("done") == 2
