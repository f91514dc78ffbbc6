"""Parquet files of bounded size, each written aside and recorded once it is whole, so that a killed run goes on.

.OUTPUT.partial/plan.json             what is prepared; of another plan nothing is taken over
               /dataset/data/SPLIT-0000N
               /progress/SPLIT-0000N.json  which examples are in that file, and their counts
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from ..files import write_text_whole
from .benchmarks import Benchmark, format_class_table
from .examples import CheckedExample, Example
from .report import SplitReport

FEATURES = Features({"image": Image(), "mask": Image(), "image_id": Value("string")})
ROWS_PER_GROUP = 100  # what a reader must load to reach one row


class Workplace:
    """The folder beside the output where a dataset grows."""

    def __init__(self, output_dir: Path):
        self.folder = output_dir.with_name(f".{output_dir.name}.partial")
        self.dataset, self.progress = self.folder / "dataset", self.folder / "progress"

    def open(self, plan: str) -> None:
        """Go on with what a killed run of the same plan left, or begin anew."""
        file = self.folder / "plan.json"
        if not file.is_file() or json.loads(file.read_text()) != plan:
            self.remove()
            (self.dataset / "data").mkdir(parents=True)
            self.progress.mkdir()
            write_text_whole(file, json.dumps(plan))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class ShardWriter:
    """Writes the examples of a split, in order. `next_example` is the first one that no whole file covers.

    Attributes:
        report: Counts of everything written, by this run or a killed one.
    """

    def __init__(self, place: Workplace, split: str, max_bytes: int):
        self.place, self.split, self.max_bytes = place, split, max_bytes
        self.report, self.next_example, self.num_shards = SplitReport(), 0, 0
        while (record := self._record()).is_file():
            fields = json.loads(record.read_text(encoding="utf-8"))
            self.report, self.next_example = SplitReport.from_json(fields["report"]), fields["next_example"]
            self.num_shards += 1
        self._aside = place.dataset / "data" / f".{split}.partial"
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict] = []
        self._num_bytes = 0

    def add(self, example: CheckedExample) -> None:
        self.next_example += 1
        self.report.add(example)
        image = {"bytes": example.image_bytes, "path": None}
        mask = {"bytes": example.mask_bytes, "path": None}
        self._rows.append({"image": image, "mask": mask, "image_id": example.image_id})
        self._num_bytes += len(example.image_bytes) + len(example.mask_bytes)
        if self._num_bytes >= self.max_bytes:
            self._close_shard()
        elif len(self._rows) == ROWS_PER_GROUP:
            self._write_rows()

    def skip(self, reason: str) -> None:
        """Pass over an example."""
        self.next_example += 1
        self.report.skipped.append(reason)

    def finish(self) -> None:
        """Close the last file."""
        self._close_shard()

    def name_files(self) -> None:
        """Give the files their names, which tell how many there are."""
        for number in range(self.num_shards):
            path = self._path(number)
            if path.is_file():  # not so named before a kill
                os.replace(path, path.with_name(f"{path.name}-of-{self.num_shards:05d}.parquet"))

    def _path(self, number: int) -> Path:
        return self.place.dataset / "data" / f"{self.split}-{number:05d}"

    def _record(self) -> Path:
        return self.place.progress / f"{self.split}-{self.num_shards:05d}.json"

    def _write_rows(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._aside, FEATURES.arrow_schema)
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=FEATURES.arrow_schema))
        self._rows = []

    def _close_shard(self) -> None:
        if self._rows:
            self._write_rows()
        if self._writer is None:
            return
        self._writer.close()
        os.replace(self._aside, self._path(self.num_shards))
        fields = {"next_example": self.next_example, "report": self.report.to_json()}
        write_text_whole(self._record(), json.dumps(fields))
        self._writer, self._num_bytes = None, 0
        self.num_shards += 1


def plan_of(examples_by_split: Mapping[str, Sequence[Example]], benchmark: Benchmark, **options) -> str:
    """A hash of what a prepared dataset depends on: names, sizes and times of its files, classes, options."""
    digest = hashlib.sha256(json.dumps([format_class_table(benchmark), options]).encode())
    for split, examples in examples_by_split.items():
        for example in examples:
            facts = [split, example.image_id, *(part for f in (example.image, example.mask) for part in _facts(f))]
            digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _facts(file) -> list:
    """The name, size and time of a file, or of the archive that it is in."""
    name = str(file)
    while hasattr(file, "file"):  # a mask that is decoded from a file
        file = file.file
    try:
        stat = getattr(file, "source", file).stat()
    except OSError:
        return [name]
    return [name, stat.st_size, stat.st_mtime_ns]
