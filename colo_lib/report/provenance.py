"""What was run on what, and where every number comes from, out of the manifest."""

from __future__ import annotations

from typing import Any

from colo_lib.data.capture import captured_steps
from colo_lib.data.run import Run
from colo_lib.params import Params
from colo_lib.records import ModelFacts
from colo_lib.steps import STEPS, WORKLOADS

WEIGHTS = {
    "dummy": "random weights (true architecture, no published model)",
    "hub": "published weights",
}
WEIGHTS_SHORT = {"dummy": "random weights", "hub": "published weights"}


def in_one_line(run: Run) -> str:
    """Hardware, models with their weights, and versions, for the first lines of a page."""
    machine = run.manifest.machine
    models = [run.manifest.model_of(name) for name in ("gen", "embed")]
    named_models = [f"{_recorded(model.name)} ({weights_of(model)})" for model in models]
    versions = machine.versions or {}
    named = [f"{name} {versions[name]}" for name in ("vllm", "torch") if versions.get(name)]
    named += [f"driver {machine.driver}"] if machine.driver else []
    return (
        f"{_recorded(machine.device_count)} × {_recorded(machine.device_name)}; LLM: {named_models[0]}; "
        f"embedder: {named_models[1]}; {', '.join(named) or 'versions not recorded'}."
    )


def weights_of(model: ModelFacts) -> str:
    """Whose weights a model of the manifest ran with, in two words."""
    return WEIGHTS_SHORT.get(str(model.weights), "weights not recorded")


EMBED_ENGINES = {
    "transformers": "one after the other in a transformers loop",
    "vllm": "by a vLLM server of its own, {} requests in flight",
    "url": "by a server that ran already, {} requests in flight",
}


# arrivals -> when requests are due
DUE = {"poisson": "due at random moments", "constant": "due evenly"}


def embed_engine_of(params: Params) -> str:
    """What embeds, and how many requests it has at once, in words."""
    if params.embed_arrivals != "closed":
        how = EMBED_ENGINES[params.embed_engine].partition(",")[0]
        return f"{how}, {params.embed_rate:g} sequences/s {DUE[params.embed_arrivals]}"
    return EMBED_ENGINES[params.embed_engine].format(params.embed_concurrency)


def gen_load_of(params: Params) -> str:
    """How many requests the LLM has at once, or how many come a second."""
    if params.gen_arrivals != "closed":
        return f"{params.gen_rate:g} requests/s {DUE[params.gen_arrivals]}"
    return f"{params.gen_concurrency} request{'' if params.gen_concurrency == 1 else 's'} in flight"


def what_was_run(run: Run) -> list[tuple[str, object]]:
    """Name and value pairs for the first screen."""
    machine, versions = run.manifest.machine, run.manifest.machine.versions or {}
    counted = int((run.trials["status"] == "done").sum())
    pairs: list[tuple[str, object]] = [
        ("Devices", f"{_recorded(machine.device_count)} × {_recorded(machine.device_name)}")
    ]
    pairs += [(name, value) for name, value in (("Driver", machine.driver), ("CUDA", machine.cuda)) if value]
    pairs += [(f"Model of the {who}", _model(run.manifest.model_of(name))) for name, who in WORKLOADS.items()]
    params = run.params
    pairs += [
        (
            "Load of the LLM",
            f"{gen_load_of(params)}, {params.gen_prompt_tokens} tokens in, "
            f"{params.gen_output_tokens} out{', eager: no CUDA graphs' if params.gen_enforce_eager else ''}",
        ),
        (
            "Load of the embedder",
            f"batches of {params.embed_batch_size} sequences of {params.embed_sequence_tokens} tokens, "
            + embed_engine_of(params),
        ),
        (
            "Trials",
            f"{counted} of {len(run.trials)} count; {params.blocks} block{'' if params.blocks == 1 else 's'}, "
            f"windows of {params.window_s:g} s after {params.warmup_s:g} s of warm-up",
        ),
        *_captures(run),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"),
        ("Run", f"{run.run_id}, {_recorded(run.manifest.created_utc)} to {_recorded(run.manifest.finished_utc)}"),
    ]
    return pairs


def _captures(run: Run) -> list[tuple[str, object]]:
    """A line on the captures of a run that was to have some, with the reason for each that it lacks."""
    captures = run.manifest.captures
    if not captures:
        return []
    recorded = [str(capture.step) for capture in captures if capture.status == "done"]
    readable = captured_steps(run.folder) if run.params.device == "cuda" else recorded
    done = [step for step in recorded if step in readable]
    lacking: dict[str, list[str]] = {}
    for capture in captures:
        if capture.step not in done:
            reason = capture.reason if capture.status != "done" else "no kernels of it can be read"
            lacking.setdefault(str(reason), []).append(_name_of(run, capture.step))
    names = "; ".join(_name_of(run, step) for step in done)
    sentences = [f"{len(done)} of {len(captures)} steps" + (f" ({names})" if done else "")]
    sentences += [f"{in_quotes(steps)}: {reason}" for reason, steps in lacking.items()]
    return [("Captures", "; MISSING ".join(sentences))]


def _name_of(run: Run, step: str) -> str:
    return STEPS[step].name_on(run.params.device)


def in_quotes(names: list[str]) -> str:
    """Names of steps, which may hold commas themselves: several are set in quotes."""
    return names[0] if len(names) == 1 else ", ".join(f"'{name}'" for name in names)


def facts_of(run: Run) -> dict[str, Any]:
    """The provenance section: commit, machine, parameters, order of trials, checksums, as its template takes them."""
    machine = run.manifest.machine
    cleanness: dict[bool | None, str] = {True: "with uncommitted changes", False: "clean"}
    dirty = cleanness.get(machine.git_dirty, "cleanness not recorded")
    measured, total = run.manifest.measured_s, run.manifest.total_s
    share = f" ({measured / total:.0%} of the time measured)" if measured and total else ""
    params = [[str(name), _recorded(value)] for name, value in run.manifest.params.items()]
    sums = [[name, str(entry.bytes), entry.sha256] for name, entry in run.manifest.files.items()]
    return {
        "commit": [
            ("Commit", f"{_recorded(machine.git_commit)}, {dirty}"),
            ("Time", f"{_seconds(measured)} in windows of {_seconds(total)} in all{share}"),
            ("Clock", "CLOCK_MONOTONIC in ns, one for every process of the host"),
            ("Interval", "95 %: Student's t over starts of the engines, paired by block; docs/statistics.md"),
        ],
        "machine": [
            (name, _recorded(value)) for name, value in machine.plain().items() if not isinstance(value, dict | list)
        ],
        "parameters": _part(["Parameter", "Value"], params, "As resolved when the run started."),
        "order": [
            f"{_name_of(run, row.step)}, trial {row.trial}, block {row.block}: {row.status}"
            for row in run.trials.itertuples()
        ],
        "files": _part(["File", "Bytes", "sha256"], sums, "Files of the run folder."),
    }


def _part(columns: list[str], rows: list[list[str]], caption: str) -> dict[str, Any]:
    return {"columns": columns, "rows": rows, "caption": caption}


def _model(model: ModelFacts) -> str:
    count = model.parameters
    size = "size not recorded"
    if isinstance(count, int | float):
        size = f"{count / 1e9:.2g} billion parameters" if count >= 1e9 else f"{count / 1e6:.3g} million parameters"
    weights = WEIGHTS.get(str(model.weights), f"weights: {_recorded(model.weights)}")
    kind = ", ".join([_recorded(model.architecture), size, _recorded(model.dtype)])
    return f"{_recorded(model.name)} ({kind}); {weights}"


def _seconds(value: object) -> str:
    return f"{value:.0f} s" if isinstance(value, int | float) else "not recorded"


def _recorded(value: object) -> str:
    return "not recorded" if value is None or value == "" else str(value)
