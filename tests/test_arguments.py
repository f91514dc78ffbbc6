"""The command line that a function's signature and docstring make."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from cagnet_hf.commands.arguments import arguments_of, parser_of, parser_of_words


@dataclass(kw_only=True)
class Shared:
    """Shared options.

    Attributes:
        depth: How deep.
        name (NAME): What to call it.
    """

    depth: int
    name: str | None = None


def paint(
    colors: list[str],
    *,
    size: float = 0.5,
    output: Path,
    fast: bool = False,
    mode: Literal["wet", "dry"] = "wet",
    side: Literal[3, 5] | None = None,
    class_: list[str] = (),
    parts: Annotated[list[tuple[str, str]], ("brush", "knife")] = (),
) -> None:
    """Paint a picture.

    The picture is painted once,
    whatever the weather.

    It dries by 100 % over night.

    Args:
        colors (COLOR): The colours.
        size: How large
            it is.
        output: Where it hangs.
        fast: Hurry.
        mode: How to paint.
        side: Its side.
        class_ (NAME): What is seen.
        brush (FILE): A brush.
        knife (FILE): A knife.

    Examples:
        paint red --output wall
        paint blue --output wall --fast
    """


def place(item: Path, *, where: Shared, loud: bool = False) -> None:
    """Place it.

    Args:
        item: What to place.
        loud: Tell.
    """


def given(function, *words: str) -> dict:
    parsed = vars(parser_of(function, "test").parse_intermixed_args(words))
    assert parsed.pop("function") is function
    return arguments_of(function, parsed)


def test_a_function_is_called_with_what_was_given_alone():
    assert given(paint, "red", "--output", "wall") == {"colors": ["red"], "output": Path("wall")}


def test_arguments_have_the_types_of_the_signature():
    options = ["--size", "2", "--fast", "--mode", "dry", "--side", "5", "--output", "wall"]
    expected = {"size": 2.0, "fast": True, "mode": "dry", "side": 5, "output": Path("wall"), "colors": ["red"]}
    assert given(paint, "red", *options) == expected


def test_options_may_stand_between_positional_arguments():
    assert given(paint, "red", "--output", "wall", "blue")["colors"] == ["red", "blue"]


def test_a_list_takes_several_values_and_may_be_repeated():
    words = ["--class", "cat", "dog", "--output", "wall", "--class", "traffic cone"]
    assert given(paint, "red", *words)["class_"] == ["cat", "dog", "traffic cone"]


def test_options_of_one_parameter_keep_their_order():
    words = ["--knife", "a", "--brush", "b", "--knife", "c"]
    assert given(paint, "red", "--output", "wall", *words)["parts"] == [("knife", "a"), ("brush", "b"), ("knife", "c")]


def test_the_fields_of_a_dataclass_are_options():
    assert given(place, "--depth", "3", "box") == {"item": Path("box"), "where": Shared(depth=3)}


@pytest.mark.parametrize(
    ("function", "words", "reason"),
    [
        (paint, ["red"], "the following arguments are required: --output"),
        (paint, ["--output", "wall"], "the following arguments are required: COLOR"),
        (paint, ["red", "--output", "wall", "--mode", "damp"], "invalid choice: 'damp'"),
        (paint, ["red", "--output", "wall", "--side", "4"], "invalid choice: 4"),
        (paint, ["red", "--output", "wall", "--size", "much"], "argument --size: invalid float value: 'much'"),
        (place, ["box"], "the following arguments are required: --depth"),
    ],
)
def test_what_does_not_fit_is_refused(function, words, reason, capsys):
    with pytest.raises(SystemExit) as end:
        given(function, *words)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_the_help_is_the_docstring(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = parser_of(paint, "test paint").format_help()
    assert "Paint a picture.\n\nThe picture is painted once, whatever the weather.\n\nIt dries by 100 % over" in text
    assert "--size SIZE           How large it is (default: 0.5)\n" in text
    assert "--class NAME [NAME ...]\n" in text
    assert "--mode {wet,dry}      How to paint (default: wet)\n" in text
    assert text.endswith("examples:\n    paint red --output wall\n    paint blue --output wall --fast\n")


def test_a_word_chooses_the_function(capsys):
    parser = parser_of_words([paint, place], "test", "Two words.")
    parsed = vars(parser.parse_args(["place", "box", "--depth", "1", "--loud"]))
    function = parsed.pop("function")
    assert function is place
    assert arguments_of(function, parsed) == {"item": Path("box"), "where": Shared(depth=1), "loud": True}
    with pytest.raises(SystemExit):
        parser.parse_args(["palce"])
    assert "invalid choice: 'palce' (choose from" in capsys.readouterr().err
