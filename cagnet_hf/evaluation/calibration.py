"""The calibration γ of any model: what γ may be, and what every γ of a grid would score, in one pass over images.

γ is subtracted from the probabilities of seen classes (SPNet-c). Positive: more pixels go to unseen classes; negative:
fewer pixels go to unseen classes.
"""

from contextlib import closing

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ..data.benchmarks import Benchmark
from .scoring import gathered_scores, scored_batches
from .zero_shot_segmentation.confusion_matrix import ConfusionMatrix

GAMMAS = tuple(round(0.05 * i, 2) for i in range(-19, 20))


def check_gamma(gamma: float | None) -> None:
    """Refuse a calibration with which all or no pixels would go to unseen classes.

    Raises:
        ValueError: `gamma` is not between -1 and 1.
    """
    if gamma is not None and not -1 <= gamma <= 1:
        raise ValueError(f"gamma {gamma}: it is subtracted from probabilities, so choose a number from -1 to 1")


def check_choosable(config, benchmark: Benchmark | None, model: str) -> None:
    """Refuse to choose a calibration on the classes that it will be tested on.

    Raises:
        ValueError: The model knows an unseen class of the dataset; one trained with split=tuning knows none.
    """
    known = [benchmark.label_names[i] for i in (benchmark.unseen_ids if benchmark else ()) if i in config.dataset_ids]
    if known:
        raise ValueError(
            f"{model} knows {', '.join(known)}, which are unseen classes of the dataset: choose on a model trained "
            "with split=tuning, whose unseen classes are held-out seen ones"
        )


def calibration_curve(
    model, processor, dataset, *, gammas=GAMMAS, batch_size: int = 8, progress: bool = True
) -> dict[float, dict]:
    """The scores (see `ConfusionMatrix.scores`) of every γ, by protocol `full`.

    γ is subtracted from the softmax probabilities of seen classes (SPNet, section 3.4), so a pixel turns unseen when
    its best unseen class comes within γ of its best seen one: the probabilities are needed once, whatever the grid.

    Raises:
        ValueError: The model knows no unseen classes.
    """
    if not model.config.unseen_ids:
        raise ValueError("the model knows no unseen classes, so there is nothing to calibrate")
    accelerator = Accelerator()
    model.to(accelerator.device)
    matrices = {gamma: ConfusionMatrix.of(model.config) for gamma in gammas}
    num_seen = len(model.config.seen_ids)
    batches = scored_batches(
        model, processor, dataset, batch_size=batch_size, accelerator=accelerator, progress=progress
    )
    with closing(batches):  # whatever happens, the model gets its mode back
        for outputs, references in batches:
            for logits, labels in zip(outputs.logits, references, strict=True):
                scores = F.interpolate(logits[None].float(), labels.shape, mode="bilinear", align_corners=False)[0]
                seen, unseen = scores.softmax(dim=0).tensor_split([num_seen])
                (seen_best, seen_ids), (unseen_best, unseen_ids) = seen.max(dim=0), unseen.max(dim=0)
                for gamma, matrix in matrices.items():
                    prediction = torch.where(unseen_best > seen_best - gamma, unseen_ids + num_seen, seen_ids)
                    matrix.add([prediction], [labels])
    return {gamma: gathered_scores(matrix, accelerator) for gamma, matrix in matrices.items()}


def best_gamma(curve: dict[float, dict]) -> float:
    """The γ of the highest hIoU; of equals the one nearest to 0, which changes least."""
    return max(sorted(curve, key=abs), key=lambda gamma: curve[gamma]["hIoU"] or 0.0)
