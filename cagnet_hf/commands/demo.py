"""`cagnet-hf demo`."""


def demo(
    *, model: str, class_embeddings: str | None = None, encoder: str | None = None, port: int | None = None
) -> None:
    """Open a web page to play with a trained model.

    Drop an image and see its classes, click for scores, move the calibration, type a new class and see it segmented.
    The page is served on this machine and loads nothing from elsewhere. It needs `pip install 'cagnet-hf[demo]'`.

    Args:
        model: A model folder, a Hub id, or ID@REVISION.
        class_embeddings (TABLE): Where vectors of typed names come from: bundled, or tables of `cagnet-hf
            prepare_embeddings` separated by commas, from the source of the model's own vectors (default: what the
            model was trained with).
        encoder (DIR_OR_ID): Where the text encoder of the model's own embeddings lies.
        port: Where to listen (default: the first free one from 7860).

    Examples:
        cagnet-hf demo --model outputs/scenes/model
    """
    from ..apps.demo import serve

    serve(model, class_embeddings=class_embeddings, encoder=encoder, port=port)
