"""Images -> tensors, logits -> label maps."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .decoding_cagnet import rgb_image
from .maps_cagnet import resize_image, resize_labels


def fit_size(height: int, width: int, size) -> tuple[int, int]:
    """Size an image is brought to: exactly `height` x `width`, or its longer side to `longest_edge`."""
    if size.get("longest_edge"):
        longest = max(height, width)
        return tuple(max(1, side * size["longest_edge"] // longest) for side in (height, width))
    return size["height"], size["width"]


_SCORES_AT_ONCE = 1 << 25  # 128 MiB of float32


def label_bands(
    logits: torch.Tensor, size: tuple[int, int], offset: torch.Tensor | None = None, *, with_scores: bool = False
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor | None]]:
    """Label pixels by logits `(N, h, w)` brought to `size` (bilinear), in bands of rows that bound the memory.

    Args:
        offset: `(N,)` is subtracted from the softmax probabilities before the argmax (SPNet-c).
        with_scores: Give the softmax probability of each label, too.

    Yields:
        The rows, their labels `(R, W)` int64 and their scores `(R, W)` or None.
    """
    (height, width), logits = size, logits.float()
    rows_at_once = max(1, _SCORES_AT_ONCE // (len(logits) * width))
    for start in range(0, height, rows_at_once):
        rows = slice(start, min(start + rows_at_once, height))
        band = logits if rows_at_once >= height else _rows_between(logits, rows, height)
        band_size = (rows.stop - start, width)
        scores = F.interpolate(band[None], band_size, mode="bilinear", align_corners=False)[0]
        if offset is not None or with_scores:
            scores = scores.softmax(dim=0)
        labels = (scores if offset is None else scores - offset.to(scores)[:, None, None]).argmax(dim=0)
        yield rows, labels, scores.gather(0, labels[None])[0] if with_scores else None


def _rows_between(maps: torch.Tensor, rows: slice, height: int) -> torch.Tensor:
    """Those rows of `maps` `(N, h, w)` brought to `height` rows: `(N, R, w)`."""
    position = (torch.arange(rows.start, rows.stop, device=maps.device) + 0.5) * (maps.shape[1] / height) - 0.5
    position = position.clamp_min(0)
    above = position.long()
    below = (above + 1).clamp_max(maps.shape[1] - 1)
    return torch.lerp(maps[:, above], maps[:, below], (position - above)[:, None])


class CaGNetImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_flip_channel_order (`bool`, *optional*, defaults to `self.do_flip_channel_order`):
        Whether to turn RGB into BGR, which Caffe-trained backbones expect.
    """

    do_flip_channel_order: bool


class CaGNetImageProcessor(PilBackend):
    r"""Prepares images for CaGNet and turns its logits into label maps.

    `size` is `{"height": H, "width": W}` (a warp, the paper's 513 x 513) or `{"longest_edge": L}` (aspect kept).
    Resizing is bilinear without antialiasing for images, nearest for label maps. Images of one batch must end up at
    equal sizes unless `return_tensors` is None.
    """

    valid_kwargs = CaGNetImageProcessorKwargs
    model_input_names = ("pixel_values",)
    size = {"height": 513, "width": 513}
    default_to_square = False
    resample = PILImageResampling.BILINEAR
    do_resize = True
    do_convert_rgb = True
    do_flip_channel_order = True
    do_rescale = False
    rescale_factor = 1 / 255
    do_normalize = True
    # DeepLabV2's means, in the order the network sees the channels (BGR)
    image_mean = [104.008, 116.669, 122.675]
    image_std = [1.0, 1.0, 1.0]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def convert_to_rgb(self, image, input_data_format=None):
        if isinstance(image, Image.Image):
            return np.array(rgb_image(image))
        return super().convert_to_rgb(image, input_data_format=input_data_format)

    def preprocess(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        """Prepare images, and label maps along with them.

        Args:
            images: One image or a list: PIL, numpy or torch.
            segmentation_maps: One label map `(H, W)` or a list, in model order; they are resized, never changed.

        Returns:
            `pixel_values` `(B, 3, H', W')` and, with label maps, `labels` `(B, H', W')` int64.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, do_convert_rgb, input_data_format, return_tensors, **kwargs
    ):
        images = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format
        )
        data = {"pixel_values": self._preprocess(images, **kwargs)}
        if segmentation_maps is not None:
            maps = self._prepare_image_like_inputs(
                images=segmentation_maps,
                expected_ndims=2,
                do_convert_rgb=False,
                input_data_format=ChannelDimension.FIRST,
            )
            maps = [np.asarray(label_map).reshape(label_map.shape[-2:]) for label_map in maps]
            if len(maps) != len(images):
                raise ValueError(f"{len(images)} images but {len(maps)} segmentation maps: give one per image")
            for image, label_map in zip(images, maps, strict=True):
                if label_map.shape != image.shape[-2:]:
                    raise ValueError(
                        f"a segmentation map of size {label_map.shape} for an image of size {image.shape[-2:]}"
                    )
            if kwargs["do_resize"]:
                maps = [resize_labels(m, fit_size(*m.shape, kwargs["size"])) for m in maps]
            data["labels"] = [label_map.astype(np.int64) for label_map in maps]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess(self, images, **options):
        return [self.prepare(torch.from_numpy(np.array(image)), **options).numpy() for image in images]

    def prepare(self, image: torch.Tensor, **changes) -> torch.Tensor:
        """What `preprocess` does to one RGB image `(3, H, W)`, on the device it is on.

        `changes` are options that differ from the processor's own, such as another `size`.
        """

        def option(name):
            return changes[name] if name in changes else getattr(self, name)

        if option("do_flip_channel_order"):
            image = image.flip(0)
        size = fit_size(*image.shape[1:], option("size")) if option("do_resize") else image.shape[1:]
        image = resize_image(image, size)
        if option("do_rescale"):
            image = image * option("rescale_factor")
        if option("do_normalize"):
            # A blocking copy would wait for the GPU.
            mean, std = (
                torch.tensor(option(name)).view(3, 1, 1).to(image, non_blocking=True)
                for name in ("image_mean", "image_std")
            )
            image = (image - mean) / std
        return image

    def post_process_semantic_segmentation(self, outputs, target_sizes=None):
        """Logits -> label maps in model order.

        Args:
            outputs: Output of `CaGNetForSemanticSegmentation`.
            target_sizes: (height, width) of each prediction; the feature resolution when None.

        Returns:
            One int64 tensor `(height, width)` per image. Logits are brought to the target size first (bilinear);
            a calibrated model's offsets are then subtracted from the softmax probabilities (SPNet-c).
        """
        logits, calibration = outputs.logits, getattr(outputs, "calibration", None)
        if target_sizes is None:
            target_sizes = [tuple(logits.shape[-2:])] * len(logits)
        if len(target_sizes) != len(logits):
            raise ValueError(f"{len(logits)} images but {len(target_sizes)} target sizes: give one per image")
        label_maps = []
        offsets = [None] * len(logits) if calibration is None else calibration
        for image_logits, target_size, offset in zip(logits, target_sizes, offsets, strict=True):
            size = tuple(int(side) for side in target_size)
            label_maps.append(torch.cat([labels for _, labels, _ in label_bands(image_logits, size, offset)]))
        return label_maps


CaGNetImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["CaGNetImageProcessor"]
