"""Tell what Nsight Systems captured: do the kernels of gen and embed overlap, how full and how idle is the device?

Give one SQLite export that holds both processes, or one export a process: several are aligned on their recorded
session starts. Make an export with `nsys export --type sqlite REPORT.nsys-rep`. Nothing is written beside it.

A capture.json beside the exports, as a run leaves one, says which GPUs the processes saw, which of them were gen and
embed, how they shared the GPU, and the window of steady state; what you give comes first.

examples:
  colo trace trace.sqlite                              names the processes and guesses which is which
  colo trace gen.sqlite embed.sqlite --gen 777 --embed 774
  colo trace one.sqlite --gen 777 --embed 777:801       both in one process: the embedder's thread, by its launches
  colo trace trace.sqlite --window 4.0:4.5 --json      one JSON object, see docs/traces.md
  colo trace trace.sqlite --window 4.0:4.1 --perfetto out.json    open out.json at ui.perfetto.dev, or offline
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `colo trace`."""
    parser.add_argument("exports", nargs="+", metavar="EXPORT.sqlite", help="Nsight Systems exports of one run")
    parser.add_argument(
        "--gen", default="", metavar="PID|NAME", help="the LLM's processes, or pid:thread (default: the likely)"
    )
    parser.add_argument(
        "--embed", default="", metavar="PID|NAME", help="the embedder's, or pid:thread (default: the likely)"
    )
    parser.add_argument("--window", default="", metavar="START_S:END_S", help="seconds after the first session's start")
    parser.add_argument(
        "--device", type=int, metavar="GPU", help="GPU number (default: the one with most of the LLM's work)"
    )
    parser.add_argument(
        "--mechanism", default="", metavar="NAME", help="how the two shared the GPU: mps, time-sliced, …"
    )
    parser.add_argument(
        "--category", action="append", default=[], metavar="NAME=REGEX", help="a category of kernels of your own, first"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--perfetto", metavar="OUT.json", help="write the window for the Perfetto viewer")


def carry_out(options: argparse.Namespace) -> int:
    """Print the answers; 0 done, 2 for exports that cannot be read or hold nothing."""
    from colo_lib.data import export_cache

    given = [options.gen, options.embed, options.window, options.device, options.mechanism, options.category]
    key = None if options.perfetto else export_cache.answer_key(options.exports, [*given, options.json])
    answer = export_cache.kept_answer(key) if key else None
    if answer is None:
        answer, large = answer_of(options)
        if key and large and key == export_cache.answer_key(options.exports, [*given, options.json]):
            export_cache.keep_answer(key, answer)
    print(answer)
    return 0


def answer_of(options: argparse.Namespace) -> tuple[str, bool]:
    """What there is to print, and whether it rests on so much that it should be kept."""
    import json

    keep_freed_memory()
    from colo_lib.analysis.trace.summary import summary_of
    from colo_lib.analysis.trace.window import looked_at, window_of
    from colo_lib.data.capture import read_files, with_threads
    from colo_lib.data.export import worth_keeping
    from colo_lib.report import trace_text

    patterns, window = categories_of(options.category), window_of(options.window)
    mechanism = mechanism_of(options.mechanism)
    captured = with_threads(read_files(options.exports), options.gen, options.embed)
    asked = {"gen": options.gen, "embed": options.embed}
    window = window or captured.window_s
    view, guessed = looked_at(captured.capture, captured.facts, asked, window, options.device, mechanism)
    if options.perfetto:
        from colo_lib.report import timeline

        sentence = timeline.write_perfetto(view, Path(options.perfetto))
        if not options.json:
            print(sentence)
    summary = summary_of(view, patterns) | {"workloads_guessed": guessed}
    summary["notes"] += captured.doubts(mechanism)
    answer = json.dumps(summary, indent=1, allow_nan=False) if options.json else trace_text.text(summary)
    return answer, worth_keeping(captured.capture)


def keep_freed_memory() -> None:
    """Have the C library reuse what arrays gave back: fetching it anew from the kernel is a third of the analysis."""
    import contextlib
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # malloc.h of glibc; other libraries have no mallopt
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 32 << 20)
        library.mallopt(trim_threshold, 512 << 20)


def mechanism_of(text: str) -> str | None:
    """A mechanism's name, checked."""
    from colo_lib.errors import InputError
    from colo_lib.steps import MECHANISMS

    known = [row.id for row in MECHANISMS.values() if not row.cores]
    if text and text not in known:
        raise InputError(f"mechanism {text!r}: known are {', '.join(known)}")
    return text or None


def categories_of(pairs: list[str]) -> list[tuple[str, str]]:
    """The user's NAME=REGEX before the workbook's own table; raises InputError for a word without '='."""
    from colo_lib.analysis.trace.kernels import PATTERNS, compiled
    from colo_lib.errors import InputError

    added = []
    for pair in pairs:
        name, equals, pattern = pair.partition("=")
        if not equals or not name or not pattern:
            raise InputError(f"--category {pair!r}: write NAME=REGEX, as in --category mine='my_.*_kernel'")
        added.append((name, pattern))
    compiled(added)
    return [*added, *PATTERNS]
