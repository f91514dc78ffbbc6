"""How a CLIPSeg of transformers, which is asked for classes by their names, scores beside the rows of this package.

python scripts/ablations/clipseg.py --model CIDAS/clipseg-rd64-refined --dataset data/pascal_voc --output clipseg.json
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

PROMPT = "a photo of a {}."


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Score a CLIPSeg on a test set, protocol full: every pixel is given to the class whose name "
        "answers most strongly. A CLIPSeg learnt from phrases that name unseen classes, too: this is no zero-shot.",
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of a CLIPSeg")
    parser.add_argument("--dataset", required=True, help="prepared folder, or scenes:SEED")
    parser.add_argument("--split", default="test", help="split of the dataset (default: test)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run
    from cagnet_hf.data.sources import open_with_classes
    from cagnet_hf.files import check_output, made_by, write_text_whole

    mark = made_by("clipseg")

    def measure():
        check_output(args.output, mark)
        rows, classes = open_with_classes(args.dataset, args.split)
        if classes is None:
            raise ValueError(f"{args.dataset}: no class table says what the classes are called")
        scores = {"made_by": mark, "model": args.model} | score_names(args.model, rows, classes)
        write_text_whole(args.output, json.dumps(scores, indent=1) + "\n")
        print("  ".join(f"{key} {scores[key] or 0:.4f}" for key in ("S-mIoU", "U-mIoU", "hIoU")))

    return run(measure)


def score_names(source: str, rows, classes) -> dict:
    """The scores (see `ConfusionMatrix.scores`) of a CLIPSeg on the rows of a dataset with these classes."""
    from accelerate import Accelerator
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPSegForImageSegmentation
    from transformers.utils import ModelOutput

    from cagnet_hf.evaluation.scoring import count, gathered_scores, scored_batches
    from cagnet_hf.files import check_weight_files
    from cagnet_hf.model.configuration_cagnet import CaGNetConfig, plain_name
    from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor

    check_weight_files(source)
    own = {"trust_remote_code": False}
    kind = (AutoConfig.from_pretrained(source, **own).architectures or ["model of no class"])[0]
    if kind != CLIPSegForImageSegmentation.__name__:
        raise ValueError(f"{source}: a {kind}, not a {CLIPSegForImageSegmentation.__name__}")
    prepare, tokenizer = (part.from_pretrained(source, **own) for part in (AutoImageProcessor, AutoTokenizer))
    accelerator = Accelerator()
    network = CLIPSegForImageSegmentation.from_pretrained(source, use_safetensors=True, **own).to(accelerator.device)
    texts = [PROMPT.format(plain_name(name)) for name in classes.class_names]
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(accelerator.device)
    vectors = network.get_conditional_embeddings(len(texts), tokens["input_ids"], tokens["attention_mask"])  # (N, D)
    # An image is encoded once, and the decoder answers for every name: maps (1, T, C) become (N, T, C).
    network.decoder.register_forward_pre_hook(
        lambda decoder, inputs: ([maps.expand(len(texts), -1, -1) for maps in inputs[0]], vectors)
    )
    forward = network.forward

    def logits(pixels, **options):
        return ModelOutput(logits=forward(pixel_values=pixels, conditional_embeddings=vectors[:1]).logits[None])

    def pixel_values(image):
        told = {"input_data_format": "channels_first", "return_tensors": "pt"}
        return prepare(images=image.cpu().numpy(), **told)["pixel_values"][0].to(image.device)

    network.forward = logits
    label_maps = CaGNetImageProcessor().post_process_semantic_segmentation
    processor = SimpleNamespace(prepare=pixel_values, post_process_semantic_segmentation=label_maps)
    options = {"batch_size": 1, "accelerator": accelerator, "labels": classes.label_space}
    batches = scored_batches(network, processor, rows, **options)
    matrix, _ = count(CaGNetConfig(**classes.config_fields()), processor, batches)
    return gathered_scores(matrix, accelerator) | {"protocol": "full", "num_images": len(rows)}


if __name__ == "__main__":
    sys.exit(main())
