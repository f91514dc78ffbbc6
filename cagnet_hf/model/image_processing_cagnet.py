"""Images -> tensors, logits -> label maps."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    ChannelDimension,
    PILImageResampling,
    get_image_size_for_max_height_width,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs

from .configuration_cagnet import unlabelled_id
from .decoding_cagnet import eight_bit_values, rgb_image
from .maps_cagnet import resize_image, resize_labels


def fit_size(height: int, width: int, size) -> tuple[int, int]:
    """Size an image is brought to: exactly `height` x `width`, or with its aspect kept.

    The aspect is kept by `longest_edge` (the longer side), `shortest_edge` (the shorter one; with `longest_edge` as a
    bound of the longer one), and `max_height` with `max_width` (as large as fits).
    """
    if size.get("shortest_edge"):
        fitted = get_size_with_aspect_ratio((height, width), size["shortest_edge"], size.get("longest_edge"))
    elif size.get("longest_edge"):
        longest = max(height, width)
        fitted = tuple(side * size["longest_edge"] // longest for side in (height, width))
    elif size.get("max_height"):
        fitted = get_image_size_for_max_height_width((height, width), size["max_height"], size["max_width"])
    else:
        return size["height"], size["width"]
    return tuple(max(1, side) for side in fitted)


_SCORES_AT_ONCE = 1 << 25  # 128 MiB of float32


def label_bands(
    logits: torch.Tensor,
    size: tuple[int, int],
    offset: torch.Tensor | None = None,
    *,
    min_score: float = 0.0,
    with_scores: bool = False,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor | None]]:
    """Label pixels by logits `(N, h, w)` brought to `size` (bilinear), in bands of rows that bound the memory.

    Args:
        offset: `(N,)` is subtracted from the softmax probabilities before the argmax (SPNet-c).
        min_score: A pixel whose label has a lower softmax probability is given to no class (see `unlabelled_id`).
        with_scores: Give the softmax probability of each label, too; of a pixel of no class that of its likeliest.

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
        labels = scores.max(dim=0).indices if offset is None else None  # argmax takes three times as long on CPUs
        if offset is not None or with_scores or min_score:
            scores = scores.softmax(dim=0)
        if offset is not None:
            labels = (scores - offset.to(scores)[:, None, None]).max(dim=0).indices
        label_scores = scores.gather(0, labels[None])[0] if with_scores or min_score else None
        if min_score:
            labels = labels.where(label_scores >= min_score, unlabelled_id(len(scores)))
        yield rows, labels, label_scores if with_scores else None


def _rows_between(maps: torch.Tensor, rows: slice, height: int) -> torch.Tensor:
    """Those rows of `maps` `(N, h, w)` brought to `height` rows: `(N, R, w)`."""
    position = (torch.arange(rows.start, rows.stop, device=maps.device) + 0.5) * (maps.shape[1] / height) - 0.5
    position = position.clamp_min(0)
    above = position.long()
    below = (above + 1).clamp_max(maps.shape[1] - 1)
    return torch.lerp(maps[:, above], maps[:, below], (position - above)[:, None])


def check_min_score(min_score: float) -> None:
    """Refuse what is no probability.

    Raises:
        ValueError: The number is not between 0 and 1.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score {min_score}: it is a probability, choose a number from 0 to 1")


class CaGNetImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_flip_channel_order (`bool`, *optional*, defaults to `self.do_flip_channel_order`):
        Whether to turn RGB into BGR, which Caffe-trained backbones expect.
    """

    do_flip_channel_order: bool


# What the files of image processors hold beside the arguments of their class.
_OF_FILES = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map", "_valid_kwargs_names"}


class CaGNetImageProcessor(PilBackend):
    r"""Prepares images for CaGNet and turns its logits into label maps.

    `size` is `{"height": H, "width": W}` (a warp, the paper's 513 x 513), a number (a warp to a square), or keeps the
    aspect (see `fit_size`). Resizing is bilinear without antialiasing for images, nearest for label maps. Images of
    one batch must end up at equal sizes unless `return_tensors` is None.

    Raises:
        ValueError: An argument is unknown, or asks for what this processor does not do.
    """

    valid_kwargs = CaGNetImageProcessorKwargs
    model_input_names = ("pixel_values",)
    size = {"height": 513, "width": 513}
    default_to_square = True
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
        _refuse_unknown(kwargs.keys() - _OF_FILES - set(self.valid_kwargs.__annotations__))
        super().__init__(**kwargs)

    def _standardize_kwargs(self, image_mean=None, image_std=None, **kwargs):
        """Check the arguments: one that would be left aside is refused, and one number stands for all channels."""
        for name in ("do_center_crop", "do_pad"):
            if kwargs.get(name):
                raise ValueError(f"{name}=True: this image processor neither crops nor pads; use size")
        if kwargs.get("resample") not in (None, PILImageResampling.BILINEAR):
            raise ValueError(f"resample={kwargs['resample']}: images are resized bilinearly ({self.resample:d}) only")
        if kwargs.get("data_format") not in (None, ChannelDimension.FIRST):
            raise ValueError(f"data_format={kwargs['data_format']}: the network sees the channels first")
        statistics = {"image_mean": image_mean, "image_std": image_std}
        for name, value in statistics.items():
            if isinstance(value, int | float):
                statistics[name] = (float(value),) * 3
            elif value is not None and len(value) != 3:
                raise ValueError(f"{name}={value}: give one number, or one for each of three channels")
        kwargs = super()._standardize_kwargs(**kwargs, **statistics)
        size = kwargs["size"]
        if size is not None and not all(value is None or value > 0 for value in dict(size).values()):
            raise ValueError(f"size={dict(size)}: choose sides above 0")
        return kwargs

    # The name of an older base class.
    _further_process_kwargs = _standardize_kwargs

    @property
    def padding_value(self) -> None:
        """None: images are not padded. A pipeline of transformers asks for this number when the pipeline is to make
        batches, before the pipeline joins images whose shapes this processor sees one by one only.
        """
        size = {name: side for name, side in dict(self.size).items() if side} if self.do_resize else None
        if size is None or size.keys() != {"height", "width"}:
            kept = "do_resize=False" if size is None else f"size={size}"
            warnings.warn(
                f"{kept} keeps the shape of each image, and a pipeline makes no batch of images of several shapes: "
                "use batch_size=1, or cagnet_hf.segment, or size={'height': …, 'width': …}",
                stacklevel=3,
            )
        return None

    def convert_to_rgb(self, image, input_data_format=None):
        if isinstance(image, Image.Image):
            return np.array(rgb_image(image))
        if image.ndim != 3:
            return image
        layout = input_data_format or infer_channel_dimension_format(image, num_channels=(1, 3, 4))
        channels = 0 if layout == ChannelDimension.FIRST else -1
        if image.shape[channels] == 4:  # transparency
            return np.moveaxis(np.array(rgb_image(np.moveaxis(image, channels, -1))), -1, channels)
        return np.repeat(image, 3, axis=channels) if image.shape[channels] == 1 else image

    def preprocess(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        """Prepare images, and label maps along with them.

        Args:
            images: One image or a list: PIL, numpy or torch; see `eight_bit_values` for the values of arrays.
            segmentation_maps: One label map `(H, W)` or a list, in model order; they are resized, never changed.

        Returns:
            `pixel_values` `(B, 3, H', W')` and, with label maps, `labels` `(B, H', W')` int64.

        Raises:
            ValueError: An argument is unknown, a label map is none, or images of several sizes are to be one tensor.
        """
        _refuse_unknown(kwargs.keys() - set(self.valid_kwargs.__annotations__))
        last = kwargs.get("input_data_format") in ("channels_last", ChannelDimension.LAST)
        images = [_with_channels(image, last) for image in images] if isinstance(images, list | tuple) else images
        return super().preprocess(_with_channels(images, last), segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, do_convert_rgb, input_data_format, return_tensors, **kwargs
    ):
        images = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format
        )
        if not (self.do_rescale and not kwargs["do_rescale"]):  # else the caller has brought them to another scale
            images = [eight_bit_values(image) for image in images]
        data = {"pixel_values": self._preprocess(images, **kwargs)}
        sizes = sorted({pixels.shape[1:] for pixels in data["pixel_values"]})
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"images of sizes {sizes[0]} and {sizes[1]} make no batch: give size={{'height': …, 'width': …}}, "
                "or one image at a time (batch_size=1 in a pipeline)"
            )
        if segmentation_maps is not None:
            maps = _label_maps(segmentation_maps, len(images))
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

    def post_process_semantic_segmentation(
        self, outputs, target_sizes=None, return_segmentation_scores=False, min_score=None
    ):
        """Logits -> label maps in model order.

        Args:
            outputs: Output of `CaGNetForSemanticSegmentation`.
            target_sizes: (height, width) of each prediction; the feature resolution when None.
            return_segmentation_scores: Give the scores of all classes, too.
            min_score: A pixel whose label has a lower softmax probability than this number from 0 to 1 is given to no
                class: its label is 255 (see `unlabelled_id`). The model's own number when None.

        Returns:
            One int64 tensor `(height, width)` per image. Logits are brought to the target size first (bilinear);
            a calibrated model's offsets are then subtracted from the softmax probabilities (SPNet-c). With scores, one
            dictionary per image: this tensor as `segmentation`, and `segmentation_scores` `(N, height, width)`, whose
            argmax the tensor is where a pixel has a class: the logits, or a calibrated model's probabilities less the
            offsets.

        Raises:
            ValueError: There is another number of target sizes than of images, or `min_score` is no probability.
        """
        logits, calibration = outputs.logits, getattr(outputs, "calibration", None)
        own = getattr(outputs, "min_score", None)
        if min_score is None:
            min_score = 0.0 if own is None else own[0].item()
        check_min_score(min_score)
        if target_sizes is None:
            target_sizes = [tuple(logits.shape[-2:])] * len(logits)
        if len(target_sizes) != len(logits):
            raise ValueError(f"{len(logits)} images but {len(target_sizes)} target sizes: give one per image")
        results = []
        offsets = [None] * len(logits) if calibration is None else calibration
        for image_logits, target_size, offset in zip(logits, target_sizes, offsets, strict=True):
            size = tuple(int(side) for side in target_size)
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"target size {size}: give a height and a width above 0")
            bands = label_bands(image_logits, size, offset, min_score=min_score)
            label_map = torch.cat([labels for _, labels, _ in bands])
            if not return_segmentation_scores:
                results.append(label_map)
                continue
            scores = F.interpolate(image_logits[None].float(), size, mode="bilinear", align_corners=False)[0]
            if offset is not None:
                scores = scores.softmax(dim=0) - offset.to(scores)[:, None, None]
            results.append(BatchFeature({"segmentation": label_map, "segmentation_scores": scores}))
        return results


def _refuse_unknown(names) -> None:
    names = names - {"image_like_kwargs"} - {name for name in names if name.startswith("_")}
    if names:
        raise ValueError(f"{', '.join(sorted(names))}: no argument of this image processor")


def _with_channels(image, last: bool):
    """A grey array or tensor `(H, W)` as three equal channels; anything else as it is."""
    if getattr(image, "ndim", None) != 2:
        return image
    return np.stack([np.asarray(image)] * 3, axis=-1 if last else 0)


def _label_maps(given, number: int) -> list[np.ndarray]:
    """Label maps `(H, W)` of whole numbers, one per image.

    Raises:
        ValueError: There is another number of maps, or one of them is no map of whole numbers.
    """
    many = isinstance(given, list | tuple) or (getattr(given, "ndim", 2) == 3 and len(given) == number)
    given = list(given) if many else [given]
    if len(given) != number:
        raise ValueError(f"{number} images but {len(given)} segmentation maps: give one per image")
    return [_label_map(one) for one in given]


def _label_map(given) -> np.ndarray:
    must = "a segmentation map must be (H, W), a class index per pixel"
    if isinstance(given, Image.Image):
        if given.mode not in ("1", "L", "P", "I", "I;16") or given.format == "JPEG":
            kind = "JPEG" if given.format == "JPEG" else f"mode {given.mode}"
            raise ValueError(f"{must}; got an image of {kind}")
        return np.asarray(given)
    if not hasattr(given, "ndim"):
        raise ValueError(f"{must}; got {given!r}"[:200])
    values = given.cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2:
        raise ValueError(f"{must}; got shape {tuple(values.shape)}")
    if values.dtype.kind not in "iub" and not (values.dtype.kind == "f" and (values == np.round(values)).all()):
        raise ValueError(f"{must}; got values of {values.dtype} that are no whole numbers")
    return values


CaGNetImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["CaGNetImageProcessor"]
