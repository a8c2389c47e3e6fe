"""Judge alignment by asking a vision-language model about each phrase of the caption (Soft-TIFA).

`python score.py [--weights FOLDER] [--part NAME=WORD,WORD …] REQUEST RESPONSE`

A phrase's score is the probability of the right answer, "Yes" or "No", at the first token that the model would say.
`alignment` is the mean of a caption's phrases (Soft-TIFA AM of GenEval 2, arXiv 2512.16853), `alignment/whole` their
geometric mean (GM), `alignment/presences` and `alignment/absences` the means of what was to be seen and what was not.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from contract import Asked, Refused, answer, open_picture
from PIL import Image
from qwen_vl import IMAGE, UNREADABLE, Reader, complete, device

QUESTION = 'Does this picture show "{thing}"? Answer with Yes or No.'
ANSWERS = {"yes": ("Yes", "yes", " Yes", " yes"), "no": ("No", "no", " No", " no")}
LEAST = 1e-6
"""A phrase's score in the geometric mean at least, so that one phrase does not make all others count for nothing."""

_PUNCTUATION = re.compile(r"\s*[,;:.!?()\n]+\s*")
_OPENERS = (
    "in front of", "on top of", "without", "wearing", "holding", "having", "against", "behind", "beside",
    "under", "with", "while", "and", "but", "who", "that", "which", "no", "not", "neither", "nor",
)  # fmt: skip
_CLAUSE = re.compile(r"\s+(?=(?:" + "|".join(_OPENERS) + r")\b)", re.IGNORECASE)
_LEADING = re.compile(r"^(?:and|but)\s+", re.IGNORECASE)
_SAYS_NOTHING = {*_OPENERS, "has", "have", "is", "are"}
_ABSENT = re.compile(
    r"^(?:(?:with|wearing|holding|having|who|that|which|has|have|is|are)\s+)*"
    r"(?:no|not|without|neither|nor)\s+(?:any\s+)?(?P<thing>.+)$",
    re.IGNORECASE,
)


def split_phrases(caption: str) -> list[str]:
    """The phrases of a caption, in order, without repeats; the caption itself where it has none.

    >>> split_phrases("a portrait of a woman with red hair, without glasses and with no hat")
    ['a portrait of a woman', 'with red hair', 'without glasses', 'with no hat']
    """
    found: dict[str, None] = {}
    for part in _PUNCTUATION.split(caption):
        opened = ""
        for piece in _CLAUSE.split(part):
            phrase = _LEADING.sub("", f"{opened} {piece}".strip())
            if set(phrase.lower().split()) <= _SAYS_NOTHING:
                opened = phrase  # it belongs to what follows: "who has" + "no beard"
                continue
            opened = ""
            found[phrase] = None
    return list(found) or [caption]


def what_to_ask(phrase: str) -> tuple[str, bool]:
    """The thing that a phrase speaks of, and whether it is to be there.

    What is to be absent is asked for as if it were to be there, and the right answer is then "No": small models answer
    questions that hold a "no" badly, and not even people agree what "Yes" to "is there no beard?" says.

    >>> what_to_ask("with no hat"), what_to_ask("with red hair")
    (('hat', False), ('with red hair', True))
    """
    absent = _ABSENT.match(phrase)
    return (absent["thing"], False) if absent else (phrase, True)


class Witness:
    """A vision-language model that answers yes or no.

    Args:
        folder: a checkpoint of Qwen3-VL, in safetensors.

    Raises:
        Refused: a tensor is missing or not the model's; its tokenizer has no word for yes or no.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import Qwen3VLForConditionalGeneration

        self._reader = Reader(folder)
        loaded, info = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype="auto", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        complete(info, folder)
        self._model: Any = loaded.eval().requires_grad_(False).to(device())
        self._place = self._reader.tokenizer.convert_tokens_to_ids(IMAGE)
        self._words = [self._tokens(words) for words in ANSWERS.values()]

    @torch.no_grad()
    def says_yes(self, picture: Image.Image, question: str) -> float:
        """P(yes) / (P(yes) + P(no)) at the first token of the answer."""
        read = {name: value.to(self._model.device) for name, value in self._reader.read(picture, question).items()}
        kinds = (read["input_ids"] == self._place).int()
        said = self._model(**read, mm_token_type_ids=kinds, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        yes, no = (torch.logsumexp(said[tokens], dim=0) for tokens in self._words)
        return float(torch.sigmoid(yes - no))

    def _tokens(self, words: Sequence[str]) -> list[int]:
        encoded = [self._reader.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        tokens = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not tokens:
            raise Refused(f"the tokenizer has no single token for any of {', '.join(map(repr, words))}")
        return tokens


def mean(values: Sequence[float]) -> float:
    """The mean; 1 where there is nothing that could be missed."""
    return math.fsum(values) / len(values) if values else 1.0


def judge(asked: Asked, witness: Witness, parts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Measure -> score of one picture, each from 0 to 1."""
    picture = open_picture(asked.file)
    scores: dict[str, float] = {}
    wanted: dict[str, bool] = {}
    for phrase in split_phrases(asked.prompt):
        thing, wanted[phrase] = what_to_ask(phrase)
        yes = witness.says_yes(picture, QUESTION.format(thing=thing))
        scores[phrase] = yes if wanted[phrase] else 1 - yes
    named = {
        f"alignment/{name}": mean([s for phrase, s in scores.items() if _mentions(phrase, words)])
        for name, words in parts.items()
    }
    return {
        "alignment": mean(list(scores.values())),
        "alignment/whole": math.exp(mean([math.log(max(score, LEAST)) for score in scores.values()])),
        "alignment/presences": mean([score for phrase, score in scores.items() if wanted[phrase]]),
        "alignment/absences": mean([score for phrase, score in scores.items() if not wanted[phrase]]),
        **named,
    }


def _mentions(phrase: str, words: Sequence[str]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", phrase, re.IGNORECASE) for word in words)


def _part(said: str) -> tuple[str, list[str]]:
    name, _, words = said.partition("=")
    if not re.fullmatch(r"[a-z_]+", name) or not words:
        raise argparse.ArgumentTypeError(f"{said!r} is not NAME=WORD,WORD")
    return name, words.split(",")


def main() -> None:
    """Answer a request."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--part", type=_part, action="append", default=[], help="alignment/NAME: phrases with a WORD")
    parser.add_argument("request", type=Path)
    parser.add_argument("response", type=Path)
    said = parser.parse_args()
    try:
        witness = Witness(said.weights)
    except UNREADABLE as error:
        sys.exit(f"the model in {said.weights} does not load: {error}")
    parts = dict(said.part)
    packages = ("torch", "transformers", "tokenizers", "pillow")
    answer(said.request, said.response, lambda one: judge(one, witness, parts), packages, device=device())


if __name__ == "__main__":
    main()
