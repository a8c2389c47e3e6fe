"""A run whose one step sleeps until it is interrupted: ``long_step.py IMAGE RUN PIPELINE_ROOT``."""

import sys
from pathlib import Path

from kfp import dsl

from pipelines.containers import containers


@dsl.component(base_image="unused", install_kfp_package=False)
def sleep(note: str) -> None:
    """Sleep; on an interrupt write ``note``, as a step that leaves its record does."""
    import time
    from pathlib import Path

    try:
        print("asleep", flush=True)
        time.sleep(300)
    except KeyboardInterrupt:
        Path(note).write_text("interrupted")
        raise


def main(image: str, run: str, pipeline_root: str) -> None:
    """Run the step."""
    with containers({"data": image}, run, Path(pipeline_root)):
        sleep(note=f"{pipeline_root}/note")


if __name__ == "__main__":
    main(*sys.argv[1:])
