"""Encode class names with a text encoder into a table of class embeddings.

python scripts/prepare_embeddings.py --encoder DIR_OR_ID --output table.safetensors --names "zebra,bear"
"""

import argparse
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Encode class names with a text encoder into a .safetensors table of class embeddings."
    )
    parser.add_argument("--encoder", required=True, help="a text encoder of transformers: a folder or a Hub id")
    parser.add_argument("--output", type=Path, required=True, help="the table to write (.safetensors)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--benchmark", nargs="+", metavar="NAME", help="the benchmarks to take names from (default: all)"
    )
    which.add_argument("--names", help="the class names themselves, separated by commas")
    parser.add_argument(
        "--encoder_name", help="what the table calls the encoder (default: the folder's name or the id)"
    )
    parser.add_argument("--license", default="unknown", help="the licence of the encoder, kept in the table")
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --output")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        write_table(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_table(args: argparse.Namespace) -> None:
    # Imported here, so that --help answers at once.
    from cagnet_hf import __version__
    from cagnet_hf.benchmarks import benchmark_names, load_benchmark
    from cagnet_hf.class_embeddings import encode_names, plain_name, save_embedding_table

    if args.output.suffix != ".safetensors":
        raise ValueError(f"--output {args.output}: the name of a table ends in .safetensors")
    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"--output {args.output} exists; choose another or pass --overwrite")
    if args.names is not None:
        names = args.names.split(",")
    else:
        benchmarks = [load_benchmark(name) for name in args.benchmark or benchmark_names()]
        names = [name for benchmark in benchmarks for name in benchmark.label_names]
    names = sorted({plain_name(name) for name in names} - {""})
    if not names:
        raise ValueError(f"--names {args.names!r} holds no names")
    vectors = encode_names(names, args.encoder)
    metadata = {
        "encoder": args.encoder_name or (Path(args.encoder).name if Path(args.encoder).is_dir() else args.encoder),
        "license": args.license,
        "made_by": f"cagnet-hf {__version__}",
    }
    save_embedding_table(args.output, names, vectors, metadata)
    print(f"Wrote {args.output}: {len(names)} names, {vectors.shape[1]} numbers each")


if __name__ == "__main__":
    sys.exit(main())
