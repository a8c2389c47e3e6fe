"""Fuzz the image reader: ``make fuzz``, or ``python -m tests.fuzz.images -max_total_time=60``.

Starts from small good images of every format and lets libFuzzer change them. Whatever the
bytes are, the reader gives one row of facts: it raises nothing, and takes less than ``TIMEOUT`` seconds.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "components.validate_data"]):
    from PIL import Image

    from components.validate_data.images import MEASURED, measure_images
    from lineage.pictures import FORMATS

TIMEOUT = 10
MOST_PIXELS = 2**20
LONGEST = 8192


def one_input(content: bytes) -> None:
    """Measure one image, whatever it is."""
    facts = measure_images([content], MOST_PIXELS, None)
    assert facts.schema == MEASURED
    assert len(facts) == 1
    (row,) = facts.to_pylist()
    assert row["decodes"] is (row["problem"] is None)
    assert row["decodes"] is (row["exposure"] is not None)


def write_seeds(folder: Path) -> None:
    """One small good image of each format and mode."""
    for kind in FORMATS:
        for mode in ("RGB", "P", "L"):
            stream = io.BytesIO()
            picture = Image.linear_gradient("L").resize((24, 16)).convert(mode)
            try:
                picture.save(stream, kind)
            except OSError:  # JPEG knows no palette
                continue
            (folder / f"{kind}-{mode}").write_bytes(stream.getvalue())


def main() -> None:
    """Fuzz until libFuzzer's own options (``-max_total_time``, ``-runs``) say stop."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        options = [
            f"-timeout={TIMEOUT}",
            f"-max_len={LONGEST}",
            "-rss_limit_mb=2048",
            "-len_control=0",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:], folder], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
