"""Backbones: an image -> a feature map. `BACKBONES` holds them by name.

A backbone is a module that is built from the configuration, turns images `(B, 3, H, W)` into a map
`(B, num_channels, h, w)` and has an attribute `num_channels`. Its attribute `weight_fields`, if it has one, names the
fields of the configuration that its weights depend on.

In the backbones of this package strides beyond `output_stride` become dilations, so that ImageNet weights fit at every
output stride.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING
from transformers.utils import is_timm_available

from .contracts_cagnet import PartTable


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, optional activation.

    Where no gradient is asked for and the statistics rest, the normalisation is folded into the convolution and the
    activation works in place: two passes over the map less, and equal values but for rounding.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, dilation=1, groups=1, activation=None, eps=1e-5
    ):
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False
        )
        self.normalization = nn.BatchNorm2d(out_channels, eps=eps)
        self.activation = activation

    def forward(self, hidden):
        if not self._may_fold():
            hidden = self.normalization(self.convolution(hidden))
            return hidden if self.activation is None else self.activation(hidden)
        hidden = F.conv2d(hidden, *self._folded(), **self._geometry())
        if _is_plain(self.activation, nn.ReLU):
            return hidden.relu_()
        if _is_plain(self.activation, nn.ReLU6):
            return hidden.clamp_(0, 6)
        return hidden if self.activation is None else self.activation(hidden)

    def _may_fold(self) -> bool:
        # A traced program keeps both operations; what is hooked, replaced or kept elsewhere is to be called.
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        convolution, norm = self.convolution, self.normalization
        return (
            _is_plain(convolution, nn.Conv2d)
            and _is_plain(norm, nn.BatchNorm2d)
            and not (norm.training or norm.running_mean is None or norm.weight is None)
            and convolution.bias is None
            and convolution.padding_mode == "zeros"
            and not convolution.weight.is_meta
        )

    def _folded(self):
        """Weight and bias of the convolution after which nothing is to be normalised."""
        norm, weight = self.normalization, self.convolution.weight
        precision = torch.promote_types(weight.dtype, torch.float32)
        values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        gain, shift, mean, variance = (value.to(precision) for value in values)
        scale = gain * torch.rsqrt(variance + norm.eps)
        bias = shift - mean * scale
        return (weight * scale[:, None, None, None]).to(weight.dtype), bias.to(weight.dtype)

    def _geometry(self) -> dict:
        convolution = self.convolution
        return {name: getattr(convolution, name) for name in ("stride", "padding", "dilation", "groups")}


def _is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether calling the module is nothing else than the operation of its class."""
    if type(module) is not kind or "forward" in vars(module):
        return False
    everywhere = nn.modules.module
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hasattr(module, "_hf_hook")
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
    )


def stage_strides(nominal_strides, output_stride: int, stem_stride: int):
    """(stride, dilation) of each stage so that the product of strides is `output_stride`."""
    reached, dilation, plan = stem_stride, 1, []
    for stride in nominal_strides:
        if reached * stride <= output_stride:
            reached *= stride
        else:
            dilation *= stride
            stride = 1
        plan.append((stride, dilation))
    return plan


class Bottleneck(GradientCheckpointingLayer):
    """1x1, 3x3, 1x1 with a residual connection (ResNet)."""

    def __init__(self, in_channels, out_channels, stride, dilation, stride_in_1x1):
        super().__init__()
        width = out_channels // 4
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        relu = nn.ReLU()
        self.reduce = ConvNorm(in_channels, width, 1, first, activation=relu)
        self.spatial = ConvNorm(width, width, 3, second, dilation, activation=relu)
        self.increase = ConvNorm(width, out_channels, 1)
        project = stride != 1 or in_channels != out_channels
        self.shortcut = ConvNorm(in_channels, out_channels, 1, stride) if project else nn.Identity()
        self.activation = relu

    def forward(self, hidden):
        return self.activation(self.increase(self.spatial(self.reduce(hidden))) + self.shortcut(hidden))


class DeepLabResNet(nn.Module):
    """ResNet with dilated last stages (DeepLabV2): `(B, 3, H, W)` -> `(B, hidden_sizes[-1], h, w)`."""

    weight_fields = ("stride_in_1x1", "stem_size", "depths", "hidden_sizes")

    @staticmethod
    def check(config):
        if not len(config.depths) == len(config.hidden_sizes) == 4:
            raise ValueError(
                f"depths and hidden_sizes need four values, got {config.depths} and {config.hidden_sizes}"
            )
        if min(config.hidden_sizes) < 4:
            raise ValueError(
                f"hidden_sizes={config.hidden_sizes}: a bottleneck has a quarter of them, choose 4 or more"
            )

    def __init__(self, config):
        super().__init__()
        self.stem = ConvNorm(3, config.stem_size, 7, stride=2, activation=nn.ReLU())
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        plan = stage_strides((1, 2, 2, 2), config.output_stride, stem_stride=4)
        channels, stages, previous_dilation = config.stem_size, [], 1
        for depth, size, (stride, dilation) in zip(config.depths, config.hidden_sizes, plan, strict=True):
            blocks = []
            for index in range(depth):
                # A 3x3 convolution that would have strided keeps the dilation of its input's grid.
                keeps = index == 0 and not config.stride_in_1x1
                block_dilation = previous_dilation if keeps else dilation
                blocks.append(
                    Bottleneck(channels, size, stride if index == 0 else 1, block_dilation, config.stride_in_1x1)
                )
                channels = size
            previous_dilation = dilation
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.num_channels = channels

    def forward(self, pixel_values):
        hidden = self.pool(self.stem(pixel_values))
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden


class InvertedResidual(GradientCheckpointingLayer):
    """Expand, depthwise, project (EfficientNet-Lite: ReLU6, no squeeze-and-excitation)."""

    def __init__(self, in_channels, out_channels, expansion, kernel_size, stride, dilation):
        super().__init__()
        width = in_channels * expansion
        relu6, eps = nn.ReLU6(), 1e-3
        self.expand = ConvNorm(in_channels, width, 1, activation=relu6, eps=eps) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(width, width, kernel_size, stride, dilation, groups=width, activation=relu6, eps=eps)
        self.project = ConvNorm(width, out_channels, 1, eps=eps)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, hidden):
        output = self.project(self.depthwise(self.expand(hidden)))
        return hidden + output if self.residual else output


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classification head: `(B, 3, H, W)` -> `(B, 320, h, w)`.

    A larger EfficientNet-Lite multiplies the channels of every stage by `width`, rounded to a multiple of 8, and the
    blocks of all but the first and the last stage by `depth`, rounded up. The stem stays as it is.
    """

    width, depth = 1.0, 1.0

    # (expansion, channels, blocks, kernel size, nominal stride)
    stages = (
        (1, 16, 1, 3, 1),
        (6, 24, 2, 3, 2),
        (6, 40, 2, 5, 2),
        (6, 80, 3, 3, 2),
        (6, 112, 3, 5, 1),
        (6, 192, 4, 5, 2),
        (6, 320, 1, 3, 1),
    )

    def __init__(self, config):
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2, activation=nn.ReLU6(), eps=1e-3)
        plan = stage_strides([stage[-1] for stage in self.stages], config.output_stride, stem_stride=2)
        channels, blocks, previous_dilation = 32, [], 1
        for stage, (expansion, size, depth, kernel_size, _) in enumerate(self.stages):
            stride, dilation = plan[stage]
            size = 8 * round(size * self.width / 8)
            if 0 < stage < len(self.stages) - 1:
                depth = math.ceil(depth * self.depth)
            for index in range(depth):
                # The block that would have strided keeps the dilation of its input's grid.
                block_dilation = previous_dilation if index == 0 else dilation
                blocks.append(
                    InvertedResidual(
                        channels, size, expansion, kernel_size, stride if index == 0 else 1, block_dilation
                    )
                )
                channels = size
            previous_dilation = dilation
        self.blocks = nn.ModuleList(blocks)
        self.num_channels = channels

    def forward(self, pixel_values):
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2 without its classification head: `(B, 3, H, W)` -> `(B, 352, h, w)`."""

    width, depth = 1.1, 1.2


class TransformersBackbone(GradientCheckpointingLayer):
    """The last feature map of any backbone of transformers, and of timm where timm is installed."""

    @staticmethod
    def check(config):
        if config.backbone_config is not None and type(config.backbone_config) not in MODEL_FOR_BACKBONE_MAPPING:
            kind = config.backbone_config.model_type
            raise ValueError(f"backbone_config.model_type={kind!r} is no backbone of transformers (see AutoBackbone)")

    def __init__(self, config):
        super().__init__()
        kind = config.backbone_config.model_type
        if kind == "timm_backbone" and not is_timm_available():
            raise ValueError(f"backbone {config.backbone_config.backbone!r} is one of timm: pip install timm")
        self.backbone = AutoBackbone.from_config(
            config.backbone_config, trust_remote_code=False, dtype=torch.get_default_dtype()
        )
        self.num_channels = self.backbone.channels[-1]

    def forward(self, pixel_values):
        return self.backbone(pixel_values).feature_maps[-1]


BACKBONES = PartTable(
    "backbone",
    {
        "resnet": DeepLabResNet,
        "efficientnet_lite0": EfficientNetLite0,
        "efficientnet_lite2": EfficientNetLite2,
        "auto": TransformersBackbone,
    },
    besides=", or a backbone of transformers by its id (owner/name) or folder",
)


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch normalisation of `module` in evaluation mode: running statistics used, never updated."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def start_batch_norm(module: nn.modules.batchnorm._BatchNorm) -> None:
    """Give a batch normalisation its first weights and statistics: it changes nothing."""
    init.ones_(module.weight)
    init.zeros_(module.bias)
    init.zeros_(module.running_mean)
    init.ones_(module.running_var)
    init.zeros_(module.num_batches_tracked)
