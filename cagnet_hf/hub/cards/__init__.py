"""Model cards, filled from what was measured and recorded; the texts are the Jinja templates in `templates`.

They lie in the package, not in `model_cards`, because training writes a card wherever the package is installed.
"""

from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...data.names import markdown, printable
from ...evaluation import shown_iou

MODEL_ID = "DIR_OR_ID"  # what a card calls its model until it is pushed

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # Markdown
)
_templates.filters["text"] = markdown
_templates.filters["code"] = lambda text: printable(text).replace("`", "'")
_templates.filters["fraction"] = lambda value: "–" if value is None else f"{value:.3f}"
_templates.filters["iou"] = shown_iou


def render(template: str, metadata: ModelCardData, **values) -> str:
    """The card of a template; `metadata` becomes its YAML header."""
    values = {"model_id": MODEL_ID, "metadata": metadata.to_yaml().strip()} | values
    return _templates.get_template(f"{template}.md").render(values)


def card_metadata(**fields) -> ModelCardData:
    """The header of a card; what every card says, unless `fields` say otherwise."""
    fields = {"library_name": "transformers", "pipeline_tag": "image-segmentation"} | fields
    fields["tags"] = ["zero-shot-segmentation", "cagnet", *fields.get("tags", [])]
    return ModelCardData(**fields)
