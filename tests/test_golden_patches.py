"""The PixelCNN and the handling of patches give the reference's numbers on the reference's weights.

What the release does otherwise than this package, on purpose: it conditions on the whole patch (here
`condition="patch"`), counts the first pixel in its loss, lets gradients reach masked weights and masks them again in
place, and passes what it samples from through a second softmax.
"""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import recipe
from golden_weights import GOLDEN, PIXELCNNS, golden_patches

from cagnet_hf.patches.layouts import SAMPLING_RULES, accept_patches, assemble_patches, cut_patches, fill_ignored
from cagnet_hf.patches.pixel_cnn import PatchPixelCNN, PatchPixelCNNConfig, RasterNetwork

ARRAYS = np.load(GOLDEN / "pixelcnn.npz")
VALUES = json.loads((GOLDEN / "pixelcnn.json").read_text())
SHAPES = json.loads((GOLDEN / "keys.json").read_text())
every_network = pytest.mark.parametrize("tag", PIXELCNNS)
_RULES = (
    (r"conv9\.(\w+)", lambda m: f"head.{m[1]}"),
    (r"conv(\d)\.0\.weight", lambda m: f"layers.{int(m[1]) - 1}.convolution.weight"),
    (r"conv(\d)\.1\.(\w+)", lambda m: f"layers.{int(m[1]) - 1}.normalization.{m[2]}"),
    (r"b(\d)", lambda m: f"layers.{int(m[1]) - 1}.condition.weight"),
)


def our_key(original: str) -> str:
    return next(name(match) for pattern, name in _RULES if (match := re.fullmatch(pattern, original)))


def golden_pixel_cnn(tag: str, condition: str | None = "patch") -> PatchPixelCNN:
    """A network of the reference with its weights, without dropout, in evaluation mode."""
    side, kernel_size, num_layers = PIXELCNNS[tag]
    config = PatchPixelCNNConfig(
        patch_size=side, kernel_size=kernel_size, num_layers=num_layers, dropout=0.0, condition=condition
    )
    weights = {"class_embeddings": torch.from_numpy(recipe.embedding_tables(15, 20)[1])}
    for original, shape in SHAPES[f"pixelcnn_{tag}"].items():
        key = original.removeprefix("module.")
        if key.endswith(".mask") or (condition is None and re.fullmatch(r"b\d", key)):
            continue
        tensor = torch.from_numpy(recipe.fill(key, shape))
        weights[our_key(key)] = tensor.t() if re.fullmatch(r"b\d", key) else tensor
    model = PatchPixelCNN(config)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def golden_targets(tag: str) -> torch.Tensor:
    side = PIXELCNNS[tag][0]
    holes = torch.from_numpy(recipe.integers(f"pix:hole:{side}", (6, side, side), 4)) == 0
    return golden_patches(tag).masked_fill(holes, 255)


def close(ours: torch.Tensor, name: str):
    np.testing.assert_allclose(ours.detach().numpy(), ARRAYS[name], rtol=1e-4, atol=1e-5)


@every_network
@pytest.mark.parametrize("condition, name", [("patch", "logits_eval"), (None, "logits_eval_unconditional")])
def test_logits(tag, condition, name):
    close(golden_pixel_cnn(tag, condition)(golden_patches(tag)).logits, f"{tag}/{name}")


@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_training_step(tag, dtype):
    """Logits, loss (the reference counts the first pixel), gradients, and the running statistics afterwards."""
    expected = VALUES[tag]["f32" if dtype == torch.float32 else "f64"]
    tolerance = {"rel": 1e-5} if dtype == torch.float32 else {"rel": 1e-9}
    model = golden_pixel_cnn(tag).to(dtype).train()
    calls = {}  # convolution -> its input and output
    for layer in model.layers:
        layer.convolution.register_forward_hook(
            lambda module, inputs, output: calls.update({module: (*inputs, output)})
        )
        layer.convolution.register_forward_hook(lambda module, inputs, output: output.retain_grad())

    logits = model(golden_patches(tag)).logits
    loss = F.cross_entropy(logits, golden_targets(tag), ignore_index=255)
    loss.backward()

    close(logits, f"{tag}/logits_train_nodropout")
    assert loss.item() == pytest.approx(expected["train_loss"], **tolerance)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for original, norm in expected["grad_l2"].items():
        gradient = gradients.pop(our_key(original))
        if original.endswith(".0.weight"):
            layer = model.layers[int(original[4]) - 1].convolution
            inputs, embeddings, output = calls[layer]
            if embeddings is not None:
                inputs = torch.einsum("bnhw,ne->behw", inputs, embeddings)
            unmasked = torch.nn.grad.conv2d_weight(inputs, layer.weight.shape, output.grad, padding=layer.padding)
            torch.testing.assert_close(gradient, unmasked * (layer.visible_weight() != 0))
            assert gradient.norm() < unmasked.norm()
            gradient = unmasked
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4 if dtype == torch.float32 else 1e-9)
    assert not gradients
    buffers = dict(model.named_buffers())
    for original, norm in expected["running_l2"].items():
        assert buffers[our_key(original)].norm().item() == pytest.approx(norm, **tolerance)


@every_network
def test_what_a_position_sees(tag):
    """Which pixels the score of a pixel depends on, the condition held fixed."""
    model, patch = golden_pixel_cnn(tag).double(), golden_patches(tag)[:1]
    number = patch.numel()
    changed = patch.repeat(number, 1, 1)
    changed.flatten(1).diagonal().add_(1).remainder_(20)
    condition = patch.expand(number, -1, -1)
    with torch.no_grad():
        difference = model(changed, condition_ids=condition).logits - model(patch, condition_ids=patch).logits
    depends = difference.abs().amax(dim=1).flatten(1).t() > 1e-12  # (output, input)
    np.testing.assert_array_equal(depends.numpy(), ARRAYS[f"{tag}/depends"])


def test_sampling():
    """Probabilities of the last four cells, the second-best class being chosen each time."""
    model, patches = golden_pixel_cnn("newnew", "first"), torch.from_numpy(ARRAYS["sample/patch"]).long()
    first = torch.from_numpy(ARRAYS["sample/h"]).long()
    network = RasterNetwork(model)
    state, chosen = network.new_state(), first
    for position in range(9):
        logits = network.logits(position, first, state)
        if position >= SAMPLING_RULES[3].start:
            probabilities = logits.softmax(dim=1)
            np.testing.assert_allclose(probabilities, ARRAYS["sample/probs"][:, position - 5], rtol=1e-4, atol=1e-6)
            chosen = probabilities.topk(2).indices[:, 1]
        torch.testing.assert_close(chosen, patches.flatten(1)[:, position])
        network.add(position, chosen, state)

    twice = probabilities.sort(descending=True).values.softmax(dim=1)  # what the release drew from
    np.testing.assert_allclose(twice, ARRAYS["sample/resoftmax_last"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", [3, 5, 7])
def test_filling(side):
    patches = torch.from_numpy(ARRAYS[f"fill/{side}/in"])
    filled, _ = fill_ignored(patches)
    np.testing.assert_array_equal(filled, ARRAYS[f"fill/{side}/out"])
    np.testing.assert_array_equal(patches, ARRAYS[f"fill/{side}/in"])


def test_cutting():
    np.testing.assert_array_equal(cut_patches(torch.from_numpy(ARRAYS["extract/gt"]), 3), ARRAYS["extract/patches"])


def test_assembling():
    blocks = torch.from_numpy(ARRAYS["assemble/blocks"])
    np.testing.assert_array_equal(assemble_patches(blocks.unflatten(1, (4, 4))), ARRAYS["assemble/map"])


def test_accepting():
    accepted = accept_patches(torch.from_numpy(ARRAYS["accept/in"]).view(-1, 3, 3), range(15, 20))
    np.testing.assert_array_equal(accepted.nonzero()[:, 0], ARRAYS["accept/kept"])
