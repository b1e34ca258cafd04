"""The published runs: recomputed, beside each other and any run, and their explanations against their own figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from colo_lib.analysis.loss import Loss, PerToken, decompose_loss
from colo_lib.data.published import printed_figure
from colo_lib.records import Manifest
from colo_lib.steps import STEPS as BY_ID

# metric -> (label, unit): what a published run and a run of this workbook have in common
SHARED_METRICS = {
    "gen_tokens_per_s": ("LLM throughput", "tokens/s"),
    "embed_sequences_per_s": ("Embedder throughput", "sequences/s"),
    "gen_kept": ("LLM kept fraction", ""),
    "embed_kept": ("Embedder kept fraction", ""),
    "aggregate": ("Aggregate (LLM + embedder kept)", ""),
    "utilization": ("Device utilisation", "%"),
    "memory_utilization": ("Memory-bandwidth utilisation", "%"),
    "sm_clock_mhz": ("SM clock", "MHz"),
    "power_w": ("Power", "W"),
    "temperature_c": ("Temperature", "°C"),
}
STEPS = ("step1", "step2", "step3", "step4")
# The later runs read the device's own counters instead, and have steps besides.
UNREAD_LATER = ("utilization", "memory_utilization", "sm_clock_mhz", "temperature_c")
LATER_METRICS = {name: each for name, each in SHARED_METRICS.items() if name not in UNREAD_LATER} | {
    "sm_active": ("SM activity", "%"),
    "sm_occupancy": ("SM occupancy, measured", "%"),
    "tensor_active": ("Tensor-core activity", "%"),
    "dram_active": ("DRAM bandwidth in use", "%"),
}
LATER_STEPS = ("step1", "mps-alone", "step2", "step3", "mig", "step4")
LATER_ALONE = "later-alone"  # the LLM alone by requests in flight
OF_ONE = "of 1"  # unit of shares that were printed as fractions; they are shown in %
POINT_COLUMNS = ["run", "step", "metric", "low", "mean", "high", "starts"]
CONDITIONS = {
    "gpu": "Device",
    "gen_model": "Model of the LLM",
    "embed_model": "Model of the embedder",
    "weights": "Weights",
    "gen_quantization": "Quantisation of the LLM",
    "gen_concurrency": "Requests in flight",
    "gen_prompt_tokens": "Prompt, tokens",
    "gen_output_tokens": "Output, tokens",
    "embed_batch_size": "Embedder batch, sequences",
    "embed_sequence_tokens": "Embedder sequence, tokens",
    "gen_enforce_eager": "Eager (no CUDA graphs)",
    "step2_mechanism": "Mechanism with both at once",
    "vllm": "vLLM version",
    "driver": "Driver",
}
LATER_CONDITIONS = CONDITIONS | {"embed_engine": "The embedder runs in"}
UNTOLD = "not told"


def recomputed(figures: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Every printed change beside the one that the printed figures give; `agrees` to the rounding printed.

    Columns: run, where, metric, printed, low, high (recomputed, in the unit printed), agrees.
    """
    rows = []
    for row in changes.itertuples():
        mine = printed_figure(figures, row.run, row.metric, row.step)
        base = printed_figure(figures, row.run, row.metric, row.against)
        alone = printed_figure(figures, row.run, row.metric, "step1")[0]
        low, high = (_change(row.kind, *pair, alone) for pair in zip(mine, base, strict=True))
        agrees = _rounds_to(low, row.low, row.digits) and _rounds_to(high, row.high, row.digits)
        rows.append((row.run, row.where, row.metric, row.printed, low, high, agrees))
    return pd.DataFrame(rows, columns=["run", "where", "metric", "printed", "low", "high", "agrees"])


def _change(kind: str, value: float, base: float, alone: float) -> float:
    """change: % of the base gained or lost; kept: % of it left; times: the ratio; points: in % of the rate alone."""
    if kind == "points":
        return (value - base) / alone * 100
    return {"change": value / base * 100 - 100, "kept": value / base * 100, "times": value / base}[kind]


def identities(figures: pd.DataFrame) -> pd.DataFrame:
    """Figures that follow from others of the same table: run, what, printed, recomputed, agrees (to its rounding)."""
    recomputed_figures = [*_trace_identities(figures), *_overlap_identities(figures)]
    rows = [
        (run, what, printed, value, _rounds_to(value, printed, digits))
        for run, what, printed, value, digits in recomputed_figures
    ]
    return pd.DataFrame(rows, columns=["run", "what", "printed", "recomputed", "agrees"])


def _trace_identities(figures: pd.DataFrame) -> list[tuple[str, str, float, float, int]]:
    def printed(metric: str, item: str = "") -> float:
        return printed_figure(figures, "trace", metric, "step1", item)[0]

    kernels, busy_ms, span_ms = printed("gen_kernels"), printed("kernel_time_ms"), printed("trace_span_ms")
    rows = [
        ("trace", "mean kernel duration, us", printed("gen_kernel_mean_us"), busy_ms * 1e3 / kernels, 1),
        ("trace", "GPU idle fraction, %", printed("gpu_idle"), (1 - busy_ms / span_ms) * 100, 1),
        ("trace", "mean gap, us", printed("mean_gap_us"), (span_ms - busy_ms) * 1e3 / kernels, 1),
    ]
    mine = figures[(figures["run"] == "trace") & (figures["table"] == "categories")]
    names = list(dict.fromkeys(mine["item"]))
    rows.append(("trace", "kernels of all categories", kernels, sum(printed("gen_kernels", name) for name in names), 0))
    for name in names:
        share = printed("kernel_time_ms", name) / busy_ms * 100
        rows.append(("trace", f"share of kernel time, %: {name}", printed("kernel_time_share", name), share, 1))
    return rows


def _overlap_identities(figures: pd.DataFrame) -> list[tuple[str, str, float, float, int]]:
    rows = []
    for step in ("step2", "step3"):
        busy_ms = printed_figure(figures, "run2", "gen_kernels", step)[0] / 1e3
        busy_ms *= printed_figure(figures, "run2", "gen_kernel_mean_us", step)[0]
        of_gen = printed_figure(figures, "run2", "kernel_overlap_ms", step)[0] / busy_ms * 100
        rows.append(("run2", f"{BY_ID[step].name}: overlap, % of the LLM's kernel time",
                     printed_figure(figures, "run2", "kernel_overlap_of_gen", step)[0], of_gen, 1))  # fmt: skip
    return rows


def _rounds_to(value: float, printed: float, digits: int) -> bool:
    """Whether `value` is what was printed to `digits` decimals (a half may have been rounded either way)."""
    return bool(abs(value - printed) <= 0.5 * 10.0**-digits + 1e-9)


def points(
    figures: pd.DataFrame, run: str, metrics: Iterable[str] = SHARED_METRICS, steps: Sequence[str] = STEPS
) -> pd.DataFrame:
    """A published run on `metrics`, with kept fractions from its printed rates: `POINT_COLUMNS`.

    Its ranges are spreads of readings, not intervals. Without step 4 embed's kept fraction and aggregate are absent.
    """
    rows = []
    fractions = set(figures.loc[(figures["run"] == run) & (figures["unit"] == OF_ONE), "metric"])
    for metric in metrics:
        for step in steps:
            factor = 100 if metric in fractions else 1
            low, high = (value * factor for value in printed_figure(figures, run, metric, step))
            if np.isfinite(low):
                rows.append((run, step, metric, low, (low + high) / 2, high, np.nan))
    for step in [step for step in steps if BY_ID[step].runs_gen and step != "step1"]:
        kept = {}
        for name, metric, base in (("gen_kept", "gen_tokens_per_s", "step1"),
                                   ("embed_kept", "embed_sequences_per_s", "step4")):  # fmt: skip
            alone = printed_figure(figures, run, metric, base)[0]
            low, high = printed_figure(figures, run, metric, step)
            if np.isfinite([alone, low]).all():
                kept[name] = (low / alone, high / alone)
        if len(kept) == 2:
            kept["aggregate"] = (kept["gen_kept"][0] + kept["embed_kept"][0],
                                 kept["gen_kept"][1] + kept["embed_kept"][1])  # fmt: skip
        rows += [(run, step, name, low, (low + high) / 2, high, np.nan) for name, (low, high) in kept.items()]
    return pd.DataFrame(rows, columns=POINT_COLUMNS)


def own_points(
    run_id: str,
    rates: pd.DataFrame,
    kept: pd.DataFrame,
    telemetry: pd.DataFrame,
    metrics: Iterable[str] = SHARED_METRICS,
    steps: Sequence[str] = STEPS,
) -> pd.DataFrame:
    """A run of this workbook on the same metrics; low and high are its 95 % interval, or null.

    `rates`: `steps_table` rows of throughput; `kept`: `kept_fractions`; `telemetry`: `telemetry_summary`.
    """
    rows = []
    labels = {label: metric for metric, (label, _) in SHARED_METRICS.items()}
    for row in rates[rates["row"].isin(labels) & rates["step"].isin(steps)].itertuples():
        if row.row.endswith("throughput"):
            rows.append((run_id, row.step, labels[row.row], row.low, row.mean, row.high, row.starts))
    names = {"gen": "gen_kept", "embed": "embed_kept", "aggregate": "aggregate"}
    for row in kept[kept["step"].isin(steps) & kept["quantity"].isin(names)].itertuples():
        rows.append((run_id, row.step, names[row.quantity], row.low, row.mean, row.high, row.starts))
    devices = telemetry[(telemetry["scope"] == "device") & telemetry["metric"].isin(list(metrics))]
    for (step, metric), group in devices[devices["step"].isin(steps)].groupby(["step", "metric"], sort=False):
        rows.append((run_id, step, metric, np.nan, float(group["mean"].mean()), np.nan, np.nan))
    return pd.DataFrame(rows, columns=POINT_COLUMNS)


def all_points(
    figures: pd.DataFrame, run_id: str, rates: pd.DataFrame, kept: pd.DataFrame, telemetry: pd.DataFrame
) -> pd.DataFrame:
    """The three published runs and one's own: `points` and `own_points` in one frame."""
    theirs = [points(figures, run) for run in ("run1", "run2", "run3")]
    return pd.concat([*theirs, own_points(run_id, rates, kept, telemetry)], ignore_index=True)


def later_points(
    figures: pd.DataFrame, run_id: str, rates: pd.DataFrame, kept: pd.DataFrame, telemetry: pd.DataFrame
) -> pd.DataFrame:
    """The later runs with figures of several steps, and one's own, on `LATER_METRICS` and `LATER_STEPS`."""
    runs = [run for run in dict.fromkeys(figures["run"]) if run != LATER_ALONE]
    theirs = [points(figures, run, LATER_METRICS, LATER_STEPS) for run in runs]
    mine = own_points(run_id, rates, kept, telemetry, LATER_METRICS, LATER_STEPS)
    return pd.concat([*theirs, mine], ignore_index=True)


def alone_by_load(figures: pd.DataFrame, mine: pd.DataFrame, in_flight: int) -> pd.DataFrame:
    """The LLM alone by requests in flight: run, in_flight and a column a metric; one's own point (`points`) last."""
    rows = figures[figures["run"] == LATER_ALONE]
    theirs = rows.pivot_table(index="item", columns="metric", values="low", sort=False)
    theirs.insert(0, "in_flight", theirs.index.astype(int))
    theirs.insert(0, "run", LATER_ALONE)
    alone = mine[mine["step"] == "step1"].set_index("metric")["mean"].reindex(theirs.columns[2:])
    own = pd.DataFrame([{"run": "this run", "in_flight": in_flight, **alone.to_dict()}])
    return pd.concat([theirs, own], ignore_index=True)


def conditions_of(manifest: Manifest, trials: pd.DataFrame) -> dict[str, Any]:
    """A run's conditions under the names of `CONDITIONS`, out of its manifest and its trials."""
    params, machine = manifest.params, manifest.machine
    conditions = {name: params[name] for name in LATER_CONDITIONS if name in params}
    conditions |= {f"{name}_model": manifest.model_of(name).name for name in ("gen", "embed")}
    conditions |= {"gpu": machine.device_name, "driver": machine.driver}
    conditions["weights"] = manifest.model_of("gen").weights or conditions.get("weights")
    conditions["step2_mechanism"] = dict(zip(trials["step"], trials["mechanism"], strict=True)).get("step2")
    conditions.setdefault("embed_engine", "transformers")  # runs from before there was another
    return conditions | {"vllm": (machine.versions or {}).get("vllm")}


def differences(
    published: Mapping[str, Mapping[str, Any]], mine: Mapping[str, Any], conditions: Mapping[str, str] = CONDITIONS
) -> pd.DataFrame:
    """A row a condition of `conditions`: label, a column a published run, `this run`, and the runs that differ.

    What one side did not tell counts as different: alike is only what is known to be alike.
    """
    rows = []
    for name, label in conditions.items():
        theirs = {run: _condition(facts, name) for run, facts in published.items()}
        ours = _condition(mine, name)
        unlike = [run for run, value in theirs.items() if value != ours or value == UNTOLD]
        rows.append({"condition": label, **theirs, "this run": ours, "differs from": ", ".join(unlike) or "none"})
    return pd.DataFrame(rows)


def _condition(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get("mechanisms", {}).get("step2") if name == "step2_mechanism" else None
    value = facts.get(name) if value is None else value
    if value is None or (value == "" and name != "gen_quantization"):
        return UNTOLD
    return "none" if value == "" else str(value).lower() if isinstance(value, bool) else str(value)


RUNS = ("run1", "run2", "run3")
COLUMNS = ["run", "where", "explanation", "figures_say"]


def losses(figures: pd.DataFrame) -> dict[tuple[str, str], Loss]:
    """(run, step) -> the decomposition as far as its figures allow; ranges enter by their middle.

    Run 2 printed mean kernel durations but no kernels per token: busy time alone is taken as all of the time alone,
    the most that it can be, so that what is called gap time is the least that it can be. Under time-slicing its
    kernel intervals hold switched-out time. The other runs printed no kernel durations in shared steps.
    """
    by_run = {}
    for run in RUNS:
        for step in ("step2", "step3"):
            alone, shared = (_per_token(figures, run, which) for which in ("step1", step))
            by_run[run, step] = decompose_loss(alone, shared)
    return by_run


def _per_token(figures: pd.DataFrame, run: str, step: str) -> PerToken:
    total_ns = 1e9 / _middle(figures, run, "gen_tokens_per_s", step)
    mean_us, alone_us = (_middle(figures, run, "gen_kernel_mean_us", which) for which in (step, "step1"))
    alone_ns = 1e9 / _middle(figures, run, "gen_tokens_per_s", "step1")
    busy_ns = None if np.isnan(mean_us) else alone_ns * mean_us / alone_us
    return PerToken(total_ns, busy_ns, None, _middle(figures, run, "sm_clock_mhz", step), clipped=step != "step3")


def _middle(figures: pd.DataFrame, run: str, metric: str, step: str) -> float:
    return float(np.mean(printed_figure(figures, run, metric, step)))


def explanations(figures: pd.DataFrame) -> pd.DataFrame:
    """A row an explanation that the published runs give and that their figures do not bear out: `COLUMNS`."""
    by_run = losses(figures)
    rows = [*_clock_rows(figures, by_run), *_capture_rows(figures), *_run3_rows(figures, by_run)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _clock_rows(figures: pd.DataFrame, by_run: dict[tuple[str, str], Loss]) -> list[tuple[str, ...]]:
    run1, run2 = by_run["run1", "step2"], by_run["run2", "step2"]
    fell = 1 - _middle(figures, "run1", "sm_clock_mhz", "step2") / _middle(figures, "run1", "sm_clock_mhz", "step1")
    most = (run1.clock_at_most_ns or 0.0) / float(run1.total_ns)
    fell_2 = 1 - _middle(figures, "run2", "sm_clock_mhz", "step2") / _middle(figures, "run2", "sm_clock_mhz", "step1")
    clock, busy = float(run2.parts[("clock",)]), float(run2.parts[("clock",)] + run2.parts[("contention",)])
    total = float(run2.total_ns)
    grew = printed_figure(figures, "run2", "gen_kernel_mean_us", "step2")[0]
    grew = grew / printed_figure(figures, "run2", "gen_kernel_mean_us", "step1")[0] - 1
    return [
        ("run1", "finding 2", "Lower clocks destroyed generative throughput.",
         f"Under MPS the clock fell by {fell:.0%} (middle of the ranges). If all of a token scaled with it, "
         f"that is {most:.0%} of the time lost per token; no figure of this run names the cause of the rest."),
        ("run2", "finding 3, conclusion", "The throughput drop comes from power-limited clock reduction.",
         f"The clock fell by {fell_2:.0%} and a token took {total / run2.alone.total_ns:.0%} longer: clocks explain at "
         f"most {clock / 1e6:.1f} of {total / 1e6:.1f} ms ({clock / total:.0%})."),
        ("run2", "finding 4", "Fewer kernels ran because of lower clocks; single kernels barely slowed.",
         f"Both cannot be: a lower clock shows in the kernels' own durations. These grew by {grew:.0%}, at most "
         f"{busy / 1e6:.1f} ms a token; {1 - busy / total:.0%} of the loss or more is time in which no kernel of the "
         "LLM ran: waiting for the device or host, which these figures do not tell apart."),
    ]  # fmt: skip


def _capture_rows(figures: pd.DataFrame) -> list[tuple[str, ...]]:
    def ratio(metric: str, step: str) -> float:
        return printed_figure(figures, "run2", metric, step)[0] / printed_figure(figures, "run2", metric, "step1")[0]

    kernels = [ratio("gen_kernels", step) for step in ("step2", "step3")]
    rates = [ratio("gen_tokens_per_s", step) for step in ("step2", "step3")]
    return [
        ("run2", "results table", "The captures stand beside the throughputs as if both showed the same run.",
         f"A token takes the same kernels in every step, yet kernels fell to {kernels[0]:.0%} and {kernels[1]:.0%}, "
         f"tokens/s fell to {rates[0]:.0%} (MPS) and {rates[1]:.0%} (time-sliced), and both shared captures hold the "
         "same number: captures and throughputs come from unlike windows, profiled and not."),
        ("run2", "finding 2", "Kernels overlapped by 96.7 % under time-slicing.",
         "Under time-slicing a kernel's interval holds the time in which its context was switched out: an upper bound, "
         "not concurrency. It needs context-switch rows."),
    ]  # fmt: skip


def _run3_rows(figures: pd.DataFrame, by_run: dict[tuple[str, str], Loss]) -> list[tuple[str, ...]]:
    loss = float(by_run["run3", "step2"].total_ns) / 1e6
    kept = [printed_figure(figures, "run3", "gen_tokens_per_s", step)[0] for step in ("step1", "step2", "step3")]
    return [
        ("run3", "conclusion", "The loss comes from SM scheduling contention.",
         f"Clocks stayed at 1980 MHz, so they explain none of it. Of the {loss:.2f} ms that a token took longer under "
         "MPS nothing more can be told: no kernel durations of a shared step were printed, so contention, waiting for "
         "the device and host are one part."),
        ("run3", "finding 2", "MPS preserves 2.3x more gen throughput than time-slicing.",
         f"It preserves {kept[1] / kept[2]:.2f} times as much ({kept[1]} against {kept[2]} tokens/s); 2.3 is the ratio "
         f"of the losses ({(kept[0] - kept[2]) / (kept[0] - kept[1]):.2f})."),
        ("trace", "key insight", "The idle fraction of 90.7 % shows what the embedder could have filled in run 3.",
         "The trace is of an eager engine under the profiler, run 3 used CUDA graphs and no profiler, and the trace's "
         "token rate was not printed: an idle fraction of one is not that of the other."),
        ("trace", "top kernels", "fused_moe_kernel is the only kernel that saturates the SMs.",
         "The same list gives flash attention a mean of 132 blocks on 132 SMs, and the table lists 11.6 % of all "
         "kernels as filling every SM."),
    ]  # fmt: skip
