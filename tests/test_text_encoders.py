"""Class names through text encoders: how a text becomes one vector."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoders import write_bert, write_clip
from transformers import AutoModel, AutoTokenizer, CLIPModel

from cagnet_hf.vectors.text_encoders import encode_names, encoder_files


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def text_tower(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def outputs(folder: Path, text: str):
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder)(**tokens)


def unit(vector: torch.Tensor) -> np.ndarray:
    return pytest.approx((vector / vector.norm()).numpy(), abs=1e-6)


def write_sentence_model(folder: Path, encoder: Path, kinds: list[str], **pooling) -> str:
    """The folder of a sentence-transformers model."""
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    AutoModel.from_pretrained(encoder).save_pretrained(folder)
    modules = [{"path": "" if i == 0 else f"{i}_{kind}", "type": f"models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **pooling}))
    return str(folder)


def test_a_name_is_the_mean_over_its_tokens(encoder):
    vector = encode_names(["polar bear"], str(encoder))[0]
    assert vector == unit(outputs(encoder, "polar bear").last_hidden_state[0].mean(0))


def test_a_name_has_the_same_vector_alone_and_beside_a_longer_one(encoder):
    together = encode_names(["cat", "polar_bear"], str(encoder))
    assert (together.shape, together.dtype) == ((2, 8), np.float32)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1)
    assert together[0] == pytest.approx(encode_names(["cat"], str(encoder))[0], abs=1e-6)


def test_the_spelling_of_a_name_does_not_change_its_vector(encoder):
    one, other = encode_names(["polar_bear", "Polar Bear"], str(encoder))
    assert (one == other).all()


def test_the_head_of_a_model_is_its_pooler(encoder):
    vector = encode_names(["cat"], str(encoder), pooling="head")[0]
    assert vector == unit(outputs(encoder, "cat").pooler_output[0])


def test_a_prompt_goes_around_the_name(encoder):
    vector = encode_names(["Cat"], str(encoder), prompt="polar {}.")[0]
    assert vector == unit(outputs(encoder, "polar cat.").last_hidden_state[0].mean(0))


@pytest.mark.parametrize("prompt", ["a photo", "{} and {}"])
def test_a_prompt_has_one_place_for_the_name(encoder, prompt):
    with pytest.raises(ValueError, match=r"write \{\} once"):
        encode_names(["cat"], str(encoder), prompt=prompt)


def test_a_text_tower_has_its_projection(text_tower):
    prompt = "a photo of a {}."
    names = ["cat", "polar bear", "dog"]
    vectors = encode_names(names, str(text_tower), prompt=prompt)
    tokenizer = AutoTokenizer.from_pretrained(text_tower)
    clip = CLIPModel.from_pretrained(text_tower)
    for name, vector in zip(names, vectors, strict=True):
        tokens = tokenizer(prompt.format(name), return_tensors="pt")
        with torch.inference_mode():
            text = clip.text_model(**tokens)
            assert vector == unit(clip.text_projection(text.pooler_output)[0])
            mean = encode_names([name], str(text_tower), prompt=prompt, pooling="mean")[0]
            assert mean == unit(text.last_hidden_state[0].mean(0))


@pytest.mark.parametrize(
    ("pooling", "token"),
    [
        ({"pooling_mode": "cls"}, 0),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 0),
        ({"pooling_mode": "mean"}, slice(None)),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, slice(None)),
    ],
)
def test_a_sentence_model_pools_as_its_folder_says(encoder, tmp_path, pooling, token):
    folder = write_sentence_model(tmp_path / "model", encoder, ["Transformer", "Pooling", "Normalize"], **pooling)
    hidden = outputs(encoder, "cat").last_hidden_state[0]
    assert encode_names(["cat"], folder)[0] == unit(hidden[token].reshape(-1, 8).mean(0))


@pytest.mark.parametrize(
    ("kinds", "mode", "reason"),
    [
        (["Transformer", "Pooling"], "max", "with Pooling max"),
        (["Transformer", "Pooling", "Dense"], "mean", "with Dense"),
    ],
)
def test_a_sentence_model_of_other_parts_needs_a_choice(encoder, tmp_path, kinds, mode, reason):
    folder = write_sentence_model(tmp_path / "model", encoder, kinds, pooling_mode=mode)
    with pytest.raises(ValueError, match=f"{reason}, .*choose a pooling: mean or head"):
        encode_names(["cat"], folder)
    assert encode_names(["cat"], folder, pooling="mean").shape == (1, 8)


def test_the_files_of_an_encoder_are_listed(encoder):
    names = [path.name for path in encoder_files(str(encoder))]
    assert names == sorted(names)
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= set(names)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a text encoder"):
        encode_names(["cat"], str(tmp_path))
