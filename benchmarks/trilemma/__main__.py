"""`python -m benchmarks.trilemma prepare|base|ship|test|run|keep|table|plot`: see its page, docs/method.md."""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def main() -> None:
    """Parse the command line and do what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trilemma", description="The trilemma experiment.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("prepare", help="make everything that runs read; two minutes on one core")
    made.add_argument("bundle", type=Path)
    made.add_argument("--part", help="one file only: common, corpus1, world1, ...")
    based = commands.add_parser(
        "base", help="train both base′ into the bundle: seconds on a GPU, 25 minutes on a CPU core"
    )
    based.add_argument("bundle", type=Path)
    based.add_argument("--device", default=None)
    shipped = commands.add_parser("ship", help="make base′ of world 1 the base model of the embedded default")
    shipped.add_argument("bundle", type=Path)
    tested = commands.add_parser("test", help="base′, two steps of every arm, and what steps cost here")
    done = commands.add_parser("run", help="work the queue off; runs that have a line already are skipped")
    for command in (tested, done):
        command.add_argument("bundle", type=Path)
        command.add_argument("results", type=Path, help="the folder (test) or the file (run) that results go to")
        command.add_argument("--device", default=None, help="by default the first GPU, or the CPU")
    done.add_argument("--processes", type=int, default=1)
    done.add_argument("--seconds", type=float, default=1e9, help="start no job that would not end within this time")
    done.add_argument("--arms", nargs="*", help="only these")
    done.add_argument("--world", type=int)
    done.add_argument("--rate", type=float)
    done.add_argument("--seeds", type=int, nargs="*", help="only these")
    for name, about in (
        ("keep", "a smaller result file, from which tables and picture follow"),
        ("table", "the tables of docs/trilemma-table.md"),
        ("plot", "the picture of docs/method.md"),
    ):
        shown = commands.add_parser(name, help=about)
        shown.add_argument("results", type=Path)
        shown.add_argument("output", type=Path)
    options = parser.parse_args()
    if options.command == "prepare":
        from benchmarks.trilemma.prepare import prepare

        prepare(options.bundle, options.part)
    elif options.command == "base":
        from benchmarks.trilemma.base import make_bases
        from benchmarks.trilemma.pool import device_of

        make_bases(options.bundle, options.bundle, device_of(options.device))
    elif options.command == "ship":
        from benchmarks.trilemma.base import ship

        ship(options.bundle)
    elif options.command == "test":
        from benchmarks.trilemma.base import make_bases
        from benchmarks.trilemma.pool import device_of, self_test

        options.results.mkdir(parents=True, exist_ok=True)
        make_bases(options.bundle, options.bundle, device_of(options.device))
        self_test(options.bundle, options.results, str(device_of(options.device)))
    elif options.command == "run":
        _run(options)
    elif options.command == "keep":
        from benchmarks.trilemma.report import write_lines

        write_lines(options.results, options.output)
    elif options.command == "table":
        from benchmarks.trilemma.report import write_table

        write_table(options.results, options.output)
    else:
        from benchmarks.trilemma.report import write_plot

        write_plot(options.results, options.output)


def _run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from benchmarks.trilemma.arms import jobs
    from benchmarks.trilemma.pool import device_of, run_queue

    chosen = [
        job if options.seeds is None or job.kind == "match" else replace(job, seeds=tuple(options.seeds))
        for job in jobs()
        if (not options.arms or job.arm in options.arms)
        and (options.world is None or job.world == options.world)
        and (options.rate is None or job.rate == options.rate)
    ]
    device = str(device_of(options.device))
    run_queue(options.bundle, options.results, device, options.processes, time.time() + options.seconds, chosen)


if __name__ == "__main__":
    main()
