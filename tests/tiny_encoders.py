"""Text encoders of a few weights, drawn at random, as folders."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer, CLIPConfig, CLIPModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", ".", "cat", "polar", "bear", "dog"]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def write_bert(folder: Path) -> Path:
    _write_tokenizer(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), **SMALL)).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """Two towers; the text ends at `[SEP]`."""
    _write_tokenizer(folder)
    ends = {"bos_token_id": WORDS.index("[CLS]"), "eos_token_id": WORDS.index("[SEP]"), "pad_token_id": 0}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 16, **SMALL, **ends}
    vision = {"image_size": 8, "patch_size": 8, **SMALL}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
