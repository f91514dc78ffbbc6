"""The losses of CaGNet, SPNet and ZS3Net, as pure functions.

Pixel lists are maps of one row, `(1, C, 1, P)`, so the networks' 1x1 convolutions and these functions see one layout.
Sources: CaGNet (arXiv 2008.06893) sections 3.2 to 3.5; GMMN (Li et al., 2015) for the MMD; ZS3Net (Bucher et al.,
2019) section 3.1.
"""

import torch
import torch.nn.functional as F

from ..model.maps_cagnet import mean_cross_entropy

MMD_BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
ZS3NET_BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
SMALLEST_SQUARED_MMD = 1e-9  # keeps the root's gradient finite at equal sets
# Values of a matrix of kernels or rows at a time, of which a handful are alive together: 8 MiB each, for the caches of
# a CPU; 256 MiB on a GPU, for which fewer and larger kernels are faster.
CHUNK_VALUES = {"cpu": 2**21, "cuda": 2**26}


def multi_scale_cross_entropy(logit_maps, label_maps, *, ignore_index: int = 255, reduction: str = "mean"):
    """Cross-entropy of several maps `(B, N, h, w)` against their labels `(B, h, w)`.

    Each map's loss is the mean over its labelled pixels (0 when there is none); `reduction` joins the maps: `"mean"`
    (CaGNet) or `"sum"` (SPNet).
    """
    pairs = zip(logit_maps, label_maps, strict=True)
    joined = torch.stack([mean_cross_entropy(*pair, ignore_index=ignore_index) for pair in pairs])
    return joined.mean() if reduction == "mean" else joined.sum()


def kl_to_standard_normal(mean, log_variance, mask):
    """−½ · mean(1 + log σ² − μ² − σ²) over labelled pixels and channels.

    Args:
        mean, log_variance: `(B, D, h, w)`.
        mask: `(B, h, w)` bool, True where labelled; the loss is 0 when nothing is.
    """
    precision = torch.promote_types(mean.dtype, torch.float32)  # near a standard normal halves leave nothing
    mean, log_variance = mean.to(precision), log_variance.to(precision)
    divergence = 0.5 * (mean.square() + log_variance.expm1() - log_variance).mean(dim=1)
    return (divergence * mask).sum() / mask.sum().clamp_min(1)


def classwise_mmd(synthetic, real, labels, num_classes: int, *, max_pixels: int = 256):
    """Maximum mean discrepancy between synthetic and real features, per class, averaged over the classes present.

    For a class with n pixels, sqrt(½ · Σ_σ MMD²_σ) with k_σ(a, b) = exp(−‖a−b‖² / 2σ), σ in `MMD_BANDWIDTHS`, the
    biased (V-)statistic. A class with more than `max_pixels` pixels takes part with that many of them, drawn
    uniformly. Classes are computed together, as many at a time as `CHUNK_VALUES` allows; nothing waits for a device.

    Args:
        synthetic: `(1, D, 1, P)` features of the labelled pixels, which learn.
        real: `(1, D, 1, P)` features of the same pixels, which do not: no gradient reaches them.
        labels: `(P,)` class of each pixel, in [0, num_classes). Kernels are evaluated for absent classes, too.
        max_pixels: Bound m of pixels per class; a class takes 3m² kernel evaluations.
    """
    pixels = labels.numel()
    if pixels == 0:
        return synthetic.sum() * 0.0
    width = min(max_pixels, pixels)
    order = torch.randperm(pixels, device=labels.device)
    order = order[torch.argsort(labels[order], stable=True)]  # by class, at random within a class
    grouped = labels[order]
    counts = torch.zeros(num_classes, dtype=torch.long, device=labels.device).index_add_(
        0, labels, torch.ones_like(labels)
    )
    rank = torch.arange(pixels, device=labels.device) - (counts.cumsum(0) - counts)[grouped]
    # One row of slots per class; pixels beyond a class's slots go to a spare one, which is cut off.
    slot = torch.where(rank < width, grouped * width + rank, num_classes * width)
    index = torch.full((num_classes * width + 1,), pixels, device=labels.device)  # an empty slot points past the end
    index = index.index_put_((slot,), order)[:-1].view(num_classes, width)

    squared_mmd = _SquaredMMD.apply(*(x.squeeze((0, 2)).t() for x in (synthetic, real)), index, index, MMD_BANDWIDTHS)
    # w = (M² + N²) / (M + N)² = ½ for equal numbers
    per_class = (0.5 * squared_mmd).clamp_min(SMALLEST_SQUARED_MMD).sqrt()
    present = counts > 0
    return (per_class * present).sum() / present.sum().clamp_min(1)


def moment_matching_loss(synthetic, real, *, bandwidth_scale: float = 1.0):
    """ZS3Net: sqrt(Σ_σ MMD²_σ) with σ in `ZS3NET_BANDWIDTHS`, kernel and statistic as in `classwise_mmd`.

    Args:
        synthetic: `(M, D)` features of one class, M > 0, which learn.
        real: `(N, D)` features of it, N > 0, which do not: no gradient reaches them.
        bandwidth_scale: Factor on every σ. Features whose squared distances are far above the published bandwidths
            leave kernels, and with them gradients, at zero.
    """
    every_row = [torch.arange(len(features), device=features.device)[None] for features in (synthetic, real)]
    bandwidths = tuple(bandwidth_scale * bandwidth for bandwidth in ZS3NET_BANDWIDTHS)
    squared_mmd = _SquaredMMD.apply(synthetic, real, *every_row, bandwidths)[0]
    return squared_mmd.clamp_min(SMALLEST_SQUARED_MMD).sqrt()


class _SquaredMMD(torch.autograd.Function):
    """Σ_σ MMD²_σ between groups of rows of two sets, with the gradient of the first set in closed form.

    MMD² = Σ_ij a_i a_j k(x_i, x_j), a = 1/M at the M synthetic rows and −1/N at the N real ones. Its gradient at a
    synthetic row is 4 a_i Σ_j a_j k'(x_i, x_j) (x_i − x_j), k' the derivative by the squared distance. It is found
    while the kernels are at hand, so that none outlives its chunk of groups.
    """

    @staticmethod
    def forward(ctx, synthetic, real, synthetic_index, real_index, bandwidths):
        """Rows `(P, D)` and `(Q, D)`; which of them each of C groups holds, `(C, m)` and `(C, n)`, P or Q where none.

        Returns:
            `(C,)`.
        """
        precision = torch.promote_types(synthetic.dtype, torch.float32)  # distances need it
        m, n = synthetic_index.shape[1], real_index.shape[1]
        chunk = CHUNK_VALUES.get(synthetic.device.type, CHUNK_VALUES["cpu"])
        at_a_time = max(1, chunk // (max(m, n) * max(m + n, synthetic.shape[1])))
        values, gradients = [], []
        with torch.autocast(synthetic.device.type, enabled=False):  # halves would drown small distances
            for made_rows, real_rows in zip(
                synthetic_index.split(at_a_time), real_index.split(at_a_time), strict=True
            ):
                x, a = _rows_and_shares(synthetic, made_rows, precision)
                y, b = _rows_and_shares(real, real_rows, precision)
                both, signed, weights = torch.cat([x, y], 1), torch.cat([a, -b], 1), torch.cat([a, -2 * b], 1)
                norms = both.square().sum(-1)
                kernel, slope = _kernel_and_slope(_squared_distances(x, both, norms[:, :m], norms), bandwidths)
                real_distances = _squared_distances(y, y, norms[:, m:], norms[:, m:])
                real_kernel = sum(part for _, part in _kernels(real_distances, bandwidths))
                values.append((a * (kernel @ weights)).sum((1, 2)) + (b * (real_kernel @ b)).sum((1, 2)))
                # a_i is one number in all slots but the empty ones, whose gradient goes nowhere.
                slope *= (4 * a.amax(1, keepdim=True) * signed).mT
                gradients.append(torch.baddbmm(x.mul_(slope.sum(2, keepdim=True)), slope, both, alpha=-1))
        ctx.save_for_backward(torch.cat(gradients), synthetic_index)
        ctx.num_rows = len(synthetic)
        return torch.cat(values)

    @staticmethod
    def backward(ctx, value_gradient):
        gradients, index = ctx.saved_tensors
        gradient = gradients.new_zeros(ctx.num_rows + 1, gradients.shape[2])  # empty slots share a spare row
        gradient[index] = gradients * value_gradient[:, None, None]
        return gradient[:-1], None, None, None, None


def _rows_and_shares(features, index, precision):
    """Rows `(C, m, D)` of features `(P, D)` and the share of each in its group, `(C, m, 1)`: 0 where there is none."""
    used = index < len(features)
    share = used.to(precision) / used.sum(1, keepdim=True).clamp_min(1)
    rows = features.index_select(0, index.clamp(max=len(features) - 1).flatten())
    return rows.view(*index.shape, features.shape[1]).to(precision), share[:, :, None]


def _squared_distances(a, b, a_norms, b_norms):
    """‖a_i − b_j‖² of `(C, M, D)` and `(C, N, D)`, with their squared norms `(C, M)`, `(C, N)` -> `(C, M, N)`."""
    return torch.baddbmm(a_norms[:, :, None] + b_norms[:, None], a, b.mT, alpha=-2).clamp_(min=0)


def _kernel_and_slope(distances, bandwidths):
    """Σ_σ k_σ and its derivative by the squared distance, both of the shape of `distances`."""
    kernel, slope = torch.zeros_like(distances), torch.zeros_like(distances)
    for bandwidth, part in _kernels(distances, bandwidths):
        kernel += part
        slope.add_(part, alpha=-1 / (2 * bandwidth))
    return kernel, slope


def _kernels(distances, bandwidths):
    """(σ, k_σ) of every bandwidth, the widest first; a kernel is to be used before the next is asked for."""
    part, wider = None, None
    for bandwidth in sorted(bandwidths, reverse=True):
        # k_σ = k_2σ², and a product costs less than an exponential.
        part = part.square_() if wider == 2 * bandwidth else (distances / (-2 * bandwidth)).exp_()
        yield bandwidth, part
        wider = bandwidth


def content_loss(kind: str, synthetic, real, labels, num_classes: int, *, max_pixels: int = 256):
    """How far synthetic features are from the real ones of the same pixels: `"mmd"`, `"l1"` or `"l2"`.

    `"mmd"` compares their distributions class by class; `"l1"` and `"l2"` compare pixel by pixel (mean over all
    values; `"l2"` is the reconstruction of the paper's text).
    """
    if kind == "mmd":
        return classwise_mmd(synthetic, real, labels, num_classes, max_pixels=max_pixels)
    if labels.numel() == 0:
        return synthetic.sum() * 0.0
    if kind == "l1":
        return F.l1_loss(synthetic, real)
    if kind == "l2":
        return F.mse_loss(synthetic, real)
    raise ValueError(f"unknown content loss {kind!r}")


def critic_loss(kind: str, real_score, synthetic_score):
    """What the critic minimises: tell real (1) from synthetic (0).

    `"lsgan"` squared, `"l1"` absolute (the published release), `"bce"`, `"wgan"` (mean scores; `"wgan-gp"` adds
    `gradient_penalty`). Scores are in (0, 1), any shape.
    """
    if kind in ("wgan", "wgan-gp"):
        return _mean(synthetic_score) - _mean(real_score)
    return _to_target(kind, real_score, 1.0) + _to_target(kind, synthetic_score, 0.0)


def generator_adversarial_loss(kind: str, synthetic_score):
    """What the generator minimises: be taken for real."""
    return -_mean(synthetic_score) if kind in ("wgan", "wgan-gp") else _to_target(kind, synthetic_score, 1.0)


def gradient_penalty(criticise, real, synthetic, mixing=None):
    """WGAN-GP: mean of (‖∇ D(a·real + (1−a)·synthetic)‖₂ − 1)² over pixels.

    The critic judges pixels, so a pixel is a sample here; the published release takes a whole image as one.

    Args:
        criticise: The critic, `(B, D, h, w)` -> scores.
        real, synthetic: `(B, D, h, w)` features.
        mixing: `(B, 1, h, w)`-broadcastable weights a; uniform per pixel when None.
    """
    if mixing is None:
        mixing = torch.rand_like(real[:, :1])
    mixed = (mixing * real + (1 - mixing) * synthetic).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(criticise(mixed).sum(), mixed, create_graph=True)
    return _mean((gradient.norm(dim=1) - 1).square())


def _mean(values):
    return values.sum() / max(values.numel(), 1)


def _to_target(kind: str, score, target: float):
    if kind == "lsgan":
        return _mean((score - target).square())
    if kind == "l1":
        return _mean((score - target).abs())
    if kind == "bce":
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        with torch.autocast(score.device.type, enabled=False):  # CUDA refuses this loss under autocast
            total = F.binary_cross_entropy(score, torch.full_like(score, target), reduction="sum")
        return total / max(score.numel(), 1)
    raise ValueError(f"unknown adversarial loss {kind!r}")
