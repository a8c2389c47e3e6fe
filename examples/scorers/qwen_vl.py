"""What the scorers on Qwen's vision-language models share: loading whole checkpoints, and showing one a picture.

The folders of those scorers have a link to this file. transformers' own processors need torchvision, for videos; of a
processor only the tokenizer, the chat template and the resizing of pictures are needed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from contract import Refused
from PIL import Image
from safetensors import SafetensorError

UNREADABLE = (Refused, OSError, ValueError, KeyError, RuntimeError, SafetensorError)
"""What loading raises where files are missing, broken or not the model's."""
IMAGE = "<|image_pad|>"
FAULTS = {"missing_keys": "lacks", "mismatched_keys": "has in another shape", "unexpected_keys": "has besides"}


class Reader:
    """Puts a picture and a text about it into the numbers that the model reads, as its chat template has them.

    Args:
        folder: holds the tokenizer, its chat template and ``preprocessor_config.json``.
        size: fewest and most pixels that the picture is resized to; left out: the checkpoint's own.
    """

    def __init__(self, folder: Path, size: tuple[int, int] | None = None) -> None:
        from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # By these names, because those in an older file would count for more than ``size``.
        asked = {} if size is None else {"min_pixels": size[0], "max_pixels": size[1]}
        self._pictures: Any = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True, **asked)
        if size and size != (self._pictures.size["shortest_edge"], self._pictures.size["longest_edge"]):
            raise Refused(f"pictures would be resized to {dict(self._pictures.size)}")
        self._template = self.tokenizer.chat_template
        if self._template is None and (beside := folder / "chat_template.json").is_file():
            self._template = json.loads(beside.read_text("utf-8"))["chat_template"]
        if self._template is None:
            raise Refused(f"{folder} has no chat template")

    def read(self, picture: Image.Image, text: str) -> dict[str, torch.Tensor]:
        """``input_ids`` (1, L), ``pixel_values`` and ``image_grid_thw``, up to where the model's answer begins.

        Raises:
            Refused: the text holds what stands for a picture.
        """
        if IMAGE in text:
            raise Refused(f"its text holds {IMAGE}, which stands for the picture")
        seen = self._pictures(images=[picture], return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": text}]
        said: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        if said.count(IMAGE) != 1:
            raise Refused(f"the chat template has {said.count(IMAGE)} places for one picture")
        places = int(seen["image_grid_thw"][0].prod()) // self._pictures.merge_size**2
        ids = self.tokenizer(said.replace(IMAGE, IMAGE * places), return_tensors="pt")["input_ids"]
        return {"input_ids": ids, "pixel_values": seen["pixel_values"], "image_grid_thw": seen["image_grid_thw"]}


def complete(info: Mapping[str, Any], folder: Path) -> None:
    """Hold what transformers says about loading to this: every tensor was there, of the right shape, none besides.

    Raises:
        Refused: it would have filled a gap with random numbers, or left something out.
    """
    for key, fault in FAULTS.items():
        if found := sorted(str(one) for one in info[key]):
            more = f" and {len(found) - 1} more" if found[1:] else ""
            raise Refused(f"the checkpoint in {folder} {fault} {found[0]}{more}")


def device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
