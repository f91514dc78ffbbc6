"""The losses: the reference's values and gradients, and the properties the formulas promise."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import recipe
from golden_weights import GOLDEN, golden_classifier
from torch.utils._python_dispatch import TorchDispatchMode

from cagnet_hf.methods import losses
from cagnet_hf.methods.losses import (
    MMD_BANDWIDTHS,
    classwise_mmd,
    content_loss,
    critic_loss,
    generator_adversarial_loss,
    gradient_penalty,
    kl_to_standard_normal,
    multi_scale_cross_entropy,
)
from cagnet_hf.model.maps_cagnet import mean_cross_entropy, to_pixel_list

VALUES = json.loads((GOLDEN / "losses.json").read_text())
ARRAYS = np.load(GOLDEN / "losses.npz")
# Our name -> the release's: its "lsgan" takes absolute values.
RELEASED = {"l1": "lsgan", "bce": "gan", "wgan": "wgan", "wgan-gp": "wgan-gp"}


class Reference:
    """The inputs of the golden losses: real and synthetic features, a label map, a critic."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.precision = "f32" if dtype == torch.float32 else "f64"
        self.synthetic = self.features("predict").requires_grad_()
        self.real = self.features("target")
        self.labels = torch.from_numpy(recipe.labels("loss", 2, 9, 9, 15, cell=3))
        self.labelled = self.labels != 255
        self.classifier = golden_classifier().to(dtype)

    def features(self, name):
        return torch.from_numpy(recipe.features(f"loss:{name}", (2, 600, 9, 9))).to(self.dtype)

    def realness(self, maps):
        return self.classifier.criticise(to_pixel_list(maps, self.labelled))

    def approx(self, value):
        return pytest.approx(value, **({"rel": 1e-5, "abs": 1e-6} if self.precision == "f32" else {"rel": 1e-9}))

    def check_gradient(self, loss, name):
        (gradient,) = torch.autograd.grad(loss, self.synthetic)
        right, error = recipe.check_probe(ARRAYS, name, gradient.numpy(), rtol=1e-4, atol=1e-9)
        assert right, error


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def reference(request):
    return Reference(request.param)


# Adversarial


def check_critic(reference, kind, loss):
    """Value, and gradients of the trunk and of the critic's head."""
    expected = VALUES[RELEASED[kind]]
    assert loss.item() == reference.approx(expected[reference.precision]["D"])
    trunk, head = reference.classifier.trunk, reference.classifier.critic_head
    gradients = torch.autograd.grad(loss, [trunk.weight, trunk.bias, head.weight, head.bias])
    norms = [
        expected["f64"]["grad_D_l2"][key] for key in ("fc.conv.weight", "fc.conv.bias", "pred.weight", "pred.bias")
    ]
    tolerance = {"f32": {"rel": 1e-4, "abs": 1e-7}, "f64": {"rel": 1e-9}}[reference.precision]
    assert [gradient.norm().item() for gradient in gradients] == pytest.approx(norms, **tolerance)


@pytest.mark.parametrize("kind", ["l1", "bce", "wgan"])
def test_critic_loss_is_the_reference_s(reference, kind):
    loss = critic_loss(kind, reference.realness(reference.real), reference.realness(reference.synthetic.detach()))
    check_critic(reference, kind, loss)


def test_critic_loss_with_gradient_penalty_is_the_reference_s(reference):
    """The reference's weight is 10, and a sample of its penalty is a whole image, where ours is a pixel."""
    synthetic, mixing = reference.synthetic.detach(), 0.5 * recipe.uniform("loss:alpha", (2, 1, 1, 1)) + 0.5

    def total_realness(images):  # (2, D * h * w, 1, 1)
        return reference.classifier.criticise(images.view_as(synthetic)) * reference.labelled[:, None]

    samples = [maps.reshape(2, -1, 1, 1) for maps in (reference.real, synthetic)]
    penalty = gradient_penalty(total_realness, *samples, torch.from_numpy(mixing).to(reference.dtype))
    assert 10 * penalty.item() == reference.approx(VALUES["wgan-gp"][reference.precision]["gp"])
    loss = critic_loss("wgan-gp", reference.realness(reference.real), reference.realness(synthetic))
    check_critic(reference, "wgan-gp", loss + 10 * penalty)


@pytest.mark.parametrize("kind", RELEASED)
def test_generator_loss_is_the_reference_s(reference, kind):
    loss = generator_adversarial_loss(kind, reference.realness(reference.synthetic))
    assert loss.item() == reference.approx(VALUES[RELEASED[kind]][reference.precision]["G"])
    reference.check_gradient(loss, f"grad_G_wrt_predict/{RELEASED[kind]}")


def test_gradient_penalty_wants_a_slope_of_one_at_every_pixel():
    features = torch.rand(2, 4, 3, 3)
    slopes = torch.tensor([1.0, 3.0, 1.0])

    def critic(maps):
        return maps.sum(dim=1, keepdim=True) / 2 * slopes  # the gradient has length `slopes` at each pixel

    assert gradient_penalty(critic, features, 1 - features).item() == pytest.approx(4 / 3)


def test_least_squares_takes_the_square_where_the_release_takes_the_distance():
    real, synthetic = torch.tensor([0.9, 0.7]), torch.tensor([0.2, 0.4])
    assert critic_loss("lsgan", real, synthetic).item() == pytest.approx((0.01 + 0.09) / 2 + (0.04 + 0.16) / 2)
    assert critic_loss("l1", real, synthetic).item() == pytest.approx((0.1 + 0.3) / 2 + (0.2 + 0.4) / 2)
    assert generator_adversarial_loss("lsgan", synthetic).item() == pytest.approx((0.64 + 0.36) / 2)


@pytest.mark.parametrize("kind", ["lsgan", *RELEASED])
def test_no_pixel_makes_no_adversarial_loss(kind):
    none = torch.zeros(1, 1, 1, 0, requires_grad=True)
    assert critic_loss(kind, none, none).item() == generator_adversarial_loss(kind, none).item() == 0


# Content: synthetic against real features


@pytest.mark.parametrize(("kind", "released"), [("l1", "ContentLoss"), ("l2", "ContentLossMSE")])
def test_pixelwise_content_loss_is_the_reference_s(reference, kind, released):
    synthetic, real = (to_pixel_list(m, reference.labelled) for m in (reference.synthetic, reference.real))
    loss = content_loss(kind, synthetic, real, reference.labels[reference.labelled], 20)
    assert loss.item() == reference.approx(VALUES[f"content/{released}"][reference.precision]["value"])
    reference.check_gradient(loss, f"grad_content/{released}")


def test_unknown_kinds_are_refused():
    pixels = torch.zeros(1, 4, 1, 2)
    with pytest.raises(ValueError, match="hinge"):
        critic_loss("hinge", pixels, pixels)
    with pytest.raises(ValueError, match="huber"):
        content_loss("huber", pixels, pixels, torch.tensor([0, 1]), 2)


# Content by the maximum mean discrepancy


def golden_group(name: str, dtype) -> torch.Tensor:
    """40 features of the golden set as a pixel list, `(1, 600, 1, 40)`."""
    a, b = (torch.from_numpy(recipe.features(f"mmd:{key}", (40, 600))).to(dtype) for key in "ab")
    return {"a": a, "b": b, "near": a + 0.01 * (b - a)}[name].t()[None, :, None]


@pytest.mark.parametrize(("other", "key"), [("b", "sqrt_40_40"), ("near", "sqrt_near"), ("a", "same")])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_mmd_of_one_class_is_the_reference_s(other, key, dtype, rel):
    loss = classwise_mmd(golden_group("a", dtype), golden_group(other, dtype), torch.zeros(40).long(), 1)
    near_zero = key == "same" or (key == "sqrt_near" and dtype == torch.float32)  # the root magnifies rounding there
    tolerance = {"abs": 5e-5} if near_zero else {"rel": rel}
    assert loss.item() == pytest.approx(VALUES["mmd"]["f64"][key], **tolerance)


@pytest.fixture
def three_classes():
    """Synthetic and real features of 60 pixels in double precision, and their labels: 8, 20 and 32 pixels."""
    generator = torch.Generator().manual_seed(0)
    synthetic, real = torch.rand(2, 1, 16, 1, 60, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1] * 8 + [3] * 20 + [4] * 32)
    return synthetic, real + labels / 10, labels


def test_mmd_of_several_classes_is_the_mean_of_each_alone(three_classes):
    synthetic, real, labels = three_classes
    each = [labels == class_id for class_id in (1, 3, 4)]
    alone = [classwise_mmd(synthetic[..., one], real[..., one], labels[one], 6).item() for one in each]
    assert classwise_mmd(synthetic, real, labels, 6).item() == pytest.approx(sum(alone) / 3)


def test_mmd_does_not_depend_on_the_order_of_pixels(three_classes):
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    shuffled = [values[..., order] for values in three_classes]
    assert classwise_mmd(*shuffled, 6).item() == pytest.approx(classwise_mmd(*three_classes, 6).item())


def test_mmd_gradient_is_that_of_the_value(three_classes):
    synthetic, real, labels = (values[..., 4:12].clone() for values in three_classes)
    assert torch.autograd.gradcheck(lambda x: classwise_mmd(x, real, labels, 6), synthetic.requires_grad_())


def test_mmd_of_equal_sets_has_a_finite_gradient():
    real, synthetic = golden_group("a", torch.float32), golden_group("a", torch.float32).requires_grad_()
    classwise_mmd(synthetic, real, torch.zeros(40).long(), 1).backward()
    assert synthetic.grad.isfinite().all()


def test_large_class_takes_part_with_max_pixels(three_classes):
    synthetic, real, labels = three_classes
    synthetic.requires_grad_()
    classwise_mmd(synthetic, real, labels, 6, max_pixels=10).backward()
    learning = synthetic.grad[0, :, 0].abs().sum(dim=0) > 0
    assert [learning[labels == c].sum().item() for c in (1, 3, 4)] == [8, 10, 10]


def test_pixels_of_a_large_class_are_drawn_uniformly():
    torch.manual_seed(0)
    drawn = torch.zeros(8)
    for _ in range(400):
        synthetic = torch.rand(1, 4, 1, 8, requires_grad=True)
        classwise_mmd(synthetic, torch.rand(1, 4, 1, 8), torch.zeros(8).long(), 1, max_pixels=2).backward()
        drawn += synthetic.grad[0, :, 0].abs().sum(dim=0) > 0
    assert drawn.sum() == 800
    assert (drawn - 100).abs().max() < 40  # a standard deviation is 8.7


class LargestTensor(TorchDispatchMode):
    """Remembers the most values that any tensor made within has."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            self.values = max(self.values, output.numel())
        return output


@pytest.mark.parametrize("present", [1, 60])
def test_no_matrix_of_the_mmd_outgrows_a_chunk(present):
    """Whether one class fills the batch or sixty share it: nothing but the features grows with pixels or classes."""
    synthetic, real = torch.rand(2, 1, 4, 1, 8 * 47 * 47)
    synthetic.requires_grad_()
    labels = torch.arange(8 * 47 * 47) % present
    with LargestTensor() as largest:
        classwise_mmd(synthetic, real, labels, 60).backward()
    assert largest.values <= losses.CHUNK_VALUES["cpu"]


def test_chunks_of_classes_give_what_all_at_once_give(three_classes, monkeypatch):
    results = []
    for values in (1, 2**30):
        monkeypatch.setitem(losses.CHUNK_VALUES, "cpu", values)
        synthetic, real, labels = (x.clone() for x in three_classes)
        loss = classwise_mmd(synthetic.requires_grad_(), real, labels, 6)
        loss.backward()
        results.append((loss, synthetic.grad))
    torch.testing.assert_close(results[0], results[1])


def test_mmd_gradient_is_that_of_the_formula_differentiated(three_classes):
    synthetic, real, labels = three_classes
    synthetic.requires_grad_()
    roots = []
    for class_id in (1, 3, 4):
        x, y = (values[0, :, 0, labels == class_id].t() for values in (synthetic, real))

        def mean_kernel(a, b):
            distances = (a[:, None] - b[None]).square().sum(-1)
            return sum(torch.exp(-distances / (2 * bandwidth)).mean() for bandwidth in MMD_BANDWIDTHS)

        roots.append((0.5 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))).sqrt())
    expected = torch.autograd.grad(sum(roots) / 3, synthetic)
    loss = classwise_mmd(synthetic, real, labels, 6)
    assert loss.item() == pytest.approx(sum(roots).item() / 3)
    torch.testing.assert_close(torch.autograd.grad(loss, synthetic), expected)


def test_autocast_leaves_the_mmd_in_single_precision():
    synthetic, real = golden_group("a", torch.float32), golden_group("near", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = classwise_mmd(synthetic, real, torch.zeros(40).long(), 1)
    assert loss.item() == pytest.approx(VALUES["mmd"]["f64"]["sqrt_near"], abs=5e-5)


@pytest.mark.parametrize("kind", ["mmd", "l1", "l2"])
def test_content_loss_without_labelled_pixels_is_zero_and_keeps_its_graph(kind):
    none = torch.zeros(1, 4, 1, 0, requires_grad=True)
    loss = content_loss(kind, none, torch.zeros(1, 4, 1, 0), torch.zeros(0, dtype=torch.long), 3)
    loss.backward()
    assert loss.item() == 0
    assert none.grad.shape == none.shape


# KL divergence


def test_kl_is_the_mean_divergence_of_labelled_pixels():
    mean, log_variance = torch.randn(2, 2, 5, 3, 4)
    gaussian = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    divergence = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0.0, 1.0))
    mask = torch.arange(24).view(2, 3, 4) % 3 == 0
    expected = divergence.movedim(1, -1)[mask].mean().item()
    assert kl_to_standard_normal(mean, log_variance, mask).item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_found_in_single_precision():
    """Near a standard normal 1 + log σ² − σ² leaves nothing of half precision."""
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (1e-3 * torch.randn(2, 2, 5, 3, 4, generator=generator)).bfloat16().requires_grad_().unbind()
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kl_to_standard_normal(mean, log_variance, mask)
    expected = kl_to_standard_normal(mean.double(), log_variance.double(), mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, log_variance)
    (exact,) = torch.autograd.grad(expected, log_variance)
    torch.testing.assert_close(gradient, exact, rtol=0.05, atol=1e-7)


def test_kl_without_labelled_pixels_is_zero_and_keeps_its_graph():
    mean = torch.randn(1, 5, 3, 4, requires_grad=True)
    loss = kl_to_standard_normal(mean, torch.zeros(1, 5, 3, 4), torch.zeros(1, 3, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not mean.grad.any()


# Classification


def test_cross_entropy_is_summed_in_single_precision():
    logits, labels = torch.randn(4, 20, 30, 30).bfloat16(), torch.randint(20, (4, 30, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mean_cross_entropy(logits, labels, ignore_index=255)
    assert loss.item() == pytest.approx(mean_cross_entropy(logits.double(), labels, ignore_index=255).item(), rel=1e-5)


def test_cross_entropy_is_the_reference_s(reference):
    loss = multi_scale_cross_entropy([reference.classifier(reference.real)], [reference.labels])
    assert loss.item() == reference.approx(VALUES["cls/ps1/select_False"][reference.precision]["loss"])


@pytest.fixture
def two_maps():
    logits = [torch.randn(2, 5, 4, 6), torch.randn(2, 5, 2, 3)]
    labels = [torch.arange(48).view(2, 4, 6) % 5, torch.arange(12).view(2, 2, 3) % 5]
    labels[0][0, 0] = 255
    return logits, labels


@pytest.mark.parametrize(("reduction", "join"), [("mean", torch.mean), ("sum", torch.sum)])
def test_maps_of_several_sizes_count_equally(two_maps, reduction, join):
    each = [F.cross_entropy(logits, labels, ignore_index=255) for logits, labels in zip(*two_maps, strict=True)]
    loss = multi_scale_cross_entropy(*two_maps, reduction=reduction)
    assert loss.item() == pytest.approx(join(torch.stack(each)).item())


def test_map_without_labels_counts_as_zero(two_maps):
    logits, labels = two_maps
    labels[1][:] = 255
    first = F.cross_entropy(logits[0], labels[0], ignore_index=255).item()
    assert multi_scale_cross_entropy(logits, labels).item() == pytest.approx(first / 2)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_mean_cross_entropy_is_the_mean_over_labelled_pixels(weighted):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, generator=random, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, (2, 6, 7), generator=random)
    labels[0, :3] = 255
    weights = torch.rand(5, generator=random, dtype=torch.float64) if weighted else None
    expected = F.cross_entropy(logits, labels, weights, ignore_index=255)
    found = mean_cross_entropy(logits, labels, ignore_index=255, class_weights=weights)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("weights", [None, torch.ones(5)], ids=["plain", "weighted"])
def test_mean_cross_entropy_without_a_label_is_zero(weights):
    logits = torch.randn(1, 5, 2, 2, requires_grad=True)
    loss = mean_cross_entropy(logits, torch.full((1, 2, 2), 255), ignore_index=255, class_weights=weights)
    assert loss == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
