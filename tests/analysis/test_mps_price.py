"""The price of being an MPS client: planted captures, the surface at its own points, and the recorded runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.trace.mps_price import (
    CODE_KIB,
    SURFACES,
    Price,
    durations,
    kernel_table,
    price_of,
    price_sentence,
    surface_of,
)
from colo_lib.analysis.trace.processes import assign
from colo_lib.analysis.trace.window import look
from colo_lib.data.capture import read_exports
from colo_lib.data.run import open_run
from colo_lib.paths import RECORDED
from colo_lib.plot.mps_price import predicted_and_measured
from colo_lib.report import across_tables
from tests.exports import GEN, Kernel, write

H200 = SURFACES["h200"]
kernels_of = st.lists(
    st.tuples(st.sampled_from(["gemm", "flash::fwd", "rms_norm", "add", "argmax"]), st.integers(1, 5000)),
    min_size=1, max_size=40,
)  # fmt: skip


def as_durations(kernels: list[tuple[str, int]], us: float = 2.0) -> pd.DataFrame:
    return pd.DataFrame({"name": [name for name, _ in kernels], "blocks": [b for _, b in kernels], "us": us})


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_the_surface_goes_through_what_was_measured(surface: object) -> None:
    assert isinstance(surface, type(H200))
    for kib, added in surface.added_us.items():
        blocks = np.array(surface.blocks)
        assert surface.us(blocks, np.full(len(blocks), kib)) == pytest.approx(np.maximum(added, 0))
    assert set(CODE_KIB.values()) <= set(surface.added_us), "every size that is guessed was measured"


@given(st.integers(1, 10**6), st.sampled_from([1, 4, 16, 32]))
def test_between_points_it_stays_between_them_and_beyond_it_stays(blocks: int, kib: int) -> None:
    (found,) = H200.us(np.array([blocks]), np.array([kib]))
    assert 0 <= found <= max(H200.added_us[kib])
    if blocks >= 132:
        assert found == H200.added_us[kib][-1]
    least, most = H200.range_us(np.array([blocks]))
    assert least[0] <= found <= most[0]


@given(kernels_of, st.integers(1, 9))
def test_the_price_is_the_sum_over_the_kernels_of_a_step(kernels: list[tuple[str, int]], steps: int) -> None:
    table = kernel_table(as_durations(kernels * steps), None, H200)
    price = price_of(table, steps, 1, (math.nan, math.nan), "planted")
    sizes = {"gemm": 32, "flash::fwd": 32, "rms_norm": 4, "add": 4, "argmax": 16}
    by_hand = sum(float(H200.us(np.array([blocks]), np.array([sizes[name]]))[0]) for name, blocks in kernels)
    assert price.predicted_us == pytest.approx(by_hand)
    assert price.least_us <= price.predicted_us <= price.most_us
    shown = price.by_blocks()
    assert shown["predicted"].sum() == pytest.approx(price.predicted_us)
    assert shown["kernels"].sum() == pytest.approx(len(kernels))


def planted(folder: Path, longer_us: float) -> pd.DataFrame:
    """Ten steps of a product on 132 blocks, a norm on one, and a copy on eight; MPS adds to the norm alone."""
    kernels, start = [], 1_000
    for _ in range(10):
        for name, blocks, us in (("gemm", 132, 10.0), ("rms_norm", 1, 2.0 + longer_us), ("add", 8, 1.0)):
            end = start + int(us * 1e3)
            kernels.append(Kernel(GEN, start, end, blocks, name))
            start = end + 500
    capture = read_exports([write(folder / "trace.sqlite", kernels)])
    assignment, _ = assign(capture, {"gen": str(GEN)})
    return durations(look(capture, assignment))


def test_a_planted_price_is_found_and_set_beside_its_prediction(tmp_path: Path) -> None:
    for name in ("alone", "client"):
        (tmp_path / name).mkdir()
    table = kernel_table(planted(tmp_path / "alone", 0.0), planted(tmp_path / "client", 5.0), H200)
    price = price_of(table, 10, 1, (100.0, 100.0 / (1 + 4e-4)), "planted")
    assert price.kernels_us == pytest.approx(5.0)
    assert price.trials_us == pytest.approx(4.0)
    assert price.predicted_us == pytest.approx(0.79 + 0.10 + 0.0)
    worst = price.worst()
    assert worst is not None
    assert (worst["name"], worst["blocks"]) == ("rms_norm", 1)
    words = price_sentence(price)
    assert "Measured: 4 us by trials, 5 us by kernels in the captures." in words
    assert "It fails most at rms_norm on 1 blocks: +5.00 us each, 0.10 predicted." in words
    shown = across_tables.mps_price(price)
    assert shown["Kernel"][0] == "rms_norm"
    figure = predicted_and_measured({"planted": price})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["planted"]


def test_what_was_not_measured_is_not_told_as_if_it_was() -> None:
    table = kernel_table(as_durations([("gemm", 1)]), None, H200)
    price = price_of(table, 1, 8, (math.nan, 3.0), "planted")
    assert math.isnan(price.kernels_us)
    assert math.isnan(price.trials_us)
    assert price.worst() is None
    assert price_sentence(price).startswith("A step of 8 tokens is predicted to take 2 us longer")
    assert price_sentence(price).endswith("No step measured it.")
    assert "not predicted" in price_sentence(None)
    assert surface_of("NVIDIA A100-SXM4-80GB") is None
    assert surface_of("NVIDIA H200") is H200


@pytest.mark.parametrize("name", ["h200-big", "h200-llama", "h200-qwen3b"])
def test_the_recorded_runs_pay_more_than_the_surface_says(name: str) -> None:
    """What docs/hardware.md says of the prediction, so that the words change when the numbers do."""
    (folder,) = (item for item in RECORDED.glob(f"{name}-*") if item.is_dir())
    price = RunAnalysis(open_run(folder)).mps_price
    assert isinstance(price, Price)
    assert 0.25 < price.predicted_us / price.trials_us < 0.55
    assert price.most_us < price.trials_us
    worst = price.worst()
    assert worst is not None
    assert "FlashAttnFwdSm90" in worst["name"]
    assert worst["blocks"] == 132


def test_a_run_without_a_capture_without_mps_takes_the_client_s_launches() -> None:
    (folder,) = RECORDED.glob("h100-llama-*/cells/cell-001/runs/*")
    price = RunAnalysis(open_run(folder)).mps_price
    assert price is not None
    assert math.isnan(price.kernels_us)
    assert price.trials_us == pytest.approx(622, rel=0.02)
    assert price.predicted_us < price.most_us < price.trials_us
