"""`cagnet-hf recipes`."""

from logging import getLogger

logger = getLogger(__name__)


def recipes(names: list[str] = ()) -> None:
    """List the recipes, or the keys of one with what they mean.

    Without a name, every recipe is listed with what the recipe is for, and with the scores and minutes that were
    measured. With a name, the keys of the recipe are listed as `cagnet-hf train` takes them, key=value. A key of the
    model without a value is left as the model has it.

    Args:
        names (NAME): Recipes whose keys are listed, such as scenes or pascal_voc_edge/spnet; or YAML files.

    Examples:
        cagnet-hf recipes
        cagnet-hf recipes scenes/spnet
    """
    from ..apps.recipe_pages import recipe_list, recipe_page

    if not names:
        logger.info(recipe_list())
        return
    from ..model.configuration_cagnet import CaGNetConfig
    from .arguments import argument_texts

    fields = {name: text.split(". ")[0] for name, (_, text) in argument_texts(CaGNetConfig).items()}
    for name in names:
        logger.info(recipe_page(name, fields))
