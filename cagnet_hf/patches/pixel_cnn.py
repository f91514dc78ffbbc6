"""A PixelCNN over k x k patches of categories: how likely a patch is, and how to draw new ones.

Shapes: B patches, T = k² raster positions, N classes, E class-embedding size, C hidden size.
Sources: CaGNetv2 (arXiv 2009.12232); PixelCNN (van den Oord et al., 2016).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..model.backbones_cagnet import start_batch_norm
from .layouts import NO_CLASS


@strict
class PatchPixelCNNConfig(PreTrainedConfig):
    r"""Configuration of `PatchPixelCNN`; the defaults are the published network for 3x3 patches.

    Args:
        patch_size: k, side of a patch: 3, 5 or 7.
        num_classes: N, classes in model order.
        unseen_ids: Model ids of the classes that sampled patches are for.
        embedding_size: E, length of a class embedding.
        hidden_size: C, channels of every layer.
        kernel_size: Side of the masked kernels; None is 7 for 3x3 patches and 3 for larger ones.
        num_layers: Masked convolutions; None is 8 for 3x3 patches and 4 for larger ones.
        dropout: Dropout after the last two layers.
        condition: `"first"` (the class of the first raster pixel, repeated over the patch), `"patch"` (every pixel's
            own class, the one to predict included: what the published release did, kept as an ablation that cannot be
            sampled) or None.
    """

    model_type = "cagnet_patch_pixel_cnn"

    patch_size: int = 3
    num_classes: int = 20
    unseen_ids: list[int] | tuple[int, ...] = ()
    embedding_size: int = 600
    hidden_size: int = 64
    kernel_size: int | None = None
    num_layers: int | None = None
    dropout: float | int = 0.5
    condition: str | None = "first"

    def __post_init__(self, **kwargs):
        if self.patch_size not in (3, 5, 7):
            raise ValueError(f"patch_size={self.patch_size}: choose one of 3, 5, 7")
        if self.condition not in ("first", "patch", None):
            raise ValueError(f"condition={self.condition!r}: choose one of 'first', 'patch', None")
        if self.kernel_size is None:
            self.kernel_size = 7 if self.patch_size == 3 else 3
        if self.num_layers is None:
            self.num_layers = 8 if self.patch_size == 3 else 4
        if not 0 < self.num_classes <= NO_CLASS:
            raise ValueError(f"num_classes={self.num_classes}: patches are uint8 and {NO_CLASS} is no class")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size}: a masked kernel has a centre; choose an odd size")
        if not set(self.unseen_ids) <= set(range(self.num_classes)):
            raise ValueError(f"unseen_ids={list(self.unseen_ids)} are not all among {self.num_classes} classes")
        super().__post_init__(**kwargs)


@dataclass
class PatchPixelCNNOutput(ModelOutput):
    """Scores of every position's class.

    Attributes:
        loss: Nats per labelled pixel after the first, when labels are given.
        logits: `(B, N, k, k)`; those of position t depend on the condition and positions before t alone.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class CausalConvolution(nn.Conv2d):
    """A convolution without bias that sees earlier raster positions and, if asked to, the position itself."""

    def __init__(self, in_channels, out_channels, kernel_size, *, sees_itself):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.sees_itself = sees_itself

    def visible_weight(self, rows=slice(None), columns=slice(None)):
        """The weight `(C_out, C_in, K, K)`, or part of it, with zeros at what it must not see; a new tensor."""
        size = self.kernel_size[0]
        taps = torch.arange(size * size, device=self.weight.device).view(size, size)
        visible = taps < size * size // 2 + self.sees_itself
        return self.weight[:, :, rows, columns] * visible[rows, columns]

    def forward(self, hidden, class_embeddings=None):
        """`(B, C_in, k, k)` -> `(B, C_out, k, k)`; or from classes, `(B, N, k, k)` of ones and zeros, whose embeddings
        `(N, C_in)` are folded into the weight: there are fewer classes than numbers in an embedding."""
        batch, _, height, side = hidden.shape
        if height != side:
            raise ValueError(f"patches of {height} x {side}: they must be square")
        radius = self.padding[0]
        reach = min(radius, side - 1)  # a tap further out meets nothing but padding, and rows below see nothing
        weight = self.visible_weight(slice(radius - reach, radius + 1), slice(radius - reach, radius + reach + 1))
        if class_embeddings is not None:
            weight = torch.einsum("oehw,ne->onhw", weight, class_embeddings)
        # One product of matrices: on patches, which are nearly all rim, convolutions take longer.
        cells = F.pad(hidden.flatten(2).mT, (0, 0, 1, 0))  # (B, 1 + T, C_in), the first of which lies outside
        seen = cells.index_select(1, _windows(side, reach, hidden.device)).view(batch * side * side, weight[0].numel())
        made = seen @ weight.flatten(2).permute(2, 1, 0).reshape(-1, len(weight))
        return made.view(batch, side, side, len(weight)).movedim(-1, 1)


def _windows(side: int, reach: int, device) -> torch.Tensor:
    """The cells that each position of a patch sees, row by row of a window: from 1 in raster order, 0 is outside."""
    cells = torch.arange(1, side * side + 1, device=device).view(side, side)
    windows = F.pad(cells, (reach, reach, reach, 0)).unfold(0, reach + 1, 1).unfold(1, 2 * reach + 1, 1)
    return windows.flatten()


class PatchPixelCNNLayer(nn.Module):
    """Masked convolution, batch normalisation and ReLU, plus a learnt bias from the condition's embedding."""

    def __init__(self, config, index):
        super().__init__()
        inputs = config.embedding_size if index == 0 else config.hidden_size
        self.convolution = CausalConvolution(inputs, config.hidden_size, config.kernel_size, sees_itself=index > 0)
        self.normalization = nn.BatchNorm2d(config.hidden_size)
        self.condition = None
        if config.condition is not None:
            self.condition = nn.Linear(config.embedding_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.dropout if index >= config.num_layers - 2 else 0.0)

    def forward(self, hidden, condition, class_embeddings=None):
        """`(B, C_in, k, k)` and the condition's embeddings, broadcastable to `(B, k, k, E)` -> `(B, C, k, k)`."""
        hidden = F.relu(self.normalization(self.convolution(hidden, class_embeddings)))
        if self.condition is not None:
            hidden = hidden + self.condition(condition).movedim(-1, 1)
        return self.dropout(hidden)


class PatchPixelCNN(PreTrainedModel):
    """p(patch) = Π p(c_t | c_0 … c_{t−1}, condition), every category entering as its class embedding."""

    config_class = PatchPixelCNNConfig
    base_model_prefix = "pixel_cnn"
    main_input_name = "patches"

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(PatchPixelCNNLayer(config, index) for index in range(config.num_layers))
        self.head = nn.Conv2d(config.hidden_size, config.num_classes, 1)
        self.register_buffer("class_embeddings", torch.zeros(config.num_classes, config.embedding_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """Convolutions Kaiming-normal, condition and head Xavier-normal, biases 0."""
        if isinstance(module, CausalConvolution):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Conv2d | nn.Linear):
            init.xavier_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            start_batch_norm(module)
        elif isinstance(module, PatchPixelCNN):
            init.zeros_(module.class_embeddings)

    def forward(self, patches, labels=None, condition_ids=None, return_dict=None, **kwargs):
        """Scores of every position's class.

        Args:
            patches: `(B, k, k)` class indices in model order, every position filled.
            labels: `(B, k, k)` the same with `NO_CLASS` where the loss must not look. The first position
                is given, so it never counts.
            condition_ids: Class indices, broadcastable to `(B, k, k)`; by default what `config.condition` says.
        """
        if condition_ids is None:
            condition_ids = patches[:, :1, :1] if self.config.condition == "first" else patches
        condition = self.class_embeddings[condition_ids]
        embeddings = self.class_embeddings
        hidden = F.one_hot(patches.long(), len(embeddings)).movedim(-1, 1).to(embeddings)  # (B, N, k, k)
        for layer in self.layers:
            hidden, embeddings = layer(hidden, condition, embeddings), None  # of the first layer alone
        logits = self.head(hidden)
        loss = None
        if labels is not None:
            log_probability, counted = log_likelihood(logits, labels)
            loss = -log_probability.sum() / counted.sum().clamp_min(1)
        output = PatchPixelCNNOutput(loss=loss, logits=logits)
        return output if return_dict is not False else output.to_tuple()


def log_likelihood(logits, labels):
    """Log probability of each labelled position after the first, which is given.

    Args:
        logits: `(B, N, k, k)`.
        labels: `(B, k, k)`, `NO_CLASS` where there is none.

    Returns:
        Log probabilities `(B, k, k)` in nats, 0 where nothing is counted, and what is counted, `(B, k, k)` bool.
    """
    first = torch.arange(labels[0].numel(), device=labels.device).view(labels.shape[1:]) == 0
    counted = (labels != NO_CLASS) & ~first
    truth = torch.where(counted, labels, NO_CLASS)
    return -F.cross_entropy(logits, truth, ignore_index=NO_CLASS, reduction="none"), counted


class RasterNetwork:
    """A network in evaluation mode, taken apart into what each raster position adds to the later ones.

    Normalisation is folded into the kernels, and the first layer, which only ever sees class embeddings, into a table.
    `state[layer][t]` is the sum `(R, C)` of what earlier positions have added to a layer at position t.

    Raises:
        ValueError: The condition holds the pixels to be sampled.
    """

    @torch.no_grad()
    def __init__(self, model: PatchPixelCNN):
        config = model.config
        if config.condition == "patch":
            raise ValueError(
                'condition="patch" shows the network the pixels to be sampled: train with condition="first"'
            )
        self.num_classes, self.side, self.size = config.num_classes, config.patch_size, config.kernel_size
        self.num_positions = config.patch_size**2
        self.biases, self.conditions, self.weights = [], [], []
        for layer in model.layers:
            norm = layer.normalization
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight = (layer.convolution.visible_weight() * scale[:, None, None, None]).flatten(2)  # (C, C_in, K²)
            if not self.weights:  # class -> what it adds: (K², N, C)
                weight = torch.einsum("cek,ne->knc", weight, model.class_embeddings)
            else:
                weight = weight.permute(2, 1, 0).contiguous()  # (K², C, C)
            self.weights.append(weight)
            self.biases.append(norm.bias - norm.running_mean * scale)
            self.conditions.append(None if layer.condition is None else layer.condition(model.class_embeddings))
        self.head_weight, self.head_bias = model.head.weight.flatten(1).t(), model.head.bias

    def new_state(self) -> list[dict[int, torch.Tensor]]:
        return [{} for _ in self.weights]

    @torch.no_grad()
    def logits(self, position: int, first_classes: torch.Tensor, state) -> torch.Tensor:
        """Scores `(R, N)` of one position, once every earlier one has been scored and added.

        Args:
            position: t, in raster order.
            first_classes: `(R,)` classes of the first position, the condition.
            state: From `new_state`; updated.
        """
        hidden = None
        for layer, (bias, condition) in enumerate(zip(self.biases, self.conditions, strict=True)):
            if layer > 0:
                for later, tap in self._seen_by(position, itself=True):
                    total = state[layer].get(later, bias)
                    state[layer][later] = torch.addmm(total, hidden, self.weights[layer][tap])
            hidden = state[layer].pop(position, bias.expand(len(first_classes), -1)).relu()
            if condition is not None:
                hidden = hidden + condition[first_classes]
        return torch.addmm(self.head_bias, hidden, self.head_weight)

    def add(self, position: int, classes: torch.Tensor, state) -> None:
        """Let later positions know the classes `(R,)` of one; `state` is updated."""
        for later, tap in self._seen_by(position, itself=False):
            state[0][later] = state[0].get(later, self.biases[0]) + self.weights[0][tap, classes]

    def _seen_by(self, position, *, itself):
        """The positions whose kernel a position lies in, and the tap that meets it."""
        row, column = divmod(position, self.side)
        for later in range(position + (not itself), self.num_positions):
            down, right = row - later // self.side + self.size // 2, column - later % self.side + self.size // 2
            if 0 <= down and 0 <= right < self.size:
                yield later, down * self.size + right

    @torch.no_grad()
    def sample(self, first_classes: torch.Tensor, start: int, *, generator=None) -> torch.Tensor:
        """Draw patches in raster order; those that begin alike share their computation until most have parted.

        Args:
            first_classes: `(B,)` the class that the first `start` positions of each patch hold.
            start: Positions given, at least 1.

        Returns:
            `(B, k, k)` class indices.
        """
        patches = first_classes[:, None].repeat(1, self.num_positions)
        first, row = first_classes.unique(return_inverse=True)  # (R,); patch b begins like row[b]
        last, state, shared = first, self.new_state(), True
        for position in range(self.num_positions):
            probabilities = self.logits(position, first, state).softmax(dim=1)
            if position >= start:
                drawn = torch.multinomial(probabilities[row] if shared else probabilities, 1, generator=generator)
                patches[:, position] = last = drawn.squeeze(1)
                if shared:
                    beginnings, next_row = (row * self.num_classes + last).unique(return_inverse=True)
                    shared = 2 * len(beginnings) <= len(patches)
                    parent = row
                    if shared:
                        row, parent, last = next_row, beginnings // self.num_classes, beginnings % self.num_classes
                    first = first[parent]
                    state = [{later: total[parent] for later, total in layer.items()} for layer in state]
            self.add(position, last, state)
        return patches.unflatten(1, (self.side, self.side))


__all__ = ["PatchPixelCNN", "PatchPixelCNNConfig", "RasterNetwork", "log_likelihood"]
