"""Endless training batches whose content is a pure function of (seed, stage, iteration, process)."""

import signal
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .label_space import LabelSpace, nothing_to_learn
from .rows import Rows, StreamedRows
from .transforms import TrainingTransform


class LabelledImages:
    """Samples of a dataset in model order: image `(3, H, W)` uint8, labels `(H, W)` (see `to_model_order`).

    Args:
        dataset: What gives a `Sample` by its key.
        labels: The labels of the model.
        hide_unseen: Map unseen classes to `ignore_index`.
    """

    def __init__(self, dataset: Rows | StreamedRows, labels: LabelSpace, *, hide_unseen: bool):
        self.dataset, self.labels, self.hide_unseen = dataset, labels, hide_unseen

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self.dataset[row]
        labels = self.labels.to_model_order(sample.labels, hide_unseen=self.hide_unseen, source=f"mask of {sample.id}")
        return sample.image, torch.from_numpy(labels)


def check_training_labels(images: LabelledImages, dataset: Rows | StreamedRows) -> None:
    """Refuse a training set without one labelled pixel. Masks are read until a mask has some: most often one mask,
    and never an image.

    Raises:
        ValueError: No mask has a pixel of a class that training shows.
    """
    found = set()
    for sample in dataset.without_images():
        labels = images.labels.to_model_order(
            sample.labels, hide_unseen=images.hide_unseen, source=f"mask of {sample.id}"
        )
        if (labels != images.labels.ignore_index).any():
            return
        found |= set(sample.labels.unique().tolist())
    raise ValueError(nothing_to_learn(sorted(found)))


class TrainingExamples(Dataset):
    """Examples addressed by (position in the stream, row of the dataset); the position seeds the augmentation.

    Args:
        images: `LabelledImages`, or their content as a list; an example is made on the device its image is on.
    """

    def __init__(self, images: LabelledImages | Sequence, transform: TrainingTransform, seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, key) -> dict[str, torch.Tensor]:
        position, row = key
        image, labels = self.images[row]
        return self.transform(image, labels, self.transform.draw(np.random.default_rng([self.seed, position])))


class EndlessBatches(Sampler):
    """Batches of (position, row) from iteration `start` on: every epoch a new permutation, no state to save."""

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, *, start: int = 0, process: int = 0, processes: int = 1
    ):
        if num_rows == 0:
            raise ValueError("the training split is empty")
        self.num_rows, self.batch_size, self.seed, self.start = num_rows, batch_size, seed, start
        self.process, self.processes = process, processes

    def __iter__(self):
        epoch, order, iteration = -1, None, self.start
        while True:
            first = (iteration * self.processes + self.process) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.num_rows != epoch:
                    epoch = position // self.num_rows
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
                batch.append((position, int(order[position % self.num_rows])))
            yield batch
            iteration += 1


class StreamedBatches(Sampler):
    """As `EndlessBatches`, of rows that have no number: a batch holds (position, row as it is stored).

    The rows are read here, in the order of `StreamedRows.shuffled`, which depends on seed and epoch alone; workers
    decode them. To start later, rows are read and passed over: those of the first epoch, which tell how many there
    are, and of the epoch to start in. Each process reads every row and keeps its own.
    """

    def __init__(
        self, rows: StreamedRows, batch_size: int, seed: int, *, start: int = 0, process: int = 0, processes: int = 1
    ):
        self.rows, self.batch_size, self.seed, self.start = rows, batch_size, seed, start
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[list[tuple[int, dict]]]:
        batch = []
        for position, row in self._from(self.start * self.processes * self.batch_size):
            if position // self.batch_size % self.processes == self.process:
                batch.append((position, row))
            if len(batch) == self.batch_size:
                yield batch
                batch = []

    def _from(self, start: int) -> Iterator[tuple[int, dict]]:
        epoch = position = 0
        while True:
            first = position
            for row in self.rows.shuffled(self.seed, epoch):
                if position >= start:
                    yield position, row
                position += 1
            num_rows = position - first
            if not num_rows:
                raise ValueError("the training split is empty")
            passed_over = max(0, start - position) // num_rows
            position += passed_over * num_rows
            epoch += 1 + passed_over


class TrainingBatches:
    """The endless stream, batch by batch; its workers end when it is closed, at the latest with the process."""

    def __init__(self, examples: TrainingExamples, batches: Sampler, num_workers: int, pin_memory: bool):
        loader = DataLoader(
            examples,
            batch_sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=_leave_sigterm_to_the_run,
        )
        self._batches = iter(loader)
        self._end = weakref.finalize(self, _end_workers, self._batches)

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        return next(self._batches)

    def close(self) -> None:
        self._end()


def _end_workers(batches: Iterator) -> None:
    """End the workers, whoever still refers to them: where a traceback did, the process would wait for them for ever
    at its exit, since they ignore the signal by which Python ends children."""
    if hasattr(batches, "_shutdown_workers"):  # DataLoader has no public name for it
        batches._shutdown_workers()


def _leave_sigterm_to_the_run(_worker: int) -> None:
    """A scheduler may signal every process of a job; workers end with the run that they work for."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
