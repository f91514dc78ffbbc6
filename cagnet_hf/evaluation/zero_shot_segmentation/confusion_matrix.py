"""The confusion matrix of label maps over seen and unseen classes, and the scores that follow from the matrix.

The file stands alone, so that `evaluate.load` can copy it beside the metric: it imports numpy and the standard library
only.
"""

import operator
from collections.abc import Collection, Mapping

import numpy as np


class ConfusionMatrix:
    """Counts pixels by true and predicted class. Label maps are counted when they are added; no map is kept.

    Several processes share the work by summing their matrices: `total = accelerator.reduce(matrix, "sum")`, then
    `reset()` and `merge(total)`.

    Args:
        num_labels: Number of classes.
        seen_ids, unseen_ids: Class indices; together they name every class once. A group that is left out holds the
            classes that the other one does not name; where both are left out, every class is seen.
        id2label: Class names by index; the index itself where not given.
        ignore_index: Value of reference pixels that are not scored.

    Raises:
        ValueError: A class is in both groups or in none, two classes have one name, `ignore_index` is a class, or a
            number is no whole one.
    """

    def __init__(
        self,
        num_labels: int,
        seen_ids: Collection[int] | None = None,
        unseen_ids: Collection[int] | None = None,
        id2label: Mapping[int | str, str] | None = None,
        ignore_index: int = 255,
    ):
        (num_labels,), (ignore_index,) = _whole("num_labels", [num_labels]), _whole("ignore_index", [ignore_index])
        if num_labels < 1:
            raise ValueError(f"num_labels {num_labels}: a metric has at least one class")
        self.num_labels, self.ignore_index = num_labels, ignore_index
        every = range(num_labels)
        seen, unseen = (
            None if ids is None else _whole(name, ids)
            for name, ids in (("seen_ids", seen_ids), ("unseen_ids", unseen_ids))
        )
        self.seen_ids = sorted(set(every) - set(unseen or [])) if seen is None else seen
        self.unseen_ids = sorted(set(every) - set(self.seen_ids)) if unseen is None else unseen
        # A JSON file turns the indices into strings.
        names = {int(i): str(name) for i, name in (id2label or {}).items()}
        self.label_names = [names.get(i, str(i)) for i in every]
        if sorted(self.seen_ids + self.unseen_ids) != list(every):
            raise ValueError(
                f"seen_ids {self.seen_ids} and unseen_ids {self.unseen_ids} "
                f"must name each of the {num_labels} classes 0..{num_labels - 1} exactly once"
            )
        if 0 <= ignore_index < num_labels:
            raise ValueError(f"ignore_index {ignore_index} is a class; choose a value that is none")
        twice = sorted({name for name in self.label_names if self.label_names.count(name) > 1})
        if twice:
            raise ValueError(f"label name {twice[0]!r} belongs to several classes; make the names distinct")
        self.reset()

    @classmethod
    def of(cls, config) -> "ConfusionMatrix":
        """An empty matrix for the classes of a model's configuration."""
        return cls(config.num_labels, config.seen_ids, config.unseen_ids, config.id2label, config.ignore_index)

    def reset(self) -> None:
        """Forget every pixel counted so far."""
        self.counts = np.zeros((self.num_labels, self.num_labels), np.int64)  # rows: truth, columns: prediction

    def merge(self, counts) -> None:
        """Add the counts `(num_labels, num_labels)` of another process."""
        counts = _integer_array("confusion matrix", counts)
        if counts.shape != self.counts.shape:
            raise ValueError(f"confusion matrix of shape {counts.shape}, expected {self.counts.shape}")
        if counts.min(initial=0) < 0:
            raise ValueError(f"confusion matrix holds the negative count {counts.min()}")
        self.counts += counts

    def add(self, predictions, references) -> None:
        """Count label maps; none is counted if any of them is refused.

        Args:
            predictions, references: One map `(H, W)`, a batch `(B, H, W)` or a list of maps of any sizes, as arrays,
                tensors or nested lists. Pixels that a masked array masks are not scored.

        Raises:
            ValueError: Predictions and references differ in number or shape, or a value is no class.
            TypeError: The maps are not of integers.
        """
        if predictions is None or references is None:
            raise ValueError("the metric needs both predictions and references")
        if not isinstance(predictions, list | tuple) and not isinstance(references, list | tuple):
            predictions, references = [predictions], [references]
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references")
        self.counts += sum(self._count(*pair) for pair in zip(predictions, references, strict=True))

    def _count(self, prediction, reference) -> np.ndarray:
        N = self.num_labels
        prediction, reference = _integer_array("prediction", prediction), _integer_array("reference", reference)
        if prediction.shape != reference.shape:
            raise ValueError(f"prediction of shape {prediction.shape}, but reference of shape {reference.shape}")
        hidden = np.ma.getmask(prediction) | np.ma.getmask(reference)
        prediction, reference = np.ma.filled(prediction, 0), np.ma.getdata(reference)
        # Refused at ignored pixels, too: a model that predicts what is no class is broken.
        if prediction.min(initial=0) < 0 or prediction.max(initial=0) >= N:
            _refuse("prediction", prediction, (prediction < 0) | (prediction >= N), f"0..{N - 1}")
        # Ignored pixels fall into a row of their own, cut off below: cheaper than filtering them out.
        cell = reference.astype(np.intp)
        no_class = hidden | (reference < 0) | (reference >= N)
        if no_class.any():
            wrong = no_class & ~hidden & (reference != self.ignore_index)
            _refuse("reference", reference, wrong, f"0..{N - 1} and {self.ignore_index} (ignored)")
            cell[no_class] = N
        cell *= N
        cell += prediction.astype(np.intp, copy=False)
        return np.bincount(cell.ravel(), minlength=(N + 1) * N)[: N * N].reshape(N, N)

    def scores(self) -> dict:
        """Fractions `hIoU mIoU PA MA S-mIoU U-mIoU U-PA U-MA`, and `per_class: {name: {iou, recall, seen, pixels,
        given_to}}`, where `given_to` has the other classes that pixels of the class were given to, and the share of
        the pixels of each, the largest first; shares below half a percent are left out.

        What is undefined is None and leaves the means: the IoU of a class absent from truth and prediction, the
        recall of a class absent from the truth, a mean over nothing. hIoU is always a number.
        """
        correct, truth, predicted = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        with np.errstate(invalid="ignore"):  # 0/0 is NaN: undefined
            iou = correct / (truth + predicted - correct)
            recall = correct / truth
        seen, unseen = self.seen_ids, self.unseen_ids
        s_miou, u_miou = _mean(iou[seen]), _mean(iou[unseen])
        return {
            "hIoU": 2 * s_miou * u_miou / (s_miou + u_miou) if s_miou and u_miou else 0.0,
            "mIoU": _mean(iou),
            "PA": _fraction(correct, truth),
            "MA": _mean(recall),
            "S-mIoU": s_miou,
            "U-mIoU": u_miou,
            "U-PA": _fraction(correct[unseen], truth[unseen]),
            "U-MA": _mean(recall[unseen]),
            "per_class": {
                name: {
                    "iou": _mean(iou[[i]]),
                    "recall": _mean(recall[[i]]),
                    "seen": i in seen,
                    "pixels": int(truth[i]),
                    "given_to": self._given_to(i),
                }
                for i, name in enumerate(self.label_names)
            },
        }

    def _given_to(self, label: int) -> dict[str, float]:
        missed = self.counts[label] / max(1, self.counts[label].sum())
        missed[label] = 0
        order = np.argsort(-missed, kind="stable")
        return {self.label_names[i]: round(float(missed[i]), 4) for i in order if missed[i] >= 0.005}


def _whole(name: str, numbers) -> list[int]:
    try:
        return [operator.index(number) for number in numbers]
    except TypeError:
        raise ValueError(f"{name}: {numbers!r} is no list of whole numbers"[:200]) from None


def _integer_array(what: str, values) -> np.ndarray:
    if hasattr(values, "cpu"):  # a tensor, wherever it lies
        values = values.cpu()
    masked = isinstance(values, np.ma.MaskedArray)
    if isinstance(values, list | tuple):
        masked = any(isinstance(row, np.ma.MaskedArray) for row in values)
    array = np.ma.array(values) if masked else np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what} of type {array.dtype}, expected integers (logits? take their argmax first)")
    return array


def _refuse(what: str, labels: np.ndarray, wrong: np.ndarray, allowed: str) -> None:
    if wrong.any():
        value = labels[wrong][0]
        raise ValueError(f"{what} holds {value}, which is no class: allowed are {allowed}")


def _mean(values: np.ndarray) -> float | None:
    """The mean of what is defined; None where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _fraction(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part.sum() / whole.sum()) if whole.sum() else None
