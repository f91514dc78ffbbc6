"""`cagnet-hf export_onnx`."""

from logging import getLogger
from pathlib import Path

logger = getLogger(__name__)


def export_onnx(*, model: str, output: Path) -> None:
    """Write a trained model as an ONNX file.

    The file is for runtimes without Python. Batch, height and width of images are free. Class names, ids and the
    preparation of images are in the file as metadata. The file is compared with PyTorch in onnxruntime before it gets
    its name. This needs `pip install 'cagnet-hf[onnx]'`.

    Args:
        model: A model folder, a Hub id, or ID@REVISION.
        output (FILE): The ONNX file to write.

    Examples:
        cagnet-hf export_onnx --model outputs/scenes/model --output model.onnx
    """
    from ..apps import export
    from ..files import check_output
    from ..weights.folders import load_model

    check_output(output, export.MARK)
    difference = export.export_onnx(*load_model(model), output)
    size = output.stat().st_size / 2**20
    logger.info("Wrote %s (%.1f MiB); it differs from PyTorch by %.0e of the largest logit", output, size, difference)
