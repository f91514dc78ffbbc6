"""Prepared datasets, and their way to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants

from ..data.benchmarks import CLASS_TABLE
from ..data.prepared import CARD, ID2LABEL
from .repositories import claim_repository, told_in_one_line


def push_dataset(folder: Path, repo_id: str) -> str:
    """Upload a prepared dataset to the Hub, where its repository is made if need be; returns its address.

    Parquet files that an earlier upload had and this one has not are deleted: they would be rows of a split.

    Raises:
        ValueError: See `claim_repository`; or the upload was refused or interrupted.
    """
    full_id = claim_repository(repo_id, repo_type="dataset")
    with told_in_one_line(full_id):
        HfApi().upload_folder(
            repo_id=full_id,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[CARD, CLASS_TABLE, ID2LABEL, "data/*.parquet"],
            delete_patterns="data/*.parquet",
            commit_message="Prepared dataset, class table, card",
        )
    return f"{constants.ENDPOINT}/datasets/{full_id}"
