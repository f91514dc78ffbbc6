"""Turn a checkpoint of the original authors, or an ImageNet ResNet, into a model folder.

python scripts/convert_checkpoint.py 00020000.pth --output models/cagnet_voc
"""

import argparse
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Turn a checkpoint into a folder that from_pretrained opens: CaGNet, CaGNetv2 or SPNet of the "
        "original authors (for predict.py and evaluate.py, too), or a backbone alone (DeepLabV2, or an ImageNet "
        "ResNet of torchvision or transformers). Sizes and classes are read off the file; a file with a tensor that "
        "has no place in the model is refused, and no code in it is ever run.",
        epilog="Files of an SPNet hold no classes: name them with --benchmark and --class_embeddings. Without them an "
        "SPNet is a backbone. A recipe also starts from a backbone's file as it is, backbone_weights=FILE.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="the checkpoint: a .pth or .safetensors file")
    parser.add_argument("--output", type=Path, required=True, help="the model folder to make")
    parser.add_argument("--source", help="where the checkpoint came from, for the model card (default: its name)")
    parser.add_argument("--benchmark", metavar="NAME", help="SPNet: the benchmark it was trained on")
    parser.add_argument(
        "--class_embeddings",
        metavar="FILE",
        help="SPNet: the class embeddings it was trained with, such as FASTTEXT.npy,WORD2VEC.npy",
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

    from cagnet_hf import CaGNetImageProcessor
    from cagnet_hf.data.benchmarks import load_benchmark
    from cagnet_hf.hub.cards.converted import Origin
    from cagnet_hf.vectors.class_embeddings import load_class_embeddings
    from cagnet_hf.weights.conversion import match_keys, read_checkpoint
    from cagnet_hf.weights.folders import save_model_folder

    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"--output {args.output} exists; choose another or pass --overwrite")
    if (args.benchmark is None) != (args.class_embeddings is None):
        raise ValueError("--benchmark and --class_embeddings go together: give both (SPNet) or neither")
    classes = ()
    if args.benchmark is not None:
        benchmark = load_benchmark(args.benchmark)
        classes = (benchmark, load_class_embeddings(args.class_embeddings, benchmark))
    tensors = read_checkpoint(args.checkpoint)
    try:
        match = match_keys(tensors)
        origin = Origin(
            match.layout,
            args.source or args.checkpoint.name,
            hashlib.sha256(args.checkpoint.read_bytes()).hexdigest(),
        )
        processor = CaGNetImageProcessor(**match.processor_fields)
        if match.is_trunk and not classes:
            model, card, summary = convert_trunk(tensors, processor, origin)
        else:
            model, card, summary = convert_segmenter(tensors, classes, processor, origin)
    except ValueError as error:
        raise ValueError(f"{args.checkpoint}: {error}") from None
    model.config.weights_from = origin.source
    save_model_folder(model, processor, args.output, card)
    skipped = f" ({', '.join(match.skipped)})" if match.skipped else ""
    print(
        f"{len(tensors)} tensors: {len(match.matched)} matched, {len(match.skipped)} skipped{skipped}, "
        f"{len(match.unknown)} unknown"
    )
    print(summary)
    print(f"Wrote {args.output}")


def convert_segmenter(tensors, classes, processor, origin):
    """(model, card, one line about it) of a CaGNet or, with `classes`, an SPNet."""
    from cagnet_hf import CaGNetForSemanticSegmentation
    from cagnet_hf.hub.cards.converted import converted_model_card
    from cagnet_hf.weights.conversion import convert_spnet, convert_state_dict

    config, weights = convert_spnet(tensors, *classes) if classes else convert_state_dict(tensors)
    names = ", ".join(config.id2label.values())
    return (
        with_weights(CaGNetForSemanticSegmentation, config, weights),
        converted_model_card(config, processor, origin),
        f"{len(config.seen_ids)} seen and {len(config.unseen_ids)} unseen classes: {names}",
    )


def convert_trunk(tensors, processor, origin):
    """(model, card, one line about it) of a file with a backbone and perhaps an ASPP, which are all it needs."""
    import torch

    from cagnet_hf import CaGNetModel
    from cagnet_hf.hub.cards.converted import UNTRAINED_ASPP, converted_backbone_card
    from cagnet_hf.weights.conversion import convert_backbone

    config, weights = convert_backbone(tensors)
    has_aspp = any(name.startswith("aspp.") for name in weights)
    torch.manual_seed(0)  # so that an ASPP of no file is the same in every conversion
    model = CaGNetModel(config)
    model.load_state_dict(weights, strict=has_aspp)
    aspp = f"an ASPP of {config.feature_size} features" if has_aspp else f"no ASPP, so {UNTRAINED_ASPP}"
    return (
        model,
        converted_backbone_card(config, processor, origin, has_aspp=has_aspp),
        f"A backbone of {sum(config.depths)} blocks and {aspp}; no classes "
        "(for an SPNet give --benchmark and --class_embeddings)",
    )


def with_weights(kind, config, weights):
    """The network with these weights, all of them; its own are never made."""
    import torch

    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model


if __name__ == "__main__":
    sys.exit(main())
