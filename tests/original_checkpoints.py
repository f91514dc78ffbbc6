"""Checkpoints as others store them, made of the golden set's names: at true sizes without memory, or tiny."""

import torch
import torch.nn.functional as F
from golden import recipe
from golden_weights import FULL, SMALL, original_shapes
from torch import nn

from cagnet_hf import CaGNetForSemanticSegmentation

# variant: (benchmark, seen classes, all classes)
VARIANTS = {
    "cagnet_voc12": ("pascal_voc", 15, 20),
    "cagnetv2_voc12_ps3": ("pascal_voc", 15, 20),
    "cagnet_context": ("pascal_context", 29, 33),
    "cagnet_cocostuff": ("coco_stuff", 167, 182),
}


def with_tables(weights, num_seen, num_classes, size):
    tables = recipe.embedding_tables(num_seen, num_classes, size)
    return weights | dict(zip(("Em_vis.weight", "Em_all.weight"), map(torch.from_numpy, tables), strict=True))


def no_tables(shapes):
    return {key: shape for key, shape in shapes.items() if not key.startswith("Em_")}


def hollow(variant, depths=FULL):
    """A checkpoint at its true sizes that takes no memory: all but the embedding tables is zero."""
    weights = {
        key: torch.zeros(()).expand(shape) for key, shape in no_tables(original_shapes(variant, depths)).items()
    }
    return with_tables(weights, *VARIANTS[variant][1:], 600)


def tiny(variant="cagnet_voc12", num_seen=15, num_classes=20):
    """A checkpoint with the names of the original and widths 16 times smaller, 12 features and embeddings."""
    widths = {600: 12, 1200: 24, 21: num_classes + 1}
    weights = {}
    for key, shape in no_tables(original_shapes(variant, SMALL)).items():
        shape = [widths.get(side, side // 16 if side >= 64 else side) for side in shape]
        weights[key] = torch.from_numpy(recipe.fill(key, shape))
    return with_tables(weights, num_seen, num_classes, 12)


def tiny_trunk(prefix="scale."):
    """Backbone and ASPP of the tiny checkpoint, as SPNet and DeepLabV2 files name them."""
    names = {key: key.removeprefix("back.scale.") for key in tiny()}
    return {
        prefix + name: tensor
        for (key, name), tensor in zip(names.items(), tiny().values(), strict=True)
        if name.startswith(("layer", "aspp"))
    }


def without_aspp(trunk):
    return {key: tensor for key, tensor in trunk.items() if "aspp" not in key}


def network(config, weights):
    model = CaGNetForSemanticSegmentation(config)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def pixelcnn(name):
    """A PixelCNN's file, which is no network that can be converted."""
    shapes = original_shapes(f"pixelcnn_{name}")
    state = recipe.fill_state_dict({key.removeprefix("module."): shape for key, shape in shapes.items()})
    return {f"module.{key}": torch.from_numpy(array) for key, array in state.items()}


class TorchvisionBottleneck(nn.Module):
    def __init__(self, in_channels, width, stride, beside):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
            if beside
            else nn.Identity()
        )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class TorchvisionResNet(nn.Module):
    """The layout and the arithmetic of torchvision's ResNet-50, written out small."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        channels = 8
        for stage, depth in enumerate((1, 2, 1, 1)):
            width, blocks = 4 << stage, []
            for i in range(depth):
                blocks.append(TorchvisionBottleneck(channels, width, 2 if stage and i == 0 else 1, i == 0))
                channels = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
