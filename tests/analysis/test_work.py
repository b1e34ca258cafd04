"""Is a rate backed by work? Planted devices that did it, wasted some, or left it out; and all recorded runs."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from colo_lib.analysis import work
from colo_lib.analysis.run_analysis import RunAnalysis
from colo_lib.analysis.work import (
    BACKED,
    LEAST_DEMANDED,
    NOT_KNOWN,
    TOO_LITTLE,
    UNBACKED,
    Cost,
    Flops,
    demanded_activity,
    embed_flops,
    gen_flops,
    judged,
)
from colo_lib.data.run import open_run
from colo_lib.data.sweep import open_sweep
from colo_lib.gpus import GPUS
from colo_lib.models.catalog import find_model, token_flops
from colo_lib.params import Params
from colo_lib.paths import RECORDED
from colo_lib.report import run_tables

H100, A100 = GPUS["h100"], GPUS["a100"]
LLAMA, E5 = find_model("llama-3.1-8b-instruct", "gen").config, find_model("e5-large-v2", "embed").config
rates = st.floats(1e9, 9e14)
clocks = st.floats(200, 2000)


@given(rates, rates, clocks, st.floats(1, 20))
def test_a_device_that_did_the_work_is_never_accused(half: float, fp8: float, clock: float, waste: float) -> None:
    """Whatever is wasted beside, and a third of the work that the equation counts and kernels may skip."""
    demanded = demanded_activity(Flops(half, fp8), H100, clock)
    assert judged(demanded, demanded * waste) != UNBACKED
    assert judged(demanded, demanded * 2 / 3) != UNBACKED


@given(rates, clocks, st.floats(0, 0.49))
def test_a_rate_of_which_half_was_left_out_is_told(half: float, clock: float, did: float) -> None:
    demanded = demanded_activity(Flops(half), H100, clock)
    said = judged(demanded, demanded * did)
    assert said == (UNBACKED if demanded >= LEAST_DEMANDED else TOO_LITTLE)


@given(rates, clocks, st.floats(1.0, 4.0))
def test_the_demand_follows_the_rate_and_falls_with_the_clock(half: float, clock: float, factor: float) -> None:
    demanded = demanded_activity(Flops(half), H100, clock)
    assert demanded_activity(Flops(half * factor), H100, clock) == pytest.approx(demanded * factor)
    assert demanded_activity(Flops(half), H100, clock * factor) == pytest.approx(demanded / factor)
    assert demanded_activity(Flops(fp8=half), H100, clock) == pytest.approx(demanded / 2)
    a100 = demanded_activity(Flops(half), A100, clock)
    assert demanded_activity(Flops(fp8=half), A100, clock) == pytest.approx(a100), "no FP8 there"


def test_the_peaks_are_those_of_the_data_sheets() -> None:
    assert H100.tensor_flops(1830) == pytest.approx(989.4e12)
    assert H100.tensor_flops(1830, fp8=True) == pytest.approx(1978.9e12, rel=1e-4)
    assert A100.tensor_flops(1410) == A100.tensor_flops(1410, fp8=True) == pytest.approx(312e12)
    assert GPUS["rtx4090"].tensor_flops(2520) == pytest.approx(165.2e12)
    for gpu in GPUS.values():  # a power of two for each clock and SM, as tensor cores are built
        each = gpu.tensor_flops(1) / 1e6 / gpu.sms
        assert each == pytest.approx(2 ** round(math.log2(each)), rel=0.01), gpu.name


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_a_token_carries_its_part_of_the_prompt(prompt: int, output: int) -> None:
    """Pass by pass: the prompt's tokens, of which the last gives the first token of output, then one by one."""
    assume(prompt + output < 5000)
    token = token_flops(LLAMA, "gen")
    passes = sum(token.linear + token.context * seen for seen in range(1, prompt + output))
    whole = passes + output * token.head
    told = gen_flops(LLAMA, prompt, output)
    assert told.total * output == pytest.approx(whole)
    split = gen_flops(LLAMA, prompt, output, fp8=True)
    assert split.total == pytest.approx(told.total)
    assert split.fp8 * output == pytest.approx(token.linear * (prompt + output - 1))


def trial(step: str, number: int = 1, **given: Any) -> dict[str, Any]:
    plain = {"step": step, "trial": number, "mechanism": "mps", "gen_devices": ("0",), "embed_devices": ("0",),
             "gen_tokens_per_s": 0.0, "embed_sequences_per_s": math.nan, "embed_unproved": None}  # fmt: skip
    return plain | given


def samples(activity: dict[tuple[str, int, str], float], clock: float = 1830.0) -> pd.DataFrame:
    rows = [
        {"step": step, "trial": number, "name": device, "scope": "device", "in_window": inside,
         "tensor_active": value if inside else 0.9, "sm_clock_mhz": clock}
        for (step, number, device), value in activity.items()
        for inside in (True, True, False)
    ]  # fmt: skip
    return pd.DataFrame(rows)


COST = Cost(gen_flops(LLAMA, 128, 512), embed_flops(E5, 512))


def test_a_cache_that_answers_is_found_and_told_by_step_and_trial() -> None:
    trials = pd.DataFrame([
        trial("step4", 1, embed_sequences_per_s=1300.0), trial("step4", 2, embed_sequences_per_s=1300.0),
        trial("step2", 1, embed_sequences_per_s=1000.0, gen_tokens_per_s=50.0), trial("step1", gen_tokens_per_s=160.0),
    ])  # fmt: skip
    seen = samples({("step4", 1, "0"): 0.49, ("step4", 2, "0"): 0.01, ("step2", 1, "0"): 0.36, ("step1", 1, "0"): 0.02})
    found = work.work_of_trials(trials, seen, COST, H100)
    assert list(found["said"]) == [BACKED, UNBACKED, BACKED, TOO_LITTLE]
    assert found["demanded"][0] == pytest.approx(1300 * COST.embed.total / 989.4e12)  # type: ignore[union-attr]
    (sentence,) = work.unbacked_sentences(found)
    assert sentence.startswith("embedder alone, trial 2: rate not backed by work: tensor cores were active for 1.0%")
    assert work.work_sentence(found).startswith("2 of 3 trials that can be judged did the work")
    shown = run_tables.work(work.by_step(found))
    assert list(shown["Says"]) == ["rate not backed by work (1 of 2 trials)", BACKED, TOO_LITTLE]


def test_each_device_answers_for_its_own_part() -> None:
    """The embedder on GPU 1 does nothing while the LLM fills GPU 0: together they would look busy enough."""
    both = trial("configA", gen_tokens_per_s=9000.0, embed_sequences_per_s=600.0, embed_devices=("1",))
    found = work.work_of_trials(
        pd.DataFrame([both]), samples({("configA", 1, "0"): 0.3, ("configA", 1, "1"): 0.0}), COST, H100
    )
    assert list(found["said"]) == [BACKED, UNBACKED]
    sharded = trial("configB", gen_tokens_per_s=9000.0, gen_devices=("0", "1"), embed_devices=("0", "1"))
    halves = work.work_of_trials(
        pd.DataFrame([sharded]), samples({("configB", 1, "0"): 0.1, ("configB", 1, "1"): 0.1}), COST, H100
    )
    assert halves["gen_tflops"].sum() == pytest.approx(9000 * COST.gen.total / 1e12)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "given",
    [{"mechanism": "mig"}, {"embed_unproved": "nobody listens here"}, {"embed_devices": ("7",)}],
    ids=["an instance of MIG", "an embedder that is not found", "a device without samples"],
)
def test_what_cannot_be_told_is_not_judged(given: dict[str, Any]) -> None:
    trials = pd.DataFrame([trial("step4", gen_devices=(), **{"embed_sequences_per_s": 1300.0} | given)])
    found = work.work_of_trials(trials, samples({("step4", 1, "0"): 0.0}), COST, H100)
    assert set(found["said"]) == {NOT_KNOWN}
    assert "not known" in work.work_sentence(found)
    assert work.unbacked_sentences(found) == []


def test_number_formats_decide_which_cores_multiply() -> None:
    configs = {"gen": LLAMA, "embed": E5}
    plain = work.cost_of(Params(device="cuda"), configs, H100)
    assert plain.gen is not None
    assert plain.gen.fp8 == 0
    quick = work.cost_of(Params(device="cuda", gen_quantization="fp8"), configs, H100)
    assert quick.gen is not None
    assert quick.gen.fp8 > 0
    assert (
        work.cost_of(Params(device="cuda", gen_quantization="fp8"), configs, A100).gen
        == work.cost_of(Params(device="cuda"), configs, A100).gen
    )
    slow = work.cost_of(Params(device="cuda", gen_dtype="float32"), configs, H100)
    assert slow.gen is None, "float32 needs no tensor cores"
    assert slow.embed == plain.embed, "each by its own"
    assert work.cost_of(Params(), configs, H100) == Cost(None, None), "cores multiply float32"


def test_no_recorded_rate_is_accused_and_what_is_known_of_them_holds() -> None:
    runs = [open_run(folder) for folder in sorted(RECORDED.glob("h200-big-*")) if folder.is_dir()]
    runs += [run for folder in sorted(RECORDED.glob("h100-x2-*")) if folder.is_dir()
             for run in list(open_sweep(folder).runs.values())[:1]]  # fmt: skip
    found = pd.concat([RunAnalysis(run).work for run in runs])
    assert UNBACKED not in set(found["said"])
    told = found[found["said"] == BACKED]
    assert len(told) > 20
    assert told["ratio"].min() > 0.95, "the equation asks for no more than kernels do"
    assert told["ratio"].median() < 1.2
