"""What a CaGNet model is: its parts, their sizes, its classes."""

import math
import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import CONFIG_MAPPING

from .anchors_cagnet import ANCHORS
from .backbones_cagnet import BACKBONES
from .parts_cagnet import CLASSIFIERS, GENERATORS, PYRAMIDS, ContextualModule


def name_words(name: str) -> list[str]:
    """The words of a name, as written: `Potted_Plant`, `PottedPlant` -> `["Potted", "Plant"]`; `McDonald` is one."""
    apart = re.sub(r"(?<=[a-z]{2})(?=[A-Z])|(?<=[A-Z]{2})(?=[A-Z][a-z])", " ", name)
    return [word for word in re.split(r"[\s_-]+", apart) if word]


def plain_name(name: str) -> str:
    """A name in lower case with single spaces between words: `Potted_Plant`, `PottedPlant` -> `potted plant`."""
    return " ".join(name_words(name)).lower()


# A class that stored masks, which are bytes, can show has an id below this one; 255 is no class.
STORED_IDS = 255
# What is said of a pixel that a model gives to no class.
NONE_OF_THESE = "None of these"


def unlabelled_id(num_labels: int) -> int:
    """What a label map in model order holds where a model gives a pixel to no class: 255, or where 255 is a class the
    first number that is none."""
    return max(STORED_IDS, num_labels)


class ClassNames(dict):
    """The names of classes by number, which have a word for a pixel of no class, too: a pipeline of transformers looks
    up the name of every number in a label map."""

    def __missing__(self, number):
        if number == unlabelled_id(len(self)):
            return NONE_OF_THESE
        raise KeyError(number)


# Fields that are a positive whole number, or a list of them; and those that are a share from 0 to 1.
_COUNTS = (
    *("depths", "hidden_sizes", "stem_size", "aspp_dilations", "feature_size", "context_hidden_size"),
    *("context_dilations", "classifier_hidden_size", "generator_hidden_sizes", "embedding_size"),
)
_SHARES = ("classifier_dropout", "generator_dropout")
# What follows where other classes are named: all are seen, and stored masks number them from 0.
_PLAIN_CLASSES = {"seen_ids": None, "unseen_ids": (), "dataset_ids": None, "ignored_dataset_ids": ()}


def _plainly_refusing(cls):
    """Class decorator: a value of a wrong type is refused by a ValueError of one line, and `label2id` is kept true."""
    set_checked = cls.__setattr__

    def set_field(self, name, value):
        if name == "id2label" and value is not None:
            value = ClassNames(_by_id(value))
        if name == "calibration" and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value}: it is subtracted from probabilities, choose a number from -1 to 1")
        try:
            set_checked(self, name, value)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(" ".join(str(error).split())) from None
        if name == "id2label" and value is not None:
            set_checked(self, "label2id", {label: index for index, label in value.items()})

    cls.__setattr__ = set_field
    return cls


@_plainly_refusing
@strict
class CaGNetConfig(PreTrainedConfig):
    r"""Configuration of `CaGNetModel` and `CaGNetForSemanticSegmentation`.

    The defaults are the network of the paper (CaGNet, arXiv 2008.06893): DeepLabV2 on ResNet-101 with 600-d
    features and 600-d class embeddings.

    Args:
        backbone: A name of `BACKBONES`: `"resnet"` (DeepLabV2 layout), `"efficientnet_lite0"`, `"efficientnet_lite2"`,
            or `"auto"` with a `backbone_config`. Or a backbone of transformers by its id on the Hub
            (`"microsoft/resnet-50"`; `"timm/NAME"` for one of timm) or its folder: it becomes `"auto"` with the
            configuration found there, so that a saved model needs no Hub. Weights are loaded afterwards.
        backbone_config: Configuration (or its dictionary) of any backbone of transformers; its last feature map is
            used as it comes. Beside an id or a folder, a dictionary of what shall differ from what is found there.
        output_stride: Pixels of the image per cell of the feature map: 4, 8, 16 or 32; 8 when None. A backbone of
            transformers keeps the stride of its own, and None stands here; see `CaGNetModel.feature_stride`.
        depths: Blocks per stage of a ResNet; `[3, 4, 23, 3]` is ResNet-101.
        hidden_sizes: Output channels of the four stages of a ResNet.
        stem_size: Channels of a ResNet's first convolution.
        stride_in_1x1: Put a bottleneck's stride in its first 1x1 convolution (Caffe, the published weights) or in
            the 3x3 one (torchvision).
        freeze_batch_norm: Use the running statistics in training, too, and never update them. `False` is for
            training from scratch.
        aspp: `"full"` (parallel dilated 3x3 convolutions, the paper), `"depthwise"` (depthwise ones and a shared
            1x1 convolution, for small backbones), `"pooled"` (1x1 convolutions of the map and of its mean over the
            image) or `"none"` (the backbone's own map; `feature_size` is its channels).
        aspp_dilations: Dilations of the parallel convolutions.
        feature_size: D, channels of a pixel feature.
        contextual: Whether features pass through the contextual module (CaGNet) or are the ASPP map (SPNet, ZS3Net).
        context_hidden_size: Channels of the three chained context convolutions.
        context_dilations: Their dilations.
        context_variance: The variance of the latent in training: `"released"`, which is 1 or more, or `"free"`.
        classifier: `"convolutional"` (trunk and class head, trunk shared with the critic: CaGNet), `"linear"` (one 1x1
            convolution: ZS3Net), `"projection"` (onto the fixed class embeddings: SPNet) or `"names"` (the head of an
            image classifier at every pixel, whose classes are joined by what the names mean; nothing to train).
        classifier_hidden_size: Channels of the trunk.
        classifier_dropout: Dropout after the trunk.
        patch_size: Side of the category patches that synthetic features come in (CaGNetv2: 3, 5 or 7); the classifier
            then looks at 3x3 neighbours. 1 is pixel by pixel.
        generator: `"contextual"` (CaGNet), `"moment_matching"` (the GMMN of ZS3Net), `"gaussian"` (class means
            regressed from the embeddings, one covariance; nothing to train), `"prototypes"` (the same with means of
            classes that an image classifier knows by name) or None (SPNet).
        generator_hidden_sizes: Hidden channels of the feature generator.
        generator_dropout: Dropout after each of them.
        generator_embedding_scale: Factor on the class embedding at the generator's input. The paper's unit-length
            embeddings (1.0) have entries near E^-½ beside a latent of unit variance; √E puts both on one scale, which
            short schedules need.
        generator_anchor: What the layers of `"contextual"` and `"moment_matching"` add their output to, so that they
            hear the latent alone: class means by `"ridge"` regression from the embeddings, or `"prototypes"` of what
            an image classifier knows by name. None as published: the layers make the whole feature.
        embedding_size: E, length of a class embedding.
        known_classes: K, how many classes the image classifier behind `"prototypes"` and `"names"` knows.
        known_hidden_size: Channels of the convolution in that classifier's head; 0 where there is none.
        class_embedding_source: What the class embeddings were made from, for classes that are added later: `source`
            (a table's name), of a text encoder `encoder`, `pooling` and `prompt`, and `license` where it is known.
        test_scales: Scales of the image whose logits are joined by their pixel-wise maximum at test time. CaGNet
            looks at the image as it is, `[1.0]`; SPNet at `[1.0, 0.75, 0.5]`.
        calibration: γ, subtracted from the softmax probabilities of seen classes at test time (SPNet-c). Negative:
            fewer pixels go to unseen classes.
        min_score: A pixel whose label has a lower softmax probability than this, at the size of the image, is given to
            no class when an image is segmented; 0 gives every pixel to a class. The probability is that of the class
            that wins after calibration, and γ is not subtracted from it. Scores over classes do without `min_score`.
        image_prior: How much the classes that an image shows as a whole count at each of its pixels: this number times
            the log of the mean probability of a class over the image is added to the logits of the class at test time.
            1 is a step of expectation maximisation for the shares of the classes in the image (Saerens et al., 2002).
        id2label: Class names in model order: seen first, then unseen.
        seen_ids: Model ids of the seen classes.
        unseen_ids: Model ids of the unseen classes.
        dataset_ids: `dataset_ids[i]` is the id that stored masks and prediction files use for class `i`.
        ignored_dataset_ids: Stored ids that are no class (background); 255 always is.
        ignore_index: Label of pixels without a class, in model order.
        weights_from: The checkpoint that the weights were converted from or started from, where they are not all this
            package's own: its licence binds them.
    """

    model_type = "cagnet"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["calibration", "min_score"]

    backbone: str = "resnet"
    backbone_config: dict | PreTrainedConfig | None = None
    output_stride: int | None = None
    depths: list[int] | tuple[int, ...] = (3, 4, 23, 3)
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    stem_size: int = 64
    stride_in_1x1: bool = True
    freeze_batch_norm: bool = True
    aspp: str = "full"
    aspp_dilations: list[int] | tuple[int, ...] = (6, 12, 18, 24)
    feature_size: int = 600
    contextual: bool = True
    context_hidden_size: int = 256
    context_dilations: list[int] | tuple[int, ...] = (1, 2, 5)
    context_variance: str = "released"
    classifier: str = "convolutional"
    classifier_hidden_size: int = 1024
    classifier_dropout: float | int = 0.5
    patch_size: int = 1
    generator: str | None = "contextual"
    generator_hidden_sizes: list[int] | tuple[int, ...] = (1024, 960, 864, 784, 720)
    generator_dropout: list[float | int] | tuple[float | int, ...] = (0.1, 0.1, 0.3, 0.5, 0.5)
    generator_embedding_scale: float | int = 1.0
    generator_anchor: str | None = None
    embedding_size: int = 600
    known_classes: int = 0
    known_hidden_size: int = 0
    class_embedding_source: dict | None = None
    test_scales: list[float | int] | tuple[float | int, ...] = (1.0,)
    calibration: float | int = 0.0
    min_score: float | int = 0.0
    image_prior: float | int = 0.0
    seen_ids: list[int] | tuple[int, ...] | None = None
    unseen_ids: list[int] | tuple[int, ...] = ()
    dataset_ids: list[int] | tuple[int, ...] | None = None
    ignored_dataset_ids: list[int] | tuple[int, ...] = ()
    ignore_index: int = 255
    weights_from: str | None = None

    def __post_init__(self, **kwargs):
        self._settle_backbone()
        number = _whole_number(kwargs.get("num_labels"))
        if None not in (number, self.id2label) and number != len(self.id2label):
            raise ValueError(f"num_labels={number}, but id2label names {len(self.id2label)} classes")
        super().__post_init__(**kwargs)
        self.label2id = {name: index for index, name in self.id2label.items()}
        if self.seen_ids is None:
            unseen = set(self.unseen_ids)
            self.seen_ids = [i for i in range(self.num_labels) if i not in unseen]
        if self.dataset_ids is None:
            self.dataset_ids = list(range(self.num_labels))
        self.check()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """A configuration from the dictionary of a file, with changes.

        Other classes (`num_labels`, `id2label` or `label2id`) are all seen, and stored masks number them from 0,
        unless `seen_ids`, `unseen_ids` and `dataset_ids` say otherwise.

        Raises:
            ValueError: A value cannot be used, or two of them contradict each other.
        """
        # The base class would set the changes on a finished configuration, where nothing checks them.
        known = {field.name for field in fields(cls)} - {"dtype"} | {"num_labels"}
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in known}
        before = dict(config_dict)
        backbone, change = before.get("backbone_config"), changes.get("backbone_config")
        if isinstance(backbone, dict) and isinstance(change, dict):
            same_kind = change.get("model_type", backbone.get("model_type")) == backbone.get("model_type")
            changes["backbone_config"] = backbone | change if same_kind else change
        changes |= _given_classes(changes, class_names(before))
        changes.pop("num_labels", None)
        if "id2label" in changes:
            before.pop("label2id", None)
            before |= _PLAIN_CLASSES
        return super().from_dict(before | changes, **kwargs)

    def get_text_config(self, *args, **kwargs):
        """Itself: a model of images. (transformers would take the field `generator` for a text model's.)"""
        return self

    def _settle_backbone(self):
        """Make a configuration of what names or describes a backbone of transformers; its stride is its own."""
        if self.backbone not in BACKBONES and ("/" in self.backbone or Path(self.backbone).is_dir()):
            self.backbone_config = _published_backbone_config(self.backbone, self.backbone_config or {})
            self.backbone = "auto"
        elif isinstance(self.backbone_config, dict):
            entry = dict(self.backbone_config)
            model_type = entry.pop("model_type", None)
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"backbone_config.model_type={model_type!r} is no model type of transformers")
            self.backbone_config = CONFIG_MAPPING[model_type](**entry)
        if self.backbone_config is None:
            self.output_stride = 8 if self.output_stride is None else self.output_stride
            return
        # In the file of a saved model the number may be there without anybody having asked for it.
        if self.output_stride is not None and self.transformers_version is None:
            kind = self.backbone_config.model_type
            warnings.warn(
                f"output_stride={self.output_stride} is left aside: a {kind} backbone has its own", stacklevel=2
            )
        self.output_stride = None

    def check(self):
        """Refuse values that cannot be used, alone or together, by a ValueError of one line."""

        def choice(field, allowed):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}: choose one of {', '.join(map(repr, allowed))}")

        if self.backbone_config is None:
            choice("output_stride", (4, 8, 16, 32))
        choice("patch_size", (1, 3, 5, 7))
        self._check_numbers()
        if (self.backbone == "auto") != (self.backbone_config is not None):
            raise ValueError('backbone="auto" and backbone_config go together: give both or neither')
        self._check_classes()
        for table in (BACKBONES, PYRAMIDS, CLASSIFIERS, GENERATORS):
            table.check(self)
        if ANCHORS.chosen(self) is not None and self.generator not in ("contextual", "moment_matching"):
            raise ValueError(
                f"generator_anchor={self.generator_anchor!r} needs layers that add to it: set "
                'generator="contextual" or "moment_matching"'
            )
        if self.contextual:
            ContextualModule.check(self)
        if list(self.test_scales[:1]) != [1.0] or not all(0 < scale < math.inf for scale in self.test_scales):
            raise ValueError(f"test_scales must start with 1.0 and be positive, got {list(self.test_scales)}")

    def _check_numbers(self):
        def values(field):
            value = getattr(self, field)
            return list(value) if isinstance(value, list | tuple) else [value]

        for field in _COUNTS:
            if not all(value > 0 for value in values(field)):
                raise ValueError(f"{field}={getattr(self, field)}: choose whole numbers above 0")
        for field in ("known_classes", "known_hidden_size"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)}: choose a whole number, 0 where there is none")
        for field in _SHARES:
            if not all(0 <= value <= 1 for value in values(field)):
                raise ValueError(f"{field}={getattr(self, field)}: choose numbers from 0 to 1")
        if not self.aspp_dilations:
            raise ValueError("aspp_dilations is empty: give at least one dilation")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score={self.min_score}: it is a probability, choose a number from 0 to 1")
        if not 0 <= self.image_prior < math.inf:
            raise ValueError(f"image_prior={self.image_prior}: choose 0 or a positive number, such as 1")
        if not math.isfinite(self.generator_embedding_scale):
            raise ValueError(f"generator_embedding_scale={self.generator_embedding_scale}: choose a finite number")

    def _check_classes(self):
        number = self.num_labels
        if not number or list(self.id2label) != list(range(number)):
            raise ValueError(
                f"id2label must name at least one class and number them from 0, got {shown(self.id2label)}"
            )
        both = set(self.seen_ids) & set(self.unseen_ids)
        if both:
            raise ValueError(
                f"classes {shown(sorted(str(self.id2label.get(i, i)) for i in both))} are both seen and unseen"
            )
        if sorted([*self.seen_ids, *self.unseen_ids]) != list(range(number)):
            raise ValueError(
                f"seen_ids and unseen_ids name {len(self.seen_ids)} + {len(self.unseen_ids)} classes, "
                f"id2label names {number}: every class is one or the other"
            )
        if list(self.seen_ids) != list(range(len(self.seen_ids))):
            raise ValueError(f"seen classes come first: seen_ids must count from 0, got {shown(self.seen_ids)}")
        if len(self.dataset_ids) != number:
            raise ValueError(f"dataset_ids has {len(self.dataset_ids)} entries for {number} classes")
        for field, values in (("names", self.id2label.values()), ("dataset_ids", self.dataset_ids)):
            repeated = sorted(value for value, count in Counter(values).items() if count > 1)
            if repeated:
                raise ValueError(f"{field} repeat: {', '.join(map(str, repeated[:5]))}")
        # Classes in the order of their ids may be more than a byte can tell apart: no stored mask shows all of them.
        ids = () if list(self.dataset_ids) == list(range(number)) else self.dataset_ids
        for field, values in (("dataset_ids", ids), ("ignored_dataset_ids", self.ignored_dataset_ids)):
            wrong = [i for i in values if not 0 <= i < STORED_IDS + (field == "ignored_dataset_ids")]
            if wrong:
                raise ValueError(f"{field} holds {wrong[0]}: stored masks have classes from 0 to {STORED_IDS - 1}")
        if 0 <= self.ignore_index < number:
            raise ValueError(
                f"ignore_index={self.ignore_index} is a class: choose one beyond {number - 1}, or a negative one"
            )


def class_names(config_dict: dict) -> dict[int, str]:
    """The names of the classes in the dictionary of a configuration's file, by model id."""
    return _by_id(config_dict.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"})  # which transformers does not write


def _by_id(id2label) -> dict[int, str]:
    """Names of classes by whole numbers; a JSON file turns the numbers into strings."""
    try:
        names = {int(index): name for index, name in id2label.items()}
    except (AttributeError, TypeError, ValueError):
        given = f"id2label={id2label!r}"[:100]
        raise ValueError(f"{given}: give a dictionary of the classes' names by their numbers") from None
    wrong = [(index, name) for index, name in names.items() if not isinstance(name, str)]
    if wrong:
        raise ValueError("id2label: class {} has the name {!r}, which is no text".format(*wrong[0]))
    return names


def _whole_number(num_labels) -> int | None:
    try:
        return None if num_labels is None else operator.index(num_labels)
    except TypeError:
        raise ValueError(f"num_labels={num_labels!r}: give a whole number") from None


def _given_classes(changes: dict, names: dict[int, str]) -> dict:
    """`id2label` of classes that are given in place of `names` as transformers' models take them; {} if none are."""
    number, id2label, label2id = (changes.get(field) for field in ("num_labels", "id2label", "label2id"))
    number, given = _whole_number(number), None
    if label2id is not None:
        if not isinstance(label2id, dict):
            raise ValueError(
                f"label2id={label2id!r}"[:100] + ": give a dictionary of the classes' numbers by their names"
            )
        given = dict(sorted(_by_id({index: name for name, index in label2id.items()}).items()))
    if id2label is not None:
        by_id = _by_id(id2label)
        if given is not None and given != by_id:
            raise ValueError("id2label and label2id name different classes: give one of them")
        given = by_id
    if number is not None and number < 1:
        raise ValueError(f"num_labels={number}: a model has at least one class")
    if given is None and number not in (None, len(names)):
        given = {index: f"LABEL_{index}" for index in range(number)}
    if given is not None and number not in (None, len(given)):
        raise ValueError(f"num_labels={number}, but id2label names {len(given)} classes")
    changes.pop("label2id", None)
    if given is None or given == names:
        changes.pop("id2label", None)
        return {}
    return {"id2label": dict(sorted(given.items()))}


def shown(values: Iterable) -> list:
    """The values as a message shows them: not more than five."""
    values = list(values)
    return values if len(values) <= 5 else [*values[:5], "..."]


def _published_backbone_config(source: str, changes: dict) -> PreTrainedConfig:
    """The configuration of a backbone in a folder or on the Hub, with changes; no code of others is run."""
    if not isinstance(changes, dict):
        raise ValueError(f"backbone={source!r} names a configuration: backbone_config is a dictionary of changes")
    if source.startswith("timm/") and not Path(source).is_dir():
        return CONFIG_MAPPING["timm_backbone"](backbone=source.removeprefix("timm/"), **changes)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **changes)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"backbone={source!r}: {reason}") from None
    # What describes the published model, not its backbone.
    config.num_labels, config.architectures, config.name_or_path = 2, None, ""
    vars(config).pop("transformers_weights", None)
    return config


CaGNetConfig.register_for_auto_class()

__all__ = ["CaGNetConfig"]
