"""`cagnet-hf prepare_embeddings`."""

from pathlib import Path
from typing import Annotated, Literal


def prepare_embeddings(
    *,
    sources: Annotated[list[tuple[str, str]], ("word_vectors", "encoder", "prototypes")] = (),
    output: Path,
    benchmark: list[str] = (),
    names: list[str] = (),
    names_file: Path | None = None,
    normalize: Literal["whole", "parts"] = "whole",
    synonyms: list[Path] = (),
    pooling: Literal["mean", "head"] | None = None,
    prompt: str = "{}",
    encoder_name: str | None = None,
    license: str = "unknown",
    overwrite: bool = False,
) -> None:
    """Make class embeddings from word vectors, encoders, images.

    Class names are looked up or encoded; the table is a .safetensors file. Several --word_vectors, --encoder and
    --prototypes are joined in the order in which they are given. Give one of --benchmark, --names and --names_file.

    Args:
        word_vectors (FILE): word2vec .bin; fastText .vec; GloVe .txt; or these as .gz, .zip or FILE.zip:MEMBER.
        encoder (DIR_OR_ID): A text encoder of transformers or sentence-transformers: a folder or a Hub id.
        prototypes (DIR_OR_ID): A model of the method prototypes: the vectors are mean features of unlabelled images.
        output: The table to write (.safetensors).
        benchmark (NAME): The benchmarks to take names from.
        names (NAME): The class names themselves: zebra "polar bear".
        names_file: A text file with a class name on each line.
        normalize: Vectors get length 1 once they are joined (whole), or each part before, too (parts).
        synonyms (FILE): YAML of what to look up in word vectors instead, `tv: television`, or `tv: [television, set]`
            for the mean; once for all --word_vectors, or once for each in their order.
        pooling: Of encoders: the mean over a text's tokens, or the model's own head (default: the head of a text tower
            such as CLIP's, what a sentence-transformers folder says, else the mean).
        prompt: The text around a name for encoders, such as "a photo of a {}.".
        encoder_name: What the table calls the encoder (default: the folder's name or the id).
        license: The licence of the sources, kept in the table.
        overwrite: Replace a file at --output.

    Examples:
        cagnet-hf prepare_embeddings --word_vectors crawl.vec.zip --benchmark pascal_context --output table.safetensors
        cagnet-hf prepare_embeddings --encoder DIR_OR_ID --names zebra "polar bear" --output table.safetensors
    """
    from ..apps.embedding_tables import (
        TABLE_MARK,
        encoded,
        looked_up,
        seen_by_classifier,
        wanted_names,
        write_joined,
    )
    from ..files import check_output
    from ..vectors.word_names import load_synonyms
    from ..vectors.word_streams import split_archive

    kinds = [kind for kind, _ in sources]
    num_tables, num_encoders = kinds.count("word_vectors"), kinds.count("encoder")
    if not kinds:
        raise ValueError(
            "nothing to make vectors from; give --word_vectors FILE or --encoder DIR_OR_ID or --prototypes DIR_OR_ID"
        )
    if output.suffix != ".safetensors":
        raise ValueError(f"--output {output}: the name of a table ends in .safetensors")
    given = [split_archive(source)[0] for _, source in sources]
    check_output(output, TABLE_MARK, inputs=(*given, *synonyms, names_file), overwrite=overwrite)
    if not num_tables and synonyms:
        raise ValueError("--synonyms are for --word_vectors, but there are none")
    if not num_encoders and (pooling or prompt != "{}"):
        raise ValueError("--pooling and --prompt are for an --encoder, but there is none")
    if len(synonyms) not in (0, 1, num_tables):
        raise ValueError(f"{len(synonyms)} --synonyms for {num_tables} --word_vectors; give one, or one for each")
    if encoder_name and num_encoders != 1:
        raise ValueError(f"--encoder_name {encoder_name} names one --encoder, but there are {num_encoders}")
    if sum(map(bool, (benchmark, names, names_file))) != 1:
        raise ValueError("give the class names by one of --benchmark, --names and --names_file")
    wanted, optional = wanted_names(benchmark, names, names_file)
    files = synonyms * num_tables if len(synonyms) == 1 else synonyms
    meant = iter([load_synonyms(path, wanted) for path in files])
    make = {
        "encoder": lambda source: encoded(source, wanted, pooling=pooling, prompt=prompt, called=encoder_name),
        "prototypes": lambda source: seen_by_classifier(source, wanted),
        "word_vectors": lambda source: looked_up(source, wanted, optional, next(meant, None)),
    }
    made = [make[kind](source) for kind, source in sources]
    parts, records = zip(*made, strict=True)
    write_joined(output, wanted, parts, records, normalize=normalize, license=license)
