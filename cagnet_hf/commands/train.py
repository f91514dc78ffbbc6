"""`cagnet-hf train`."""

from pathlib import Path

from ..methods import LOSSES


def train(
    overrides: list[str] = (),
    *,
    recipe: str,
    output_dir: Path,
    resume: bool = False,
    push_to_hub: str | None = None,
    deterministic: bool = False,
) -> None:
    """Train a zero-shot segmentation model from a recipe.

    A recipe says what is trained, on which data and how long; any of its keys can be changed behind the options. The
    benchmark `scenes` draws its own images, so `--recipe scenes` needs no data. A run that was interrupted goes on
    with --resume.

    LOSSES

    Args:
        overrides (key=value): Recipe keys to change, dotted: stages.finetune.iterations=300.
        recipe: A name such as scenes or pascal_voc_edge/cagnet_pi, or a YAML file.
        output_dir: The folder that gets model/, metrics.json, figures/ and checkpoints/.
        resume: Go on from the newest checkpoint in --output_dir.
        push_to_hub (ID): After training, push the model to this repository of the Hub, which is made before training
            if need be.
        deterministic: Use deterministic algorithms only: the same command on the same machine gives the same bits.

    Examples:
        cagnet-hf train --recipe scenes --output_dir outputs/scenes
        cagnet-hf train --recipe pascal_voc_edge/cagnet_pi --output_dir outputs/voc dataset=data/pascal_voc
        accelerate launch --num_processes 4 -m cagnet_hf train --recipe scenes --output_dir outputs/scenes
    """
    from ..apps import training

    keys = [*overrides, *(["deterministic=true"] if deterministic else [])]
    training.train(recipe, output_dir, *keys, resume=resume, push_to_hub=push_to_hub)


train.__doc__ = train.__doc__.replace(
    "LOSSES",
    "The losses that figures/losses.png draws, of which a method has some:\n"
    + "".join(f"        {name}: {meaning}\n" for name, meaning in LOSSES.items()),
)
