"""Text encoders of a few weights, drawn at random, as folders."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    ViTImageProcessor,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", ".", "cat", "polar", "bear", "dog"]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
ENDS = {"bos_token_id": WORDS.index("[CLS]"), "eos_token_id": WORDS.index("[SEP]"), "pad_token_id": 0}


def write_bert(folder: Path) -> Path:
    _write_tokenizer(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), **SMALL)).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """Two towers; the text ends at `[SEP]`."""
    _write_tokenizer(folder)
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 16, **SMALL, **ENDS}
    vision = {"image_size": 8, "patch_size": 8, **SMALL}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(folder)
    return folder


def write_clipseg(folder: Path, words: Sequence[str]) -> Path:
    """A segmenter that is asked by texts of these words, with an image processor of 16 x 16 pixels."""
    _write_tokenizer(folder, [*WORDS, *words])
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    text = {"vocab_size": len(WORDS) + len(words), "max_position_embeddings": 16, **SMALL, **ENDS}
    vision = {"image_size": 16, "patch_size": 8, **SMALL}
    decoder = {"reduce_dim": 4, "extract_layers": [0], "decoder_num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=6, **decoder)
    model = CLIPSegForImageSegmentation(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # else every text has nearly the same mask
    model.save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
