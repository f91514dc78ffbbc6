"""The scripts under scripts/ablations: what they measure."""

import json

import pytest
import torch
from tiny import new_model, noise_batch, tiny_recipe

from cagnet_hf import CaGNetForSemanticSegmentation, CaGNetImageProcessor
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.evaluation.scoring import score

# Patch layouts


def test_a_pixel_cnn_that_was_shown_the_answer_knows_less_without_it(tiny_dataset, tmp_path, load_script, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(12, (1200, 2, 1, 1), generator=generator)  # the upper rows' class and the last one's
    rows = torch.where(torch.arange(3)[:, None] < 2, classes[:, :1], classes[:, 1:])  # (1200, 1, 3, 1)
    patches = rows.expand(-1, -1, -1, 3).squeeze(1).contiguous()
    monkeypatch.setattr("cagnet_hf.patches.layouts.collect_patches", lambda *_: patches)
    output = tmp_path / "layouts.json"
    keys = ["patches.epochs=4", "patches.bank_size=8", "patches.learning_rate=0.01", f"dataset={tiny_dataset}"]
    arguments = ["--recipe", "scenes/cagnet_pa", "--output", str(output), *keys]
    assert load_script("ablations/patch_layouts").main(arguments) == 0
    report = json.loads(output.read_text())
    causal, shown = report["first"], report["patch"]
    assert causal["held_out_nats_given_the_first_class"] == causal["held_out_nats"]
    assert shown["held_out_nats"] < causal["held_out_nats"] < shown["held_out_nats_given_the_first_class"]
    assert report["several_classes"] == pytest.approx(11 / 12, abs=0.05)


def test_patch_layouts_of_a_pixel_wise_row_are_refused(tmp_path, load_script, capsys):
    arguments = ["--recipe", "scenes/cagnet_pi", "--output", str(tmp_path / "layouts.json")]
    assert load_script("ablations/patch_layouts").main(arguments) == 2
    assert "works pixel by pixel" in capsys.readouterr().err


# The contextual latent


def talkative_model():
    """A model whose latent says much about the image, in evaluation mode."""
    model, _ = new_model(tiny_recipe("cagnet_pi"))
    for convolution in model.modules():
        if isinstance(convolution, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(convolution.weight)
    with torch.no_grad():
        model.cagnet.context.mean.weight.mul_(3)
        model.cagnet.context.log_variance.weight.mul_(0.3)
    return model.eval()


def test_a_latent_is_described_as_training_would_draw_it(load_script):
    model, images = talkative_model(), noise_batch()["pixel_values"]
    context, batches = model.cagnet.context, (images[:1], images[1:, :, :-16, :-24])  # every cell weighs alike
    with torch.inference_mode():
        with load_script("ablations/context_latent").watch_latent(context) as statistics:
            for batch in batches:
                model(batch)
        context.train()
        outputs = [model.cagnet(batch) for batch in batches]
    mean = torch.cat([output.latent_mean.double().movedim(1, -1).flatten(0, -2) for output in outputs])
    log_variance = torch.cat([output.latent_log_variance.double().movedim(1, -1).flatten(0, -2) for output in outputs])
    variance = log_variance.exp()
    divergence = 0.5 * (mean.square() + variance - 1 - log_variance).mean()
    of_image = mean.var(0, correction=0)
    share = of_image.sum() / (of_image + variance.mean(0)).sum()
    assert 0.01 < share < 0.99
    assert statistics() == {
        "divergence_nats_per_channel": pytest.approx(divergence.item(), rel=1e-4),
        "variance_from_image": pytest.approx(share.item(), rel=1e-4),
    }


def test_scores_without_context_are_those_of_a_latent_of_zeros(load_script, tiny_dataset, tmp_path):
    model, processor = talkative_model(), CaGNetImageProcessor()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    output = tmp_path / "latent.json"
    arguments = ["--model", str(tmp_path / "model"), "--dataset", str(tiny_dataset), "--output", str(output)]
    assert load_script("ablations/context_latent").main(arguments) == 0
    report, dataset = json.loads(output.read_text()), open_dataset(str(tiny_dataset), "test")
    model = CaGNetForSemanticSegmentation.from_pretrained(tmp_path / "model")

    def is_scored_as(scores: dict) -> bool:
        metrics = score(model, processor, dataset, progress=False)
        return scores == {column: metrics[column] for column in scores}

    assert is_scored_as(report["with_context"])
    model.cagnet.context.mean.register_forward_hook(lambda module, inputs, mean: torch.zeros_like(mean))
    assert is_scored_as(report["without_context"])
    assert report["with_context"] != report["without_context"]


def test_a_model_without_contextual_module_is_refused(load_script, tiny_dataset, tmp_path, capsys):
    model, _ = new_model(tiny_recipe("spnet"))
    model.save_pretrained(tmp_path / "model")
    CaGNetImageProcessor().save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--dataset", str(tiny_dataset), "--output", str(tmp_path / "l")]
    assert load_script("ablations/context_latent").main(arguments) == 2
    assert "has no contextual module" in capsys.readouterr().err
