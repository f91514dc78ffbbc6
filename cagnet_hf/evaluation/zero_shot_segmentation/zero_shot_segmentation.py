"""The scores of generalised zero-shot semantic segmentation as an `evaluate` metric.

Label maps are counted into one confusion matrix the moment they are added; no map is kept or cached on disk.
The file stands alone, so that `evaluate.load` can copy it: it imports nothing of the package.
"""

from collections.abc import Iterable, Mapping

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Scores label maps over seen and unseen classes together ("generalised" zero-shot segmentation): mean IoU, mean
recall and pixel accuracy over all classes and over the unseen ones, and hIoU, the harmonic mean of S-mIoU and
U-mIoU.
"""

_CITATION = """
@inproceedings{Xian2019SPNet,
  title={Semantic Projection Network for Zero- and Few-Label Semantic Segmentation},
  author={Xian, Yongqin and Choudhury, Subhabrata and He, Yang and Schiele, Bernt and Akata, Zeynep},
  booktitle={CVPR}, year={2019}
}
@inproceedings{Gu2020CaGNet,
  title={Context-aware Feature Generation for Zero-shot Semantic Segmentation},
  author={Gu, Zhangxuan and Zhou, Siyuan and Niu, Li and Zhao, Zihan and Zhang, Liqing},
  booktitle={ACM Multimedia}, year={2020}
}
"""

_INPUTS = """
Args:
    predictions: Integer label maps: one map `(H, W)`, a batch `(B, H, W)` or a list of maps of any sizes, as
        arrays, tensors or nested lists. Every value is a class index, 0 <= value < num_labels.
    references: The true label maps, of the same shapes. `ignore_index` marks pixels that are not scored.

Returns:
    Fractions `hIoU mIoU PA MA S-mIoU U-mIoU U-PA U-MA`, and `per_class: {name: {iou, recall, seen, pixels}}`
    with the number of true pixels. What is undefined is None and leaves the means: the IoU of a class absent
    from truth and prediction, the recall of a class absent from the truth, a mean over nothing. hIoU is
    always a number: 0 unless S-mIoU and U-mIoU are both positive.

Example:
    >>> metric = evaluate.load(METRIC_PATH, num_labels=3, seen_ids=[0, 1], unseen_ids=[2])
    >>> metric.add_batch(predictions=[[[0, 1], [2, 2]]], references=[[[0, 1], [2, 255]]])
    >>> metric.compute()["hIoU"]
    1.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ZeroShotSegmentation(evaluate.Metric):
    """Metric over a label set that is split into seen and unseen classes.

    Several processes share the work by summing their matrices:
    `total = accelerator.reduce(torch.from_numpy(metric.confusion_matrix), "sum")`, then `metric.reset()` and
    `metric.merge(total)`.

    Args:
        num_labels: Number of classes.
        seen_ids, unseen_ids: Class indices; together they name every class once.
        id2label: Class names by index; the index itself where not given.
        ignore_index: Value of reference pixels that are not scored.
    """

    def __init__(
        self,
        *args,
        num_labels: int,
        seen_ids: Iterable[int],
        unseen_ids: Iterable[int],
        id2label: Mapping[int | str, str] | None = None,
        ignore_index: int = 255,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if self.num_process > 1:
            raise ValueError(f"num_process={self.num_process}: load the metric plainly and sum with merge()")
        self.num_labels = num_labels
        self.seen_ids = [int(i) for i in seen_ids]
        self.unseen_ids = [int(i) for i in unseen_ids]
        self.ignore_index = ignore_index
        # A JSON file turns the indices into strings.
        names = {int(i): str(name) for i, name in (id2label or {}).items()}
        self.label_names = [names.get(i, str(i)) for i in range(num_labels)]
        self._check_label_set()
        self.reset()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _check_label_set(self) -> None:
        if sorted(self.seen_ids + self.unseen_ids) != list(range(self.num_labels)):
            raise ValueError(
                f"seen_ids {self.seen_ids} and unseen_ids {self.unseen_ids} "
                f"must name each of the {self.num_labels} classes 0..{self.num_labels - 1} exactly once"
            )
        if 0 <= self.ignore_index < self.num_labels:
            raise ValueError(f"ignore_index {self.ignore_index} is a class; choose a value that is none")
        twice = sorted({name for name in self.label_names if self.label_names.count(name) > 1})
        if twice:
            raise ValueError(f"label name {twice[0]!r} belongs to several classes; make the names distinct")

    @property
    def confusion_matrix(self) -> np.ndarray:
        """Pixel counts, int64 `(num_labels, num_labels)`: rows are the truth, columns the prediction."""
        return self._matrix.copy()

    def reset(self) -> None:
        """Forget every pixel counted so far."""
        self._matrix = np.zeros((self.num_labels, self.num_labels), np.int64)

    def merge(self, matrix) -> None:
        """Add the confusion matrix `(num_labels, num_labels)` of another process."""
        matrix = _integer_array("confusion matrix", matrix)
        if matrix.shape != self._matrix.shape:
            raise ValueError(f"confusion matrix of shape {matrix.shape}, expected {self._matrix.shape}")
        if matrix.min(initial=0) < 0:
            raise ValueError(f"confusion matrix holds the negative count {matrix.min()}")
        self._matrix += matrix

    def add(self, *, prediction=None, reference=None) -> None:
        """Count one label map `(H, W)`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions=None, references=None) -> None:
        """Count a batch of label maps; nothing is counted if any of them is refused.

        Raises:
            ValueError: Predictions and references differ in number or shape, or a value is no class.
            TypeError: The maps are not of integers.
        """
        pairs = _pairs(predictions, references)
        self._matrix += sum(self._count(prediction, reference) for prediction, reference in pairs)

    def compute(self, *, predictions=None, references=None) -> dict:
        """Score everything added so far (and the maps given here), then start afresh."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = self._scores()
        self.reset()
        return scores

    def _count(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """The confusion matrix of one pair of equal shapes."""
        N = self.num_labels
        # Refused at ignored pixels, too: a model that predicts what is no class is broken.
        if prediction.min(initial=0) < 0 or prediction.max(initial=0) >= N:
            _refuse("prediction", prediction, (prediction < 0) | (prediction >= N), f"0..{N - 1}")
        # Ignored pixels fall into a row of their own, cut off below: cheaper than filtering them out.
        cell = reference.astype(np.intp)
        no_class = (reference < 0) | (reference >= N)
        if no_class.any():
            wrong = no_class & (reference != self.ignore_index)
            _refuse("reference", reference, wrong, f"0..{N - 1} and {self.ignore_index} (ignored)")
            cell[no_class] = N
        cell *= N
        cell += prediction.astype(np.intp, copy=False)
        return np.bincount(cell.ravel(), minlength=(N + 1) * N)[: N * N].reshape(N, N)

    def _scores(self) -> dict:
        correct, truth, predicted = self._matrix.diagonal(), self._matrix.sum(1), self._matrix.sum(0)
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
                    "iou": _defined(iou[i]),
                    "recall": _defined(recall[i]),
                    "seen": i in seen,
                    "pixels": int(truth[i]),
                }
                for i, name in enumerate(self.label_names)
            },
        }


def _pairs(predictions, references) -> list[tuple[np.ndarray, np.ndarray]]:
    """Arrays (prediction, reference) of equal shapes: a single pair, or one per map where a list is given."""
    if predictions is None or references is None:
        raise ValueError("the metric needs both predictions and references")
    if not isinstance(predictions, list | tuple) and not isinstance(references, list | tuple):
        predictions, references = [predictions], [references]
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references")
    pairs = []
    for prediction, reference in zip(predictions, references, strict=True):
        pair = _integer_array("prediction", prediction), _integer_array("reference", reference)
        if pair[0].shape != pair[1].shape:
            raise ValueError(f"prediction of shape {pair[0].shape}, but reference of shape {pair[1].shape}")
        pairs.append(pair)
    return pairs


def _integer_array(what: str, values) -> np.ndarray:
    if hasattr(values, "cpu"):  # a tensor, wherever it lies
        values = values.cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what} of type {array.dtype}, expected integers (logits? take their argmax first)")
    return array


def _refuse(what: str, labels: np.ndarray, wrong: np.ndarray, allowed: str) -> None:
    if wrong.any():
        value = labels[wrong][0]
        raise ValueError(f"{what} holds {value}, which is no class: allowed are {allowed}")


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _fraction(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part.sum() / whole.sum()) if whole.sum() else None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
