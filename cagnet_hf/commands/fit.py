"""`cagnet-hf fit`."""

from pathlib import Path


def fit(
    folder: Path,
    *,
    output: Path,
    method: str = "prototypes",
    unseen: list[str] | None = None,
    ignored: list[str] | None = None,
    encoder: str | None = None,
    test_share: float = 0.2,
) -> None:
    """Make a model of your own photographs in minutes.

    FOLDER has images/, masks/ (PNG, named as their images) and classes.yaml. The command checks and prepares them,
    finds a vector for the name of every class, trains, scores the model on the photographs that are held out, and
    writes the model, figures and a page of plain sentences to --output. Classes that are unseen are learnt from
    their names alone. FOLDER may also have train/ and test/, each with images/ and masks/. A fit that was killed goes
    on with the same command.

    Args:
        folder (FOLDER): The photographs and masks.
        output: The folder to make.
        method: The row to train.
        unseen (NAME): The classes to learn from their names alone (default: as classes.yaml says).
        ignored (NAME): With --unseen: the classes that are neither learnt nor scored; all others are seen.
        encoder (DIR_OR_ID): Where the text encoder all-MiniLM-L6-v2 lies, for names that no bundled table holds
            (default: the package of the extra names, where it is installed).
        test_share: Share of the photographs to test on where FOLDER does not say which.

    Examples:
        cagnet-hf fit photos --output outputs/photos
        cagnet-hf fit photos --unseen cow cat --ignored void --output outputs/photos
    """
    from ..apps.fitting import fit as run

    run(
        folder,
        output,
        method=method,
        unseen=unseen,
        ignored=ignored,
        encoder=encoder,
        test_share=test_share,
    )
