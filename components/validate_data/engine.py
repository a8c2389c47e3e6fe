"""Measuring many images through Daft, in a process of its own: `components.validate_data.facts` starts it.

    python -m components.validate_data.engine MANIFEST.parquet SETTINGS_JSON    # facts: an Arrow stream on stdout

Daft's threads outlive what they compute, and one that lets go of a Python object while the interpreter is taken down
aborts the process. So this one leaves without taking its interpreter down, once all that it found is written, and
whoever started it has no such threads. Images are measured in threads, each with a `Measure` of its own: decoding and
the detector leave Python's lock to the others.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.validate_data.facts import BATCH, CHANGED, SCHEMA, Measure
from components.validate_data.settings import ValidationSettings


def stream_facts(manifest: pa.Table, settings: ValidationSettings, out: IO[bytes]) -> None:
    """Write the facts about a numbered manifest to ``out``, in its order."""
    import daft

    schema = SCHEMA.append(CHANGED)
    dtype = daft.DataType.from_arrow_type(pa.struct(schema))
    names = manifest.column_names

    @daft.cls(use_process=False, max_concurrency=settings.processes or os.cpu_count())
    class Measuring:
        def __init__(self) -> None:
            self.measure = Measure(settings)

        @daft.method.batch(return_dtype=dtype, batch_size=BATCH)  # type: ignore[untyped-decorator]
        def facts(self, *columns: daft.Series) -> Any:
            told = pa.table([column.to_arrow() for column in columns], names=names)
            return self.measure(told).to_struct_array().combine_chunks()

    measuring = Measuring()
    frame = daft.from_arrow(manifest).select(measuring.facts(*(daft.col(name) for name in names)).alias("facts"))
    with pa.ipc.new_stream(out, schema) as writer:
        for batch in frame.to_arrow_iter():
            writer.write_table(pa.Table.from_struct_array(batch.column("facts")).cast(schema))
    out.flush()


def main() -> int:
    """The exit status: 0, or 1 with a line on stderr that says why."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is not to be among the facts
        try:
            stream_facts(pq.read_table(Path(sys.argv[1])), ValidationSettings.model_validate_json(sys.argv[2]), out)
        except BrokenPipeError:  # nobody waits for the facts any more
            return 1
        except Exception as error:  # of ours, or whatever the engine or a cluster raises: it becomes one line
            print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
