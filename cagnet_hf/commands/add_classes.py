"""`cagnet-hf add_classes`."""

import json
import time
from logging import getLogger
from pathlib import Path

logger = getLogger(__name__)


def add_classes(
    *,
    model: str,
    class_: list[str] = (),
    remove: list[str] = (),
    rename: list[str] = (),
    class_embeddings: str | None = None,
    encoder: str | None = None,
    dataset_ids: list[int] = (),
    bias: float = 0.0,
    output: Path,
    dataset: str | None = None,
    scores: Path | None = None,
    seed: int = 0,
) -> None:
    """Add classes to a trained model by name, or remove some.

    No image is needed. New classes are unseen ones: the model's generator makes features of them from vectors of their
    names, and the classifier learns these within seconds. Classes can be renamed, too.

    Args:
        model: A model folder, a Hub id, or ID@REVISION.
        class_ (NAME): A class to add; may be repeated.
        remove (NAME): A class to remove; may be repeated.
        rename (OLD=NEW): A class to rename; may be repeated.
        class_embeddings (TABLE): bundled, or tables of `cagnet-hf prepare_embeddings` separated by commas, from the
            source of the model's own embeddings and with one of its own classes in them (default: what the model was
            trained with).
        encoder (DIR_OR_ID): Where the text encoder of the model's own embeddings lies.
        dataset_ids (ID): Ids of the new classes in masks (default: the next free ones).
        bias: Added to the scores of the new classes: above 0 they win more pixels, right and wrong ones.
        output: The folder to write the model to.
        dataset: A prepared folder, a Hub id, or scenes:SEED: score the model before and after on its test split.
        scores: The JSON file for these scores.
        seed: The seed of the features that the generator makes.

    Examples:
        cagnet-hf add_classes --model outputs/voc/model --class zebra --class "traffic cone" --output outputs/voc_zebra
        cagnet-hf add_classes --model outputs/voc/model --remove sofa --rename tv=television --output outputs/voc_19
    """
    from ..data.names import printable
    from ..data.sources import open_dataset
    from ..evaluation import shown_iou
    from ..evaluation.new_classes import score_after, score_before
    from ..files import MODEL_FOLDER, check_output, made_by, real_path, write_text_whole
    from ..hub.cards.edited import edited_model_card
    from ..model.new_classes_cagnet import check_new_names
    from ..vectors.new_classes import embed_new_classes
    from ..weights.folders import load_config, load_model, save_model_folder

    new, renamed = class_, _renamings(rename)
    if not (new or remove or renamed):
        raise ValueError("nothing to do: give --class, --remove or --rename")
    if dataset_ids and len(dataset_ids) != len(new):
        raise ValueError(f"{len(dataset_ids)} --dataset_ids for {len(new)} --class: give one for each")
    if output.exists():
        raise FileExistsError(f"--output {output} exists; choose another")
    if bool(dataset) != bool(scores) or (dataset and not new):
        raise ValueError("--dataset and --scores go together, with --class")
    check_output(output, MODEL_FOLDER, inputs=(model,), overwrite=False)
    if scores:
        if real_path(output) in real_path(scores).parents:
            raise ValueError(f"--scores {scores} lies in --output {output}, which is to be a model folder alone")
        check_output(scores, made_by("add_classes"))
    images = open_dataset(dataset, "test") if dataset else None
    check_new_names(load_config(model), new, removed=remove, renamed=renamed)
    network, processor = load_model(model)
    if remove:
        network.remove_classes(remove)
    if renamed:
        network.rename_classes(renamed)
    if new:
        embeddings = embed_new_classes(network, new, class_embeddings, encoder=encoder)
        before = score_before(network, processor, images) if dataset else None
        started = time.monotonic()
        network.add_classes(new, embeddings, dataset_ids=dataset_ids or None, bias=bias, seed=seed)
        seconds = time.monotonic() - started
        logger.info("Learnt %s in %.1f s", ", ".join(new), seconds)
        if dataset:
            found = score_after(network, processor, images, before) | {"seconds": round(seconds, 2)}
            write_text_whole(scores, json.dumps({"made_by": made_by("add_classes")} | found, indent=1) + "\n")
            logger.info("mIoU of the old classes %(before).4f before, %(after).4f after", found["old_mIoU"])
            for name, entry in found["new"].items():
                logger.info("%s: IoU %s", name, shown_iou(entry, 4))
    save_model_folder(network, processor, output, edited_model_card(network.config, model, new))
    logger.info("Wrote %s: %s", output, ", ".join(map(printable, network.config.id2label.values())))


def _renamings(pairs: list[str]) -> dict[str, str]:
    wrong = next((pair for pair in pairs if not all(pair.partition("="))), None)
    if wrong is not None:
        raise ValueError(f"--rename {wrong}: write OLD=NEW")
    return dict(pair.split("=", 1) for pair in pairs)
