"""Random twisted exports: every figure against a second, naive implementation of the definitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_lib.analysis.trace.processes import assign
from colo_lib.analysis.trace.summary import summary_of
from colo_lib.analysis.trace.window import look
from colo_lib.data.capture import read_exports
from colo_lib.errors import InputError
from tests.exports import EMBED, GEN, Kernel, Planted, write
from tests.naive_differences import differences
from tests.naive_trace import Refused, answers
from tests.twisted import SWITCHED, twisted

SEEDS = 400


def test_every_figure_is_that_of_the_definitions(tmp_path: Path) -> None:
    bases: dict[str, set[str]] = {}
    compared = 0
    for seed in range(SEEDS):
        twist = twisted(tmp_path / "e.sqlite", seed)
        capture = read_exports([twist.file])
        asked = {name: ",".join(map(str, sorted(pids))) for name, pids in twist.members.items()}
        window_s = None if twist.window is None else (twist.window[0] / 1e9, twist.window[1] / 1e9)
        options = (window_s, twist.device, twist.mechanism)
        try:
            truth = answers(twist.file, twist.members, twist.window, twist.device, twist.mechanism)
        except Refused:
            truth = None
        if truth is None or (not truth["workloads"] and truth["outside"]):
            with pytest.raises(InputError, match=r"no work|length 0"):
                summary_of(look(capture, assign(capture, asked)[0], *options))
            continue
        found = summary_of(look(capture, assign(capture, asked)[0], *options))
        assert not differences(found, truth), (seed, twist, differences(found, truth))
        bases.setdefault(found["basis"], set()).add(twist.switched)
        compared += 1
    assert compared > 0.8 * SEEDS
    assert bases["residency"] >= {"own", "server", "stranger-unknown"}
    assert bases["kernel intervals"] >= set(SWITCHED) - {"own", "server", "stranger-unknown"}


def test_the_naive_one_knows_the_answers_of_a_hand_worked_export(tmp_path: Path) -> None:
    kernels = [Kernel(GEN, 0, 10, 66), Kernel(GEN, 30, 40, 132), Kernel(GEN, 35, 45, 1, stream=8),
               Kernel(EMBED, 5, 20, 1320), Kernel(EMBED, 32, 60, 1320)]  # fmt: skip
    truth = answers(write(tmp_path / "e.sqlite", kernels), {"gen": {GEN}, "embed": {EMBED}})
    assert (truth["window_ns"], truth["busy_ns"], truth["overlap_ns"], truth["gaps.count"]) == (60, 50, 18, 1)
    gen = truth["workloads"]["gen"]
    assert (gen["busy_ns"], gen["kernel_time_ns"], gen["one_block_fraction"]) == (25, 30, 1 / 3)
    assert gen["sm_occupancy_by_count"] == pytest.approx((0.5 + 1 + 1 / 132) / 3)
    sliced = Planted([Kernel(GEN, 0, 15), Kernel(EMBED, 10, 25)], {(GEN, 1): [(0, 10)], (EMBED, 2): [(10, 20)]})
    truth = answers(write(tmp_path / "s.sqlite", sliced), {"gen": {GEN}, "embed": {EMBED}})
    assert (truth["basis"], truth["overlap_ns"], truth["busy_ns"], truth["window_ns"]) == ("residency", 0, 20, 25)
