"""Byte-pair vocabularies learned from the captions: CLIP's two files, and the teacher's one."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from examples.avatars.splits import portraits

CLIP_LENGTH = 28
"""Tokens a CLIP text encoder reads; the longest caption has 24."""
TEACHER_LENGTH = 64
"""Tokens the teacher reads, as SigLIP does."""

START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learns CLIP's `vocab.json` and `merges.txt` from the captions of `text` and writes them to `folder`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator([portrait.caption() for portrait in portraits("text")], trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [START, END, *alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges)]
    folder.mkdir(parents=True, exist_ok=True)
    unique = list(dict.fromkeys(tokens))
    vocabulary = {token: place for place, token in enumerate(unique)}
    # CLIP's pooling treats an end token with the id 2 in an old way, so 2 must be something else: it is 1.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    made = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=CLIP_LENGTH,
    )
    made.save_pretrained(folder)
    return made


def teacher_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Learns a lower-casing byte-level BPE that pads on the right to `TEACHER_LENGTH`; writes it to `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([portrait.caption() for portrait in portraits("teacher")], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="right",
        model_max_length=TEACHER_LENGTH,
        model_input_names=["input_ids"],
    )
    made.save_pretrained(folder)
    return made
