"""Zero-shot semantic segmentation: CaGNet and the systems it is compared with, as Hugging Face models."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

from .evaluation import METRIC_PATH
from .model.configuration_cagnet import CaGNetConfig
from .model.image_processing_cagnet import CaGNetImageProcessor
from .model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModel

__version__ = "0.1.0"

AutoConfig.register("cagnet", CaGNetConfig)
AutoModel.register(CaGNetConfig, CaGNetModel)
AutoModelForSemanticSegmentation.register(CaGNetConfig, CaGNetForSemanticSegmentation)
AutoImageProcessor.register(CaGNetConfig, slow_image_processor_class=CaGNetImageProcessor)

__all__ = [
    "METRIC_PATH",
    "CaGNetConfig",
    "CaGNetForSemanticSegmentation",
    "CaGNetImageProcessor",
    "CaGNetModel",
    "__version__",
]
