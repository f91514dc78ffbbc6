"""`cagnet-hf convert_checkpoint`."""

from pathlib import Path


def convert_checkpoint(
    checkpoint: Path,
    *,
    output: Path,
    source: str | None = None,
    benchmark: str | None = None,
    class_embeddings: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn someone else's checkpoint into a model folder.

    The checkpoint is a CaGNet, CaGNetv2 or SPNet of the original authors (for `cagnet-hf predict` and `cagnet-hf
    evaluate`, too), or a backbone alone (DeepLabV2, or an ImageNet ResNet of torchvision or transformers). Sizes and
    classes are read off the file; a file with a tensor that has no place in the model is refused, and no code in the
    file is ever run.

    The file of an SPNet holds no classes: name them with --benchmark and --class_embeddings. Without these an SPNet is
    a backbone. A recipe also starts from a backbone's file as it is, backbone_weights=FILE.

    Args:
        checkpoint (CKPT): The checkpoint: a .pth or .safetensors file.
        output: The model folder to make.
        source: Where the checkpoint came from, for the model card (default: its name).
        benchmark (NAME): SPNet: the benchmark that the SPNet was trained on.
        class_embeddings (FILE): SPNet: the class embeddings that the SPNet was trained with, such as
            FASTTEXT.npy,WORD2VEC.npy.
        overwrite: Replace a folder at --output.

    Examples:
        cagnet-hf convert_checkpoint 00020000.pth --output models/cagnet_voc
    """
    from ..apps.conversion import convert
    from ..data.benchmarks import load_benchmark
    from ..files import MODEL_FOLDER, check_output
    from ..vectors.class_embeddings import load_class_embeddings

    vectors = class_embeddings.split(",") if class_embeddings else ()
    check_output(output, MODEL_FOLDER, inputs=(checkpoint, benchmark, *vectors), overwrite=overwrite)
    if (benchmark is None) != (class_embeddings is None):
        raise ValueError("--benchmark and --class_embeddings go together: give both (SPNet) or neither")
    classes = ()
    if benchmark is not None:
        table = load_benchmark(benchmark)
        classes = (table, load_class_embeddings(class_embeddings, table))
    convert(checkpoint, output, classes, source=source)
