"""Judge what people would prefer, by HPSv3 (Y. Ma et al., arXiv 2508.03789): a Qwen2-VL that gives a number.

`python score.py [--weights FOLDER] [--precision bfloat16|float32] REQUEST RESPONSE`

The model reads the picture, an instruction with the caption, and a token of its own, `<|Reward|>`. What it has made of
everything up to that token goes through three linear layers and comes out as the mean and the spread of how much people
would like the picture; `aesthetics` is the mean.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from contract import Asked, Refused, answer, open_picture
from PIL import Image
from qwen_vl import IMAGE, UNREADABLE, Reader, complete, device

CHECKPOINT, INSTRUCTION = "HPSv3.safetensors", "instruction.txt"
REWARD, CAPTION = "<|Reward|>", "{text_prompt}"
PIXELS = 256 * 28 * 28
"""Every picture is resized to about as many: the model was trained so."""
EMBEDDING = "model.language_model.embed_tokens.weight"


class Preference:
    """HPSv3.

    Args:
        folder: `CHECKPOINT`; configuration, tokenizer and ``preprocessor_config.json`` of the model that it was made
            of; and `INSTRUCTION`, the text around the caption.

    Raises:
        Refused: a tensor is missing or not the model's, or the instruction has no place for caption or reward.
    """

    def __init__(self, folder: Path, precision: torch.dtype) -> None:
        self._reader = Reader(folder, (PIXELS, PIXELS))
        self._reader.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
        self._image, self._reward = self._reader.tokenizer.convert_tokens_to_ids([IMAGE, REWARD])
        self._instruction = (folder / INSTRUCTION).read_text("utf-8")
        if self._instruction.count(CAPTION) != 1 or self._instruction.count(REWARD) != 1:
            raise Refused(f"{folder / INSTRUCTION} needs {CAPTION} and {REWARD}, each once")
        self._model = self._load(folder, precision)

    @torch.no_grad()
    def likes(self, picture: Image.Image, caption: str) -> float:
        """The mean of how much people would like the picture.

        Raises:
            Refused: the caption holds a token that has a meaning of its own here.
        """
        if REWARD in caption:
            raise Refused(f"its caption holds {REWARD}")
        read = self._reader.read(picture, self._instruction.replace(CAPTION, caption))
        ids = read["input_ids"].to(device())
        inner = self._model.model
        seen = inner.get_image_features(read["pixel_values"].to(device()), read["image_grid_thw"].to(device()))
        known = inner.get_input_embeddings()(ids)
        pictured = torch.cat(list(seen.pooler_output)).to(known.dtype)
        known = known.masked_scatter((ids == self._image)[..., None].expand_as(known), pictured)
        # Positions one after the other, also inside the picture: it was trained so, unlike the model it was made of.
        understood = inner.language_model(inputs_embeds=known, use_cache=False).last_hidden_state
        return float(self._model.rm_head(understood[ids == self._reward].float())[0, 0])

    def _load(self, folder: Path, precision: torch.dtype) -> Any:
        from safetensors import safe_open
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        class Reward(Qwen2VLForConditionalGeneration):  # type: ignore[misc]
            """Qwen2-VL with the layers that make a number of what it understood, which stay in fp32."""

            _keep_in_fp32_modules_strict = ("rm_head",)

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.rm_head = torch.nn.Sequential(
                    torch.nn.Linear(config.text_config.hidden_size, 1024),
                    torch.nn.ReLU(),
                    torch.nn.Dropout(0.05),
                    torch.nn.Linear(1024, 16),
                    torch.nn.ReLU(),
                    torch.nn.Linear(16, 2),
                )

        config = Qwen2VLConfig.from_pretrained(folder, local_files_only=True)
        with safe_open(folder / CHECKPOINT, framework="pt") as stored:
            tensors = {renamed(name): stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        words = len(tensors.get(EMBEDDING, ()))
        if words != len(self._reader.tokenizer):
            raise Refused(f"{CHECKPOINT} knows {words} tokens, and the tokenizer has {len(self._reader.tokenizer)}")
        config.text_config.vocab_size = words
        loaded, info = Reward.from_pretrained(
            None, config=config, state_dict=tensors, dtype=precision, output_loading_info=True
        )
        complete(info, folder)
        return loaded.eval().requires_grad_(False).to(device())


def renamed(tensor: str) -> str:
    """What transformers 5 calls a tensor that older ones, and the published file, call otherwise."""
    if tensor.startswith("visual."):
        return f"model.{tensor}"
    if tensor.startswith("model.") and not tensor.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{tensor.removeprefix('model.')}"
    return tensor


def main() -> None:
    """Answer a request."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("request", type=Path)
    parser.add_argument("response", type=Path)
    said = parser.parse_args()
    try:
        preference = Preference(said.weights, getattr(torch, said.precision))
    except UNREADABLE as error:
        sys.exit(f"the model in {said.weights} does not load: {error}")

    def judge(asked: Asked) -> dict[str, float]:
        return {"aesthetics": preference.likes(open_picture(asked.file), asked.prompt)}

    answer(said.request, said.response, judge, ("torch", "transformers", "tokenizers", "pillow"), device=device())


if __name__ == "__main__":
    main()
