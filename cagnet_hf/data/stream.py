"""Endless training batches whose content is a pure function of (seed, stage, iteration, process)."""

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from ..benchmarks import LabelMap
from .transforms import TrainingTransform


class TrainingExamples(Dataset):
    """Examples addressed by (position in the stream, row of the dataset); the position seeds the augmentation."""

    def __init__(self, dataset, label_map: LabelMap, transform: TrainingTransform, seed: int, hide_unseen: bool):
        self.dataset = dataset
        self.label_map = label_map
        self.transform = transform
        self.seed = seed
        self.hide_unseen = hide_unseen

    def __getitem__(self, key):
        position, row = key
        example = self.dataset[row]
        labels = self.label_map.to_model_order(
            np.asarray(example["mask"]), hide_unseen=self.hide_unseen, source=f"mask of {example['image_id']}"
        )
        augmentation = self.transform.draw(np.random.default_rng([self.seed, position]))
        return self.transform(example["image"], labels, augmentation)


class EndlessBatches(Sampler):
    """Batches of (position, row) from iteration `start` on: every epoch a new permutation, no state to save."""

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        *,
        start: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        if num_rows == 0:
            raise ValueError("the training split is empty")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.process = process
        self.processes = processes

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


def training_batches(examples: TrainingExamples, batches: EndlessBatches, num_workers: int, pin_memory: bool):
    """A DataLoader over the endless stream."""
    return DataLoader(
        examples,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
    )
