"""Names that anybody may have chosen: in cards, on terminals and in figures they are names and nothing else."""

import logging

import pytest
from miniature_archives import write_jpeg

from cagnet_hf.apps.charts import per_class_bars
from cagnet_hf.apps.pictures import class_palette, legend
from cagnet_hf.cli import messages
from cagnet_hf.data.benchmarks import parse_class_table
from cagnet_hf.data.names import has_hidden, markdown, printable
from cagnet_hf.hub.cards.edited import edited_model_card
from cagnet_hf.model.configuration_cagnet import CaGNetConfig
from cagnet_hf.weights.folders import load_model

HIDDEN = {
    "a line break": "cow\nsheep",
    "a carriage return": "cow\rsheep",
    "a tab": "cow\tsheep",
    "a null": "cow\0",
    "an escape": "\x1b[31mcow",
    "a bell": "cow\x07",
    "a delete": "cow\x7f",
    "a C1 control": "cow\x9b31m",
    "a turned direction": "cow\u202ewoc",
    "an isolate": "cow\u2066woc",
    "a zero width": "co\u200bw",
    "a line separator": "cow\u2028sheep",
    "a byte order mark": "\ufeffcow",
}
every_hidden = pytest.mark.parametrize("name", HIDDEN.values(), ids=HIDDEN)
PLAIN = ["cow", "wall-wood", "Kuh, schön", "牛", "traffic cone (red)", "a_b", "🐄"]
MARKUP = [
    "a|b",
    "<script>alert(1)</script>",
    "[x](http://host)",
    "**bold**",
    "`code`",
    "![x](y)",
    "a\n# title",
    "&lt;",
]


@every_hidden
def test_hidden_characters_are_shown_as_escapes(name):
    assert has_hidden(name)
    shown = printable(name)
    assert not has_hidden(shown)
    assert "\\" in shown


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_stays(name):
    assert not has_hidden(name)
    assert printable(name) == markdown(name) == name


def test_lines_are_kept_where_they_are_asked_for():
    assert printable("a\tb\nc\x1b", lines=True) == "a\tb\nc\\x1b"


@pytest.mark.parametrize("name", MARKUP)
def test_markup_is_shown_as_it_is_written(name):
    shown = markdown(name)
    assert "\n" not in shown
    assert "<" not in shown
    assert not any(part in shown.replace("\\\\", "") for part in (" |", "](h", "](y")) or "\\" in shown
    for character in "|*`[]":
        assert all(shown[place - 1] == "\\" for place, found in enumerate(shown) if found == character)


@every_hidden
@pytest.mark.parametrize("key", ["class", "table"])
def test_a_class_table_with_hidden_characters_is_refused(name, key):
    names = {"class": ("farm", name), "table": (name, "cow")}[key]
    quoted = [repr_yaml(text) for text in names]
    text = (
        f"name: {quoted[0]}\nclasses: [{{id: 1, name: {quoted[1]}}}, {{id: 2, name: pig}}]\nseen: [1]\nunseen: [pig]\n"
    )
    with pytest.raises(ValueError, match="control character") as refused:
        parse_class_table(text, "classes.yaml", "farm")
    assert not has_hidden(str(refused.value))


def repr_yaml(text: str) -> str:
    return '"' + "".join(f"\\U{ord(character):08X}" for character in text) + '"'


@pytest.mark.parametrize("name", MARKUP + list(HIDDEN.values()))
def test_a_card_s_table_has_one_line_for_each_class(name):
    fields = {"id2label": {0: "pig", 1: name}, "seen_ids": [0], "unseen_ids": [1], "dataset_ids": [1, 2]}
    card = edited_model_card(CaGNetConfig(**fields), "models/tiny", [name])
    rows = [line for line in card.splitlines() if line.startswith(("| 0 |", "| 1 |"))]
    assert len(rows) == 2
    assert "<script" not in card
    assert not has_hidden(rows[1])
    assert rows[1].replace("\\|", "").count("|") == 4


@pytest.mark.parametrize("name", ["$", "$x^$", r"$\frac{$", "a\nb", "\x1b[31m", "\0", *MARKUP])
def test_a_name_is_no_formula_in_a_chart_and_breaks_no_legend(name, tmp_path, charts):
    entry = {"iou": 0.5, "seen": True, "pixels": 1}
    metrics = {"per_class": {name: entry, "pig": entry | {"seen": False}}, "S-mIoU": 0.5, "U-mIoU": 0.5}
    per_class_bars(metrics, tmp_path / "bars.png", title=name)
    assert legend([name, "pig"], class_palette(2), [0], [1]).height < 200


@every_hidden
def test_a_terminal_gets_no_control_characters_but_ends_of_lines(name, capsys):
    with messages():
        logging.getLogger("cagnet_hf.tests").info("Wrote %s", name)
    printed = capsys.readouterr().out.replace("\n", "").replace("\t", "")
    assert not has_hidden(printed)


def test_a_model_with_hostile_names_predicts_and_prints_nothing_raw(trained_run, tmp_path, load_script, capsys):
    model, processor = load_model(str(trained_run / "model"))
    names = list(model.config.id2label.values())
    model.rename_classes({names[0]: "\x1b[31mred|<b>", names[1]: "$\\frac{"})
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_jpeg(tmp_path / "photo.jpg")
    argv = ["--model", str(tmp_path / "model"), str(tmp_path / "photo.jpg"), "--output", str(tmp_path / "out")]
    assert load_script("predict").main(argv) == 0
    capsys.readouterr()
    argv = ["--model", str(tmp_path / "model"), "--rename", f"{names[2]}=new", "--output", str(tmp_path / "edited")]
    assert load_script("add_classes").main(argv) == 0
    assert "\x1b" not in "".join(capsys.readouterr())
    card = (tmp_path / "edited" / "README.md").read_text()
    assert "\x1b" not in card
    assert "<b>" not in card
