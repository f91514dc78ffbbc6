"""Zero-shot semantic segmentation: CaGNet and the systems it is compared with, as Hugging Face models."""

import sys
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

# Where the names are that users import from the package; a module is imported with the first name of it.
_HOMES = {
    "METRIC_PATH": "evaluation",
    "CaGNetConfig": "model.configuration_cagnet",
    "CaGNetForSemanticSegmentation": "model.modeling_cagnet",
    "CaGNetImageProcessor": "model.image_processing_cagnet",
    "CaGNetModel": "model.modeling_cagnet",
    "convert_state_dict": "weights.conversion",
    "evaluate": "apps.evaluation",
    "from_names": "apps.names",
    "load_model": "weights.folders",
    "segment": "apps.prediction",
    "train": "apps.training",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def _is_command_line() -> bool:
    """Whether this process is one of the package's own commands.

    These are `cagnet-hf`, `python -m cagnet_hf` (while Python looks for the module, `sys.argv` starts with `-m`) and
    the scripts of its repository.
    """
    program, scripts = Path(sys.argv[0]), Path(__file__).resolve().parents[1] / "scripts"
    if sys.argv[0] == "-m":
        return sys.orig_argv[sys.orig_argv.index("-m") :][1:2] == [__name__]
    return program.stem == "cagnet-hf" or (program.suffix == ".py" and program.resolve().parent == scripts)


def _register() -> None:
    """Make transformers' Auto classes open models of this package by the package's own code."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

    from .model.configuration_cagnet import CaGNetConfig
    from .model.image_processing_cagnet import CaGNetImageProcessor
    from .model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModel

    AutoConfig.register("cagnet", CaGNetConfig)
    AutoModel.register(CaGNetConfig, CaGNetModel)
    AutoModelForSemanticSegmentation.register(CaGNetConfig, CaGNetForSemanticSegmentation)
    AutoImageProcessor.register(CaGNetConfig, slow_image_processor_class=CaGNetImageProcessor)


# Whoever writes `import cagnet_hf` may go on with `AutoModel.from_pretrained(folder)` and expects the package's own
# code there, so importing the package registers it, which takes the seconds that PyTorch and transformers take. The
# package's own commands never ask an Auto class about a model of this package, and their --help answers at once.
if not _is_command_line():
    _register()
