"""Make a table of class embeddings from word vectors and text encoders.

python scripts/prepare_embeddings.py --word_vectors crawl-300d-2M.vec.zip --word_vectors GoogleNews.bin.gz \\
    --benchmark pascal_context --output table.safetensors
python scripts/prepare_embeddings.py --encoder DIR_OR_ID --names zebra "polar bear" --output table.safetensors
"""

import argparse
import json
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Look up or encode class names; write a .safetensors table of class embeddings. Several "
        "--word_vectors and --encoder are joined in the order they are given."
    )
    parser.add_argument(
        "--word_vectors",
        dest="sources",
        action="append",
        type=lambda source: ("word_vectors", source),
        metavar="FILE",
        help="word2vec .bin; fastText .vec; GloVe .txt; or these as .gz, .zip or FILE.zip:MEMBER",
    )
    parser.add_argument(
        "--encoder",
        dest="sources",
        action="append",
        type=lambda source: ("encoder", source),
        metavar="DIR_OR_ID",
        help="a text encoder of transformers or sentence-transformers: a folder or a Hub id",
    )
    parser.add_argument("--output", type=Path, required=True, help="the table to write (.safetensors)")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--benchmark", nargs="+", metavar="NAME", help="the benchmarks to take names from")
    which.add_argument("--names", nargs="+", metavar="NAME", help='the class names themselves: zebra "polar bear"')
    which.add_argument("--names_file", type=Path, help="a text file with a class name on each line")
    parser.add_argument(
        "--normalize",
        choices=("whole", "parts"),
        default="whole",
        help="vectors get length 1 once they are joined (whole, default), or each part before, too (parts)",
    )
    parser.add_argument(
        "--synonyms",
        type=Path,
        action="append",
        metavar="FILE",
        help="YAML of what to look up in word vectors instead, `tv: television`, or `tv: [television, set]` for the "
        "mean; once for all --word_vectors, or once for each in their order",
    )
    parser.add_argument(
        "--pooling",
        choices=("mean", "head"),
        help="of encoders: the mean over a text's tokens, or the model's own head (default: the head of a text tower "
        "such as CLIP's, what a sentence-transformers folder says, else the mean)",
    )
    parser.add_argument(
        "--prompt", default="{}", help='the text around a name for encoders, such as "a photo of a {}."'
    )
    parser.add_argument(
        "--encoder_name", help="what the table calls the encoder (default: the folder's name or the id)"
    )
    parser.add_argument("--license", default="unknown", help="the licence of the sources, kept in the table")
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --output")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run

    return run(lambda: write_table(args))


def write_table(args: argparse.Namespace) -> None:
    import numpy as np

    from cagnet_hf import __version__
    from cagnet_hf.model.configuration_cagnet import plain_name
    from cagnet_hf.vectors.class_embeddings import check_vectors, join_parts, save_embedding_table
    from cagnet_hf.vectors.word_names import load_synonyms

    kinds = [kind for kind, _ in args.sources or []]
    num_tables, num_encoders = kinds.count("word_vectors"), kinds.count("encoder")
    if not kinds:
        raise ValueError("nothing to make vectors from; give --word_vectors FILE or --encoder DIR_OR_ID")
    if args.output.suffix != ".safetensors":
        raise ValueError(f"--output {args.output}: the name of a table ends in .safetensors")
    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"--output {args.output} exists; choose another or pass --overwrite")
    if not num_tables and args.synonyms:
        raise ValueError("--synonyms are for --word_vectors, but there are none")
    if not num_encoders and (args.pooling or args.prompt != "{}"):
        raise ValueError("--pooling and --prompt are for an --encoder, but there is none")
    if len(args.synonyms or []) not in (0, 1, num_tables):
        raise ValueError(f"{len(args.synonyms)} --synonyms for {num_tables} --word_vectors; give one, or one for each")
    if args.encoder_name and num_encoders != 1:
        raise ValueError(f"--encoder_name {args.encoder_name} names one --encoder, but there are {num_encoders}")

    names, optional = wanted_names(args)
    files = args.synonyms or []
    synonyms = [load_synonyms(path, names) for path in (files * num_tables if len(files) == 1 else files)]
    synonyms = iter(synonyms or [{}] * num_tables)
    parts, sources = [], []
    for kind, source in args.sources:
        if kind == "encoder":
            vectors, record = encode(source, names, args)
        else:
            vectors, record = look_up(source, names, optional, next(synonyms), args)
        parts.append(vectors)
        sources.append(record)

    left_out = [name for name in names if not all(name in part for part in parts)]
    if left_out:
        print(f"Left out {', '.join(map(repr, left_out))}: an ignored label without a vector")
    names = [name for name in names if name not in left_out]
    matrices = [np.stack([part[name] for name in names]) for part in parts]
    for (_, source), matrix in zip(args.sources, matrices, strict=True):
        check_vectors(source, names, matrix)
    vectors = join_parts(matrices, normalize_parts=args.normalize == "parts")
    metadata = {
        "sources": json.dumps(sources),
        "normalize": args.normalize,
        "license": args.license,
        "made_by": f"cagnet-hf {__version__}",
    }
    save_embedding_table(args.output, [plain_name(name) for name in names], vectors, metadata)
    print(f"Wrote {args.output}: {len(names)} names, {vectors.shape[1]} numbers each")


def wanted_names(args: argparse.Namespace) -> tuple[list[str], set[str]]:
    """The names, as they are first written, in order of their plain spelling; those that no class needs."""
    from cagnet_hf.data.benchmarks import load_benchmark
    from cagnet_hf.model.configuration_cagnet import plain_name

    needed = {}
    ignored = {}
    if args.benchmark:
        for benchmark in map(load_benchmark, args.benchmark):
            needed |= {plain_name(name): name for name in benchmark.class_names if plain_name(name) not in needed}
            ignored |= {plain_name(benchmark.label_names[i]): benchmark.label_names[i] for i in benchmark.ignored_ids}
    else:
        try:
            given = args.names or args.names_file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{args.names_file}: not a text file of UTF-8 ({error})") from error
        for name in given:
            if "," in name:
                raise ValueError(f"name {name!r} has a comma; write names apart: --names zebra 'polar bear'")
            if plain_name(name):
                needed.setdefault(plain_name(name), name.strip())
    if not needed:
        raise ValueError(f"{args.names_file or '--names'}: holds no names")
    names = ignored | needed
    return [names[name] for name in sorted(names)], {ignored[name] for name in ignored.keys() - needed.keys()}


def look_up(source: str, names: list[str], optional: set[str], synonyms: dict, args: argparse.Namespace):
    """The vectors by name that a table of word vectors has, and what the output says of it."""
    from cagnet_hf.files import sha256
    from cagnet_hf.vectors.word_names import look_up_names
    from cagnet_hf.vectors.word_streams import split_archive

    found = look_up_names(names, source, synonyms=synonyms, optional=optional)
    means = sum(len(words) > 1 for words in found.words.values())
    print(f"{source}: {len(found.words) - means} names are entries of the table, {means} means of several")
    path, member = split_archive(source)
    file = path.name if member is None else f"{path.name}:{member}"
    return found.vectors, {"file": file, "sha256": sha256(path), "words": found.words}


def encode(source: str, names: list[str], args: argparse.Namespace):
    """The vectors by name that a text encoder makes, and what the output says of it."""
    from cagnet_hf.files import sha256
    from cagnet_hf.vectors.text_encoders import encode_names, encoder_files

    vectors = encode_names(names, source, pooling=args.pooling, prompt=args.prompt)
    record = {
        "encoder": args.encoder_name or (Path(source).resolve().name if Path(source).is_dir() else source),
        "pooling": args.pooling or "own",
        "prompt": args.prompt,
        "sha256": {path.name: sha256(path) for path in encoder_files(source)},
    }
    return dict(zip(names, vectors, strict=True)), record


if __name__ == "__main__":
    sys.exit(main())
