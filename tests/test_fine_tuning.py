"""A saved model learns other labels by transformers' own `Trainer`, and `evaluate` scores the model: an example."""

import evaluate
import numpy as np
import torch
from test_modeling import build
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, Trainer, TrainingArguments

from cagnet_hf import METRIC_PATH, CaGNetImageProcessor


class Halves(torch.utils.data.Dataset):
    """Pictures whose left half is red sand and whose right half is blue sea."""

    def __init__(self, processor, number: int):
        self.processor, self.number = processor, number

    def __len__(self):
        return self.number

    def __getitem__(self, row):
        noise = np.random.default_rng(row).integers(0, 40, (32, 32, 3))
        image = np.full((32, 32, 3), (200, 20, 20)) - noise // 4
        image[:, 16:] = np.array((20, 20, 200)) + noise[:, 16:]
        label_map = np.zeros((32, 32), np.uint8)
        label_map[:, 16:], label_map[0] = 1, 255
        inputs = self.processor(image.astype(np.uint8), label_map, return_tensors="pt")
        return {name: values[0] for name, values in inputs.items()}


def test_a_saved_model_learns_other_labels(tmp_path):
    build(calibration=0.3).save_pretrained(tmp_path / "model")
    CaGNetImageProcessor(size=32, image_std=60.0).save_pretrained(tmp_path / "model")

    names = {0: "sand", 1: "sea"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path / "model",
        id2label=names,
        label2id={name: i for i, name in names.items()},
        calibration=0.3,
        ignore_mismatched_sizes=True,
    )
    metric = evaluate.load(METRIC_PATH)

    def compute_metrics(prediction):
        logits = torch.from_numpy(prediction.predictions)
        maps = torch.nn.functional.interpolate(logits, prediction.label_ids.shape[-2:], mode="bilinear").argmax(1)
        scores = metric.compute(
            predictions=maps, references=prediction.label_ids, num_labels=len(names), ignore_index=255
        )
        return {"mIoU": scores["mIoU"]}

    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=30,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Halves(processor, 8),
        eval_dataset=Halves(processor, 4),
        compute_metrics=compute_metrics,
    )
    trainer.train()
    assert trainer.evaluate()["eval_mIoU"] > 0.6  # a guess has 0.25
    trainer.save_model(str(tmp_path / "tuned"))
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "tuned")
    assert again.config.id2label == names
    assert (again.config.seen_ids, again.config.unseen_ids) == ([0, 1], [])
