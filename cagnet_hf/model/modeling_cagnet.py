"""The model: pixel features, a classifier over them, and a generator that makes features from class embeddings.

Shapes: B batch, H x W image, h x w feature map, D feature size, E class-embedding size, N classes.
Sources: CaGNet (arXiv 2008.06893), CaGNetv2 (arXiv 2009.12232).
"""

import warnings
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbones_cagnet import BACKBONES, freeze_batch_norm, start_batch_norm
from .configuration_cagnet import CaGNetConfig, class_names, shown
from .maps_cagnet import checked_labels, mean_cross_entropy, resize_labels, scale_maximum, with_image_prior
from .new_classes_cagnet import EditableClasses
from .parts_cagnet import CLASSIFIERS, GENERATORS, PYRAMIDS, ContextualModule


@dataclass
class CaGNetModelOutput(ModelOutput):
    """Pixel features and what they were made from; there is no latent without a contextual module.

    Attributes:
        features: `(B, D, h, w)`; sigmoid outputs in (0, 1) with a contextual module, the raw ASPP map without.
        latent: `(B, D, h, w)` contextual latent z: sampled in training mode, its mean in evaluation mode.
        latent_mean: `(B, D, h, w)` mean μ of the latent.
        latent_log_variance: `(B, D, h, w)` log σ² of the latent; not negative, unless the variance is free.
        last_hidden_state: The features by the name that transformers has for them.
        hidden_states: The maps of backbone and ASPP and, with a contextual module, the features; where asked for.
    """

    features: torch.FloatTensor | None = None
    latent: torch.FloatTensor | None = None
    latent_mean: torch.FloatTensor | None = None
    latent_log_variance: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CaGNetSegmenterOutput(ModelOutput):
    """Scores per class.

    Attributes:
        loss: Cross-entropy over labelled pixels, when labels are given.
        logits: `(B, N, h, w)` at feature resolution, classes in model order.
        hidden_states: The maps of backbone, ASPP and features at scale 1, where they are asked for.
        calibration: `(B, N)` what is subtracted from the softmax probabilities before the argmax; None when nothing.
        min_score: `(B,)` the softmax probability that the label of a pixel must have, else the pixel is given to no
            class; None when every pixel has one.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    calibration: torch.FloatTensor | None = None
    min_score: torch.FloatTensor | None = None


class CaGNetPreTrainedModel(PreTrainedModel):
    config_class = CaGNetConfig
    base_model_prefix = "cagnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch at hand
    _supports_sdpa = _supports_flash_attn = True  # where the backbone, whose attention it is, does
    # What `device_map` keeps on one device: inside these, maps of several layers are added up.
    _no_split_modules = (
        *("CaGNetModel", "PixelClassifier"),
        *("ContextualGenerator", "MomentMatchingGenerator", "GaussianGenerator", "PrototypeGenerator"),
        "NamesClassifier",
    )

    def __init__(self, config):
        config.check()  # fields may have been set since the configuration was made
        super().__init__(config)

    def _asked_for(self, return_dict, output_hidden_states, output_attentions) -> tuple[bool, bool]:
        """(whether to return a dictionary, whether with hidden states), as the call or else the configuration says."""
        config = self.config
        if config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions=True: this model has no attentions to give")
        return (
            config.return_dict if return_dict is None else return_dict,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs):
        if enable and not self.config.freeze_batch_norm:
            raise ValueError(
                "gradient checkpointing would update the statistics of batch normalisation twice: "
                "set freeze_batch_norm=True"
            )
        super()._set_gradient_checkpointing(enable, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        """Convolutions Kaiming-normal (fan-in), biases 0; a module may have a `start_weights` of its own."""
        if hasattr(module, "start_weights"):
            module.start_weights()
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            start_batch_norm(module)

    def save_pretrained(self, save_directory, **kwargs):
        """Save weights, configuration and the code that opens them with `trust_remote_code=True`."""
        self.config.auto_map = {
            "AutoConfig": "configuration_cagnet.CaGNetConfig",
            "AutoModel": "modeling_cagnet.CaGNetModel",
            "AutoModelForSemanticSegmentation": "modeling_cagnet.CaGNetForSemanticSegmentation",
        }
        super().save_pretrained(save_directory, **kwargs)


class CaGNetModel(CaGNetPreTrainedModel):
    """Backbone, ASPP and (optionally) the contextual module: an image -> pixel features."""

    def __init__(self, config):
        super().__init__(config)
        self.backbone = BACKBONES.build(config)
        self.aspp = PYRAMIDS.build(config, self.backbone.num_channels)
        self.context = ContextualModule(config) if config.contextual else None
        self.post_init()

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_batch_norm:
            freeze_batch_norm(self)
        return self

    @cached_property
    def feature_stride(self) -> int:
        """Pixels of the image per cell of the feature map, measured on two images that exist in shape alone."""
        weights = {name: tensor.to("meta") for name, tensor in (*self.named_parameters(), *self.named_buffers())}

        @torch.no_grad()
        def cells(side):
            image = torch.empty(1, 3, side, side, dtype=self.dtype, device="meta")
            return torch.func.functional_call(self, weights, (image,), {"return_dict": True}).features.shape[-1]

        return round((448 - 224) / (cells(448) - cells(224)))  # at its rim a map may have a cell more than fits

    def forward(
        self,
        pixel_values=None,
        latent_noise=None,
        return_dict=None,
        output_hidden_states=None,
        output_attentions=None,
        backbone_features=None,
    ):
        """Pixel features of a batch of images.

        Args:
            pixel_values: `(B, 3, H, W)` from `CaGNetImageProcessor`, of any floating type.
            latent_noise: `(B, D, h, w)` standard normal noise of the latent in training mode; drawn when None.
            return_dict: Give a tuple where False; as the configuration says when None.
            output_hidden_states: Give the maps that the features are made from, too.
            output_attentions: Refused where True: there are none.
            backbone_features: `(B, C, h, w)` in place of `pixel_values`: the map of the backbone, computed before.

        Raises:
            ValueError: Both pixels and features are given, or none of the two.
        """
        return_dict, with_states = self._asked_for(return_dict, output_hidden_states, output_attentions)
        if (pixel_values is None) == (backbone_features is None):
            raise ValueError("give either pixel_values or backbone_features")
        if backbone_features is None:
            backbone_map = self.backbone(pixel_values.to(self.dtype))
        else:
            backbone_map = backbone_features.to(self.dtype)
        hidden = self.aspp(backbone_map)
        states = (backbone_map, hidden)
        if self.context is None:
            output = CaGNetModelOutput(features=hidden, last_hidden_state=hidden)
        else:
            latent, mean, log_variance = self.context(hidden, latent_noise)
            features = torch.sigmoid(hidden + hidden * torch.sigmoid(latent))
            output = CaGNetModelOutput(features, latent, mean, log_variance, features)
            states = (*states, features)
        if with_states:
            output.hidden_states = states
        return output if return_dict else output.to_tuple()

    def multi_scale(
        self, pixel_values=None, scales=(1.0, 0.5, 0.75), output_hidden_states=None, backbone_features=None
    ):
        """Features of the image at several scales, as in training (DeepLabV2's multi-scale input).

        Returns:
            The output at scale 1 (the first scale) and the list of feature maps, one per scale, each at its own size.

        Raises:
            ValueError: Several scales of an image of which only the map of the backbone is given.
        """
        if pixel_values is None and len(scales) > 1:
            raise ValueError("backbone_features are those of one scale")
        options = {"return_dict": True, "output_hidden_states": output_hidden_states}
        first = self(pixel_values, backbone_features=backbone_features, **options)
        maps = [first.features]
        for scale in scales[1:]:
            part = Fraction(scale).limit_denominator(1000)  # whole numbers, which an export can keep as a formula
            smaller = [side * part.numerator // part.denominator for side in pixel_values.shape[-2:]]
            smaller = [side + 1 // (side + 1) for side in smaller]  # 1 at least, where a compiler knows no max
            resized = F.interpolate(pixel_values, smaller, mode="bilinear", align_corners=False)
            maps.append(self(resized, return_dict=True).features)
        return first, maps


class CaGNetForSemanticSegmentation(EditableClasses, CaGNetPreTrainedModel):
    """Zero-shot segmentation: scores of seen and unseen classes at every pixel."""

    def __init__(self, config):
        super().__init__(config)
        self.cagnet = CaGNetModel(config)
        self.classifier = CLASSIFIERS.build(config)
        self.generator = GENERATORS.build(config)
        self.register_buffer("class_embeddings", torch.zeros(config.num_labels, config.embedding_size))
        self._vectors_seen = None
        self.post_init()
        self._rest_parts()

    def _rest_parts(self):
        """Parts that the segmentation loss does not reach have no gradient, for which other processes would wait.

        Who trains the generator or the critic says so: `model.generator.requires_grad_(True)`.
        """
        beside = [getattr(self.classifier, name) for name in self.classifier.beside_scores]
        # What a vision transformer shows in place of the patches that its own pre-training hides.
        hidden = [parameter for name, parameter in self.named_parameters() if name.endswith("mask_token")]
        for part in (self.generator, *beside, *hidden):
            if part is not None:
                part.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Open a model, as `PreTrainedModel.from_pretrained` does.

        Where other classes are given than are stored (`num_labels=3` or `id2label=…`, with
        `ignore_mismatched_sizes=True`), the model has a new class head for these classes.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            where = {key: value for key, value in kwargs.items() if key in _WHERE}
            stored, _ = cls.config_class.get_config_dict(pretrained_model_name_or_path, **where)
            if class_names(stored) != dict(model.config.id2label):
                model._start_classes()
        model._rest_parts()
        return loaded

    def _start_classes(self):
        """Begin anew with the classes that the configuration names: class head and what is known of each class."""
        with torch.no_grad():
            self.class_embeddings.zero_()
            if self.classifier.learns:
                head = self.classifier.class_head
                nn.init.kaiming_normal_(head.weight, nonlinearity="relu")
                nn.init.zeros_(head.bias)
            if self.generator is not None:
                self.generator.set_classes([], self.config.num_labels)
        warnings.warn(
            f"other classes than the stored ones are given, {shown(self.config.id2label.values())}: their class head "
            "is new, and they have no class vectors, which zero-shot use needs (set model.class_embeddings)",
            stacklevel=3,
        )

    def _say_where_vectors_are_missing(self):
        """Warn once where class vectors are used and some are zero; a program that is traced says nothing."""
        vectors = self.class_embeddings
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or vectors.is_meta:
            return
        state = (id(vectors), vectors._version if not vectors.is_inference() else None)
        if state == self._vectors_seen:
            return
        self._vectors_seen = state
        missing = [self.config.id2label[i] for i in (~vectors.any(dim=1)).nonzero().flatten().tolist()]
        if missing:
            warnings.warn(
                f"the class vectors of {shown(missing)} are zero: a projection or a generator cannot tell them apart; "
                "set model.class_embeddings",
                stacklevel=4,
            )

    def start_weights(self):
        init.zeros_(self.class_embeddings)

    def classify(self, features):
        """`(B, D, h, w)` features -> class logits `(B, N, h, w)`."""
        if not self.classifier.learns:
            self._say_where_vectors_are_missing()
        return self.classifier(features, self.class_embeddings)

    def classify_scales(self, maps):
        """Class logits of the feature maps of several scales and, after them, of their pixel-wise maximum.

        A learnt classifier scores the maximum of the features; a projection scores first, its maximum is that of the
        scores (SPNet).
        """
        logit_maps = [self.classify(m) for m in maps]
        if len(maps) > 1:
            learns = self.classifier.learns
            logit_maps.append(self.classify(scale_maximum(maps)) if learns else scale_maximum(logit_maps))
        return logit_maps

    def forward(
        self,
        pixel_values=None,
        labels=None,
        return_dict=None,
        output_hidden_states=None,
        output_attentions=None,
        backbone_features=None,
    ):
        """Segment a batch of images.

        Args:
            pixel_values: `(B, 3, H, W)` from `CaGNetImageProcessor`.
            labels: `(B, H, W)` class indices in model order, `config.ignore_index` or -100 where there is none; of any
                integer type.
            return_dict: Give a tuple where False; as the configuration says when None.
            output_hidden_states: Give the maps of the network, too.
            output_attentions: Refused where True: there are none.
            backbone_features: `(B, C, h, w)` in place of `pixel_values`: the map of the backbone, computed before;
                labels are then `(B, h, w)`.

        In evaluation mode the logits are the pixel-wise maximum over `config.test_scales` (SPNet), moved by
        `config.image_prior`; in training mode they are those of scale 1.

        Raises:
            ValueError: The labels are no integers, do not fit the images, or hold what is no class.
        """
        return_dict, with_states = self._asked_for(return_dict, output_hidden_states, output_attentions)
        if labels is not None:
            inputs = pixel_values if backbone_features is None else backbone_features
            labels = checked_labels(labels, inputs, self.config.num_labels, self.config.ignore_index)
        scales = self.config.test_scales
        if self.training or len(scales) == 1:
            options = {"return_dict": True, "output_hidden_states": with_states}
            features = self.cagnet(pixel_values, backbone_features=backbone_features, **options)
            logits = self.classify(features.features)
        else:
            options = {"output_hidden_states": with_states, "backbone_features": backbone_features}
            features, maps = self.cagnet.multi_scale(pixel_values, scales, **options)
            logits = scale_maximum([self.classify(m) for m in maps])
        if self.config.image_prior and not self.training:
            logits = with_image_prior(logits, self.config.image_prior)
        loss = None
        if labels is not None:
            labels = resize_labels(labels, logits.shape[-2:])
            loss = mean_cross_entropy(logits.float(), labels, ignore_index=self.config.ignore_index)
        calibration = None
        if self.config.calibration:
            calibration = torch.zeros(logits.shape[0], self.config.num_labels, device=logits.device)
            calibration[:, list(self.config.seen_ids)] = self.config.calibration
        states = features.hidden_states if with_states else None
        output = CaGNetSegmenterOutput(loss=loss, logits=logits, hidden_states=states, calibration=calibration)
        if self.config.min_score:
            output.min_score = torch.full((len(logits),), self.config.min_score, device=logits.device)
        return output if return_dict else output.to_tuple()

    def embed_classes(self, class_ids):
        """Embeddings of class maps: `(B, h, w)` -> `(B, E, h, w)`."""
        return self.class_embeddings[class_ids].movedim(-1, 1)

    def synthesize_features(self, class_ids, generator=None):
        """Make pixel features of the given classes; no image is involved.

        Args:
            class_ids: `(B, h, w)` class indices in model order; with `patch_size` k, tiled with k x k patches.
            generator: Random generator of the latent, which the pixels of a patch share.

        Returns:
            Features `(B, D, h, w)`.

        Raises:
            ValueError: The model has no generator, or `class_ids` cannot be tiled with patches.
        """
        return self._synthesize(class_ids, generator, self.config.patch_size)

    def _synthesize(self, class_ids, generator, patch_size):
        if self.generator is None:
            raise ValueError("this model has no generator: SPNet does not synthesise features")
        batch, *sides = class_ids.shape
        for side in sides:
            if side % patch_size:
                fitting = max(1, round(side / patch_size)) * patch_size
                raise ValueError(f"{side} pixels are no whole number of patches of {patch_size}; {fitting} are")
        self._say_where_vectors_are_missing()
        latent = self.generator.draw_latent(
            (batch, self.generator.latent_size, *(side // patch_size for side in sides)),
            generator=generator,
            device=self.class_embeddings.device,
            dtype=self.class_embeddings.dtype,
        )
        for dim in (2, 3):
            latent = latent.repeat_interleave(patch_size, dim)
        return self.generator(self.embed_classes(class_ids), latent)

    def synthetic_loss(self, class_ids, generator=None, train_generator: bool = False):
        """Cross-entropy of the classifier on synthetic features (the synthetic step of CaGNet, section 3.5).

        With patches the loss is taken at their centres (CaGNetv2, section 3.4): only the pixels that a centre's score
        depends on are made.

        Args:
            class_ids: `(B, h, w)` class indices in model order, the truth of the synthetic pixels.
            generator: Random generator of the latent.
            train_generator: Let the loss reach the feature generator; its graph is not built otherwise.
        """
        side = self.classifier.neighbourhood
        made = _patch_centres(class_ids, self.config.patch_size, side)
        with torch.set_grad_enabled(train_generator and torch.is_grad_enabled()):
            features = self._synthesize(made, generator, side)
        logits, truth = self.classifier.classify_centres(features), made[:, side // 2 :: side, side // 2 :: side]
        # The mean is taken afterwards: on a GPU the kernel's own is not deterministic.
        return F.cross_entropy(logits, truth, reduction="none").mean()


def _patch_centres(class_ids, patch_size, side):
    """The central `side` x `side` pixels of every patch: `(B, kn, km)` -> `(B, side n, side m)`."""
    for dim in (1, 2):
        patches = class_ids.unflatten(dim, (-1, patch_size))
        class_ids = patches.narrow(dim + 1, (patch_size - side) // 2, side).flatten(dim, dim + 1)
    return class_ids


# Arguments of `from_pretrained` that say where a model is.
_WHERE = ("revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only", "proxies")

CaGNetModel.register_for_auto_class("AutoModel")
CaGNetForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")

__all__ = ["CaGNetForSemanticSegmentation", "CaGNetModel", "CaGNetPreTrainedModel"]
