"""The scores of generalised zero-shot semantic segmentation, over seen and unseen classes together, as a metric.

Mean IoU, mean recall and pixel accuracy over all classes and over the unseen ones, and hIoU, the harmonic mean of
S-mIoU and U-mIoU (Xian et al., "Semantic Projection Network for Zero- and Few-Label Semantic Segmentation", CVPR 2019;
Gu et al., "Context-aware Feature Generation for Zero-shot Semantic Segmentation", ACM Multimedia 2020).

Label maps are counted into one confusion matrix the moment they are added; no map is kept or cached on disk. This
file is the only one that imports `evaluate`, which copies it and the module beside it.
"""

import datasets
import evaluate
import numpy as np

from .confusion_matrix import ConfusionMatrix

_LABEL_SET = {"seen_ids", "unseen_ids", "id2label", "ignore_index"}
# Options of `mean_iou` that this metric has not: callers give them at their defaults, too, which ask for nothing.
_OF_MEAN_IOU = {"reduce_labels", "nan_to_num", "label_map"}
_CITATION = """
@inproceedings{Xian2019SPNet,
  title={Semantic Projection Network for Zero- and Few-Label Semantic Segmentation},
  author={Xian, Yongqin and Choudhury, Subhabrata and He, Yang and Schiele, Bernt and Akata, Zeynep},
  booktitle={CVPR}, year={2019}
}
"""


class ZeroShotSegmentation(evaluate.Metric):
    """Metric over a label set that is split into seen and unseen classes.

    Loaded with a label set, it counts what is added until `compute`; several processes share the work by summing
    their matrices: `total = accelerator.reduce(torch.from_numpy(metric.confusion_matrix), "sum")`, then
    `metric.reset()` and `metric.merge(total)`. Loaded without, `compute` takes the maps and the label set at once.

    Args:
        predictions: Integer label maps: one map `(H, W)`, a batch `(B, H, W)` or a list of maps of any sizes, as
            arrays, tensors or nested lists. Every value is a class index, 0 <= value < num_labels.
        references: The true label maps, of the same shapes. `ignore_index` marks pixels that are not scored, as does
            the mask of a masked array.
        num_labels: Number of classes.
        seen_ids, unseen_ids: Class indices; all classes are seen where none is named.
        id2label: Class names by index; the index itself where not given.
        ignore_index: Value of reference pixels that are not scored (default: 255).

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
        >>> evaluate.load(METRIC_PATH).compute(predictions=[[[0, 1]]], references=[[[0, 1]]], num_labels=2)["mIoU"]
        1.0
    """

    def __init__(self, *args, num_labels: int | None = None, **options):
        label_set = {key: options.pop(key) for key in _LABEL_SET & options.keys()}
        super().__init__(*args, **options)
        if self.num_process > 1:
            raise ValueError(f"num_process={self.num_process}: load the metric plainly and sum with merge()")
        self._matrix = None if num_labels is None and not label_set else _matrix_of(num_labels, label_set)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=self.__doc__,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    @property
    def matrix(self) -> ConfusionMatrix:
        """What was counted so far."""
        if self._matrix is None:
            raise ValueError("the metric was loaded without num_labels: give compute() maps and num_labels at once")
        return self._matrix

    @property
    def confusion_matrix(self) -> np.ndarray:
        """Pixel counts, int64 `(num_labels, num_labels)`: rows are the truth, columns the prediction."""
        return self.matrix.counts.copy()

    def reset(self) -> None:
        """Forget every pixel counted so far."""
        self.matrix.reset()

    def merge(self, matrix) -> None:
        """Add the confusion matrix `(num_labels, num_labels)` of another process."""
        self.matrix.merge(matrix)

    def add(self, *, prediction=None, reference=None) -> None:
        """Count one label map `(H, W)`."""
        self.matrix.add([prediction], [reference])

    def add_batch(self, *, predictions=None, references=None) -> None:
        """Count a batch of label maps; nothing is counted if any of them is refused."""
        self.matrix.add(predictions, references)

    def compute(self, *, predictions=None, references=None, num_labels: int | None = None, **label_set) -> dict:
        """Score everything added so far (and the maps given here), then start afresh.

        With a label set, score the maps given here over its classes; what was added before stays as it is.
        """
        if num_labels is not None or label_set:
            matrix = _matrix_of(num_labels, label_set)
            matrix.add(predictions, references)
            return matrix.scores()
        if predictions is not None or references is not None:
            self.matrix.add(predictions, references)
        scores = self.matrix.scores()
        self.reset()
        return scores


def _matrix_of(num_labels: int | None, label_set: dict) -> ConfusionMatrix:
    label_set = {name: value for name, value in label_set.items() if value or name not in _OF_MEAN_IOU}
    unknown = sorted(label_set.keys() - _LABEL_SET)
    if unknown:
        known = ", ".join(sorted(_LABEL_SET))
        raise ValueError(f"{', '.join(unknown)}: no option of this metric, which takes num_labels, {known}")
    if num_labels is None:
        raise ValueError(f"{', '.join(sorted(label_set))} without num_labels: give the number of classes, too")
    return ConfusionMatrix(num_labels, **label_set)
