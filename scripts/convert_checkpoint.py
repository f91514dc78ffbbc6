"""Turn a checkpoint of the original authors into a model folder.

python scripts/convert_checkpoint.py 00020000.pth --output models/cagnet_voc
"""

import argparse
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Turn a CaGNet, CaGNetv2 or SPNet checkpoint of the original authors into a model folder that "
        "predict.py, evaluate.py and from_pretrained open. Sizes and classes are read off the file; a file with a "
        "tensor that has no place in the model is refused, and no code in it is ever run.",
        epilog="SPNet files hold no classes: name them with --benchmark and --class_embeddings. Files with a backbone "
        "alone (DeepLabV2, ImageNet ResNets) need no conversion: a recipe reads them as they are, "
        "backbone_weights=FILE.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="the checkpoint: a .pth or .safetensors file")
    parser.add_argument("--output", type=Path, required=True, help="the model folder to make")
    parser.add_argument("--source", help="where the checkpoint came from, for the model card (default: its name)")
    parser.add_argument("--benchmark", metavar="NAME", help="SPNet only: the benchmark it was trained on")
    parser.add_argument(
        "--class_embeddings",
        metavar="FILE",
        help="SPNet only: the class embeddings it was trained with, such as FASTTEXT.npy,WORD2VEC.npy",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder at --output")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run

    return run(lambda: convert(args))


def convert(args: argparse.Namespace) -> None:
    import hashlib

    import torch

    from cagnet_hf import CaGNetForSemanticSegmentation, CaGNetImageProcessor
    from cagnet_hf.benchmarks import load_benchmark
    from cagnet_hf.class_embeddings import load_class_embeddings
    from cagnet_hf.conversion import match_keys, read_checkpoint
    from cagnet_hf.hub import converted_model_card, save_model_folder

    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"--output {args.output} exists; choose another or pass --overwrite")
    if (args.benchmark is None) != (args.class_embeddings is None):
        raise ValueError("--benchmark and --class_embeddings go together: give both (SPNet) or neither")
    spnet_classes = None
    if args.benchmark is not None:
        benchmark = load_benchmark(args.benchmark)
        spnet_classes = (benchmark, load_class_embeddings(args.class_embeddings, benchmark))
    tensors = read_checkpoint(args.checkpoint)
    try:
        match = match_keys(tensors)
        config, weights = convert_tensors(tensors, match, spnet_classes)
    except ValueError as error:
        raise ValueError(f"{args.checkpoint}: {error}") from None
    with torch.device("meta"):
        model = CaGNetForSemanticSegmentation(config)
    model.load_state_dict(weights, strict=True, assign=True)
    digest = hashlib.sha256(args.checkpoint.read_bytes()).hexdigest()
    card = converted_model_card(config, args.source or args.checkpoint.name, digest)
    save_model_folder(model, CaGNetImageProcessor(), args.output, card)
    names = ", ".join(config.id2label[i] for i in range(config.num_labels))
    print(f"Matched {len(match.matched)} of {len(tensors)} tensors")
    print(f"{len(config.seen_ids)} seen and {len(config.unseen_ids)} unseen classes: {names}")
    print(f"Wrote {args.output}")


def convert_tensors(tensors, match, spnet_classes):
    """(configuration, weights) of the network that a file's tensors are."""
    from cagnet_hf.conversion import convert_spnet, convert_state_dict

    if spnet_classes is not None:
        return convert_spnet(tensors, *spnet_classes)
    if match.matched and not match.unknown and not match.has_classes:
        raise ValueError(
            "a PixelCNN over patches, which segments nothing: it is converted by "
            "cagnet_hf.conversion.convert_pixelcnn_state_dict"
            if match.layout == "PixelCNN"
            else f"a {match.layout} file without classes: for an SPNet give --benchmark and --class_embeddings; "
            "a recipe starts from a backbone as it is, with backbone_weights=FILE"
        )
    return convert_state_dict(tensors)


if __name__ == "__main__":
    sys.exit(main())
