"""`cagnet-hf push_to_hub`."""

from logging import getLogger
from pathlib import Path

logger = getLogger(__name__)


def push_to_hub(*, model: Path, repo_id: str, private: bool = False, license: str | None = None) -> None:
    """Publish a model on the Hugging Face Hub.

    The model is one that was trained, converted or edited. One commit holds weights, code, image processor and model
    card. For a model that `cagnet-hf train` wrote, the card is made from the run's metrics.json, and metrics, recipe
    and figures are pushed, too. The token is that of `hf auth login`, or HF_TOKEN.

    Args:
        model (DIR): The model folder: OUT/model.
        repo_id (ID): owner/name, or name for a model of your own.
        private: Make the repository private.
        license (ID): The licence of the weights, such as apache-2.0; a model that was made from a checkpoint of others
            needs it.

    Examples:
        cagnet-hf push_to_hub --model outputs/scenes/model --repo_id owner/cagnet-scenes
    """
    from ..hub.models import push_model

    commit = push_model(model, repo_id, private=private, license=license)
    logger.info("Pushed %s", commit.commit_url)
