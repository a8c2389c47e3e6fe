"""Where a model lies: a folder on this machine, or ``hf://owner/name@commit`` on the Hugging Face Hub.

A place on the Hub names a commit, so that it means the same files for ever; they are fetched once and lie in a folder
from there on.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lineage.digests import LineageError

HUB = "hf://"
FETCHED = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
"""Files that models are loaded from. Nothing pickled is fetched."""
VARIANTS = ("*.fp16.safetensors", "*.fp16-*.safetensors", "*.bf16.safetensors", "*.safetensors.index.fp16.json")
"""Second copies of weights."""


def local(place: str | Path) -> Path:
    """The folder of a model at ``place``, fetched from the Hub where it lies there.

    Raises:
        LineageError: the place names no commit, or the Hub does not give its files.
    """
    if not str(place).startswith(HUB):
        return Path(place)
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@]+))?", str(place))
    if found is None:
        raise LineageError(f"{place} is no place on the Hub; write hf://owner/name@commit")
    repository, commit = found.groups()
    if commit is None or not re.fullmatch("[0-9a-f]{40}", commit):
        raise LineageError(
            f"{place} names no commit, and a branch or tag may move: pin it as hf://{repository}@<commit>, with the 40 "
            "characters that the Hub shows under Files, History"
        )
    return _fetch(repository, commit)


def _fetch(repository: str, commit: str) -> Path:
    import httpx2
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.constants import HF_HOME
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(HF_HOME) / "triptych" / repository.replace("/", "--") / commit
    partial = folder.with_name(f"{commit}.partial")
    if folder.is_dir():
        return folder
    try:
        names, ignored = list_repo_files(repository, revision=commit), list(VARIANTS)
        if "model_index.json" in names:
            # Beside a bundle often lie its weights once more, in one file that diffusers does not read.
            ignored += [name for name in names if "/" not in name and name.endswith(".safetensors")]
        # What was cut off is taken up there again.
        snapshot_download(
            repository, revision=commit, allow_patterns=FETCHED, ignore_patterns=ignored, local_dir=partial
        )
        shutil.rmtree(partial / ".cache")
        partial.rename(folder)
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        if folder.is_dir():
            return folder  # another process was faster, with the same files
        raise LineageError(
            f"{HUB}{repository}@{commit} cannot be fetched: {error}; check the name, the commit and the way to the "
            "Hub, accept the model's terms there if it has some, and set HF_TOKEN"
        ) from error
    return folder
