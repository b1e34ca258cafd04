"""Nothing is shared by accident: a secret planted in any field of a record, and in any file, is not in the copy."""

from __future__ import annotations

import copy
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib import paths
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trial_metrics import measure_trials
from colo_lib.cli import main
from colo_lib.data.run import Run, open_run
from colo_lib.data.scrub import Scrubber
from colo_lib.report import share_rules
from colo_lib.report.share import share, share_sweep
from colo_lib.report.share_tables import RECORDS as TABLES
from colo_lib.report.share_tables import START_FIELDS
from tests.run_folders import Plan, add_capture, change_manifest, reseal, write_run

CANARY = "zqxcanary"
UUIDS = ("GPU-7bbd9648-4e0c-14ea-032b-d01606c3c64b", "GPU-360deebe-363b-de88-f122-0fca91b95b2e")
DISGUISES = (
    "{}", "/home/{}/x", "_/srv/{}", "</opt/{}/y>", "[/{}]", "//{}/share", "k=/data/{}", "a:/data/{}", "'~/{}/my own/x'",
    "C:\\Users\\{}\\x", "~{}/x", "hf_{}77", "sk-{}-0123", "--token {}1", "Bearer {}.1", "https://{}:8000/v1", "{}@host",
    "{}.example.com:22", "ran on {}", "gen and {} and embed", "first line\n{}", "GPU-{}-1", "MIG-{}-2", "done {}",
    "2026-11-24T20:42:41Z {}", "1.2.3+{}", "Linux-6.1-{}-x86_64", "NVIDIA {} H100",
)  # fmt: skip
MIG_UUID = "MIG-1a2b3c4d-0000-1111-2222-333344445555"
EVIDENCE = {
    "mechanism": "mps", "daemon_pid": 1, "servers": [[2, 3.5]], "clients": [4], "attached": {"gen": [4], "embed": [5]},
    "other_clients": [6], "partition": {"backend": "green-context", "all_sms": 132, "held_sms": 32},
    "limits": {"gen": {"thread_percentage": 100, "priority": "normal", "memory_limit_gib": None, "visible_sms": [132]}},
    "gpus": list(UUIDS), "nvml_lists_them": "NVML: not supported", "default_daemon": True, "processes": 4,
    "mps_variables": {"7": {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/x"}}, "mps_clients_by_nvml": "not supported",
    "instances": {"gen": {"uuid": MIG_UUID, "profile": "3g.71gb", "gib": 71, "sms": 60}},
    "listed_by_nvml": {"gen": [4], "embed": []},
}  # fmt: skip
TRIAL = {
    "schema_version": 1, "step": "step2", "trial": 1, "block": 1, "mechanism": "mps", "status": "invalid",
    "reason": "other processes used 0.52 cores", "devices": {"gen": ["0", UUIDS[0]], "embed": [["1"]]},
    "pids": {"gen": [4], "embed": [5]}, "latency_clock": "client", "measured_in": "cell-001",
    "pacing": {"kind": "duty", "micro_batch_size": 0, "duty": 0.5}, "window_start_ns": 1, "window_end_ns": 2,
    "gen_tokens": 5, "neighbour": "under load", "drift_fraction": {"gen": 0.1, "embed": None},
    "memory_gib": {"gen": 1.0, "embed": 1.0, "free": 3.0}, "memory_parts_gib": {"gen": {"weights": 1.0, "rest": 2.0}},
    "telemetry": {
        "absent": {UUIDS[0]: {"dram_active": "GPM: not a number"}}, "totals_gib": {"0": 140.4},
        "strangers_unknown": "no",
        "gaps": [{"start_ns": 1, "end_ns": 2, "reason": "the sampler gave no sample for 3 s"}],
    },
    "mechanism_evidence": {"before": EVIDENCE, "after": EVIDENCE},
}  # fmt: skip
CAPTURE = {
    "schema_version": 1, "step": "step2", "mechanism": "mps", "status": "done", "reason": "no", "joint_reason": "no",
    "window_ns": [1, 9], "recorded_window_ns": [0, 10], "clock": {"monotonic_ns": 1, "utc_ns": 2},
    "devices": {"gen": ["0"], "embed": [["0"]]}, "pids": {"gen": [4], "embed": [5]}, "traced": "cuda",
    "granularity": "node", "context_switches": True, "visible_devices": {"4": ["0", UUIDS[1]]},
    "mechanism_evidence": EVIDENCE, "exports": ["trace.sqlite"], "nsys_version": "2024.2.3.38",
    "command": ["/opt/nvidia/nsys", "launch", "--session-new=colo-322613e7", "--trace=cuda,nvtx"], "sessions": "joint",
}  # fmt: skip
MACHINE = {
    "stand_in": False, "device_kind": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "device_count": 1,
    "driver": "580.159.04", "cuda": "13.0", "cpu": "Intel(R) Xeon(R) Processor", "cores": 16, "boot_id": "a1b2",
    "gpu": {"name": "NVIDIA H200", "uuid": UUIDS[0], "driver": "580.159.04", "cuda": "13.0", "ecc": [1, 1]},
    "os": "Linux-6.18.44-x86_64-with-glibc2.39", "versions": {"python": "3.12.3", "torch": "2.13.0+cpu"},
    "vllm_settings": {"VLLM_USE_DEEP_GEMM": "0", "VLLM_ATTENTION_BACKEND": "FLASH_ATTN", "VLLM_CACHE_ROOT": "cache"},
    "git_commit": "0" * 40, "git_dirty": False,
}  # fmt: skip
PARAMS = {
    "run_name": "h100", "runs_dir": "runs", "run": "", "sweep": "", "sweeps_dir": "sweeps", "exports": "",
    "exports_alone": "", "trace_step": "", "trace_gen": "", "trace_embed": "", "trace_window": "", "devices": "0",
    "steps": "step1,step2", "capture_steps": "", "gen_model": "tiny-gen", "embed_model": "tiny-embed",
    "gen_python": "auto", "embed_python": "auto", "gen_extra_args": "--max-num-batched-tokens 2048", "device": "cuda",
    "mig_gen_uuid": "", "mig_embed_uuid": "", "weights": "dummy", "interleave": "all", "blocks": 3, "window_s": 6.0,
}  # fmt: skip
ROW = {"step": "step1", "status": "done", "reason": "no"}
MANIFEST = {
    "schema_version": 1, "run_id": "h100-20261124-204241", "status": "done", "created_utc": "2026-11-24T20:42:41Z",
    "finished_utc": "2026-11-24T20:59:33Z", "params": PARAMS, "machine": MACHINE, "notes": ["the GPU was warm"],
    "models": {"gen": {"name": "tiny-gen", "architecture": "Qwen3ForCausalLM", "parameters": 1, "weights": "dummy",
                       "dtype": "float32"}},
    "budget": [{"device": "0,1", "available_gib": 20.0, "parts": {"gen weights": 0.5}}],
    "trials": [ROW | {"trial": 1, "block": 1, "folder": "steps/step1/trial-1"}],
    "captures": [ROW | {"folder": "steps/step1/capture"}],
    "measured_s": 1.0, "total_s": 2.0, "shared": {"removed": {"paths": 2}},
}  # fmt: skip
SWEEP = {
    "schema_version": 1, "sweep_id": "h100-20261124-204241", "created_utc": "2026-11-24T20:42:41Z", "params": PARAMS,
    "jointly": True, "over": [{"names": ["gen_extra_args", "embed_pacing"], "values": [["--seed 1", "duty"]]}],
    "cells": [{"cell": "cell-001", "changes": {"gen_extra_args": "--seed 1", "embed_pacing": "duty", "blocks": 1}}],
}  # fmt: skip
CELL = {"cell": "cell-001", "status": "failed", "reason": "no", "attempts": 1, "host": "", "total_s": 1.0}
RECORDS: dict[str, tuple[dict[str, Any], share_rules.Rule]] = {
    "trial.json": (TRIAL, TABLES["trial.json"]),
    "capture.json": (CAPTURE, TABLES["capture.json"]),
    "start.json": ({name: MANIFEST[name] for name in START_FIELDS}, TABLES["start.json"]),
    "manifest.json": (MANIFEST, TABLES["manifest.json"]),
    "sweep.json": (SWEEP, TABLES["sweep.json"]),
    "cell.json": (CELL, TABLES["cell.json"]),
}


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a record: of objects, lists and leaves alike."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*here, key))


def changed(record: Any, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy of a record with what stands at `place` changed."""
    if not place:
        return change(record)
    found = copy.copy(record)
    found[place[0]] = changed(record[place[0]], place[1:], change)
    return found


def put(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def added(field: str, value: Any) -> Callable[[Any], Any]:
    return lambda record: record | {field: value}


def scrubber() -> Scrubber:
    scrub = Scrubber()
    scrub.folders |= {"h100-20261124-204241"}
    return scrub


def leaves(record: Any) -> list[tuple[Any, ...]]:
    """Places that hold no object and no list."""
    found = [(place, at(record, place)) for place in places(record)]
    return [place for place, value in found if not isinstance(value, dict | list)]


def at(record: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        record = record[key]
    return record


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_known_to_be_harmless_is_copied_as_it_is(name: str) -> None:
    record, rule = RECORDS[name]
    scrub = scrubber()
    once = rule(scrub, record)
    for place in leaves(record):
        text = str(at(record, place))
        if "uuid" in place or any(mark in text for mark in ("GPU-", "MIG-", "/")) or {*PRIVATE} & {*place}:
            continue
        own = tuple(scrub.device(key) if isinstance(key, str) and key in UUIDS else key for key in place)
        assert at(once, own) == at(record, place), place
    again = scrubber()
    assert rule(again, once) == once, "sharing what was shared changes nothing"
    assert not +again.counts


PRIVATE = ("boot_id", "git_dirty", "VLLM_CACHE_ROOT", "command")


@pytest.mark.parametrize("name", RECORDS)
def test_a_secret_in_any_field_is_not_in_the_copy(name: str) -> None:
    record, rule = RECORDS[name]
    for place in leaves(record):
        for disguise in DISGUISES:
            planted = changed(record, place, put(disguise.format(CANARY)))
            scrub = scrubber()
            assert CANARY not in json.dumps(rule(scrub, planted)).lower(), (place, disguise)
            assert scrub.counts.total() > 0, "what was replaced is counted"


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("new", [CANARY, 7_654_321, {"a": CANARY}, [CANARY], True])
def test_a_field_that_nobody_listed_is_private(name: str, new: Any) -> None:
    record, rule = RECORDS[name]
    for place in places(record):
        if not isinstance(at(record, place), dict):
            continue
        for field in (CANARY, "new_field"):
            planted = changed(record, place, added(field, new))
            scrub = scrubber()
            told = json.dumps(rule(scrub, planted))
            assert CANARY not in told, place
            assert '"new_field"' not in told, place
            assert "7654321" not in told, place


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4), st.sampled_from(sorted(RECORDS)), st.data())
def test_no_text_makes_the_rules_fail_or_differ_the_second_time(words: list[str], name: str, data: Any) -> None:
    record, rule = RECORDS[name]
    place = data.draw(st.sampled_from(leaves(record)))
    once = rule(scrubber(), changed(record, place, put(" ".join(words))))
    assert rule(scrubber(), once) == once


def test_the_words_of_our_own_reasons_survive() -> None:
    for words in (
        "our token rate and vLLM's own counter differ by 3.1%; gen still drifted: the window's halves differ by 60%",
        "nsys is not on PATH: install Nsight Systems; without it throughput is measured and kernel overlap is not",
        "void: mps not attached: the daemon has no server, so no engine is its client",
    ):
        assert Scrubber().text(words) == words


def test_a_gpu_has_one_number_everywhere() -> None:
    scrub = Scrubber()
    told = scrub.text(f"NVML lost {UUIDS[0]} and {UUIDS[1].lower()}: restart the host")
    assert told.startswith("NVML lost GPU 0 and GPU 1:")
    assert [scrub.device(name) for name in (UUIDS[1], UUIDS[0], "3", UUIDS[0].removeprefix("GPU-"))] == [
        *("GPU 1", "GPU 0", "3", "GPU 0")
    ]
    assert scrub.device(MIG_UUID) == "MIG 0"


def test_different_private_values_stay_different() -> None:
    """The cells of a sweep over models of one's own are not one cell."""
    scrub = Scrubber()
    own = {"names": ["gen_model"], "values": [["/data/a"], ["/data/b"], ["/data/a"], ["tiny-gen"]]}
    found = [row[0] for row in share_rules.axis(scrub, own)["values"]]
    assert found == ["(removed 1)", "(removed 2)", "(removed 1)", "tiny-gen"]


def test_arguments_of_the_server_are_kept_one_by_one() -> None:
    told = (
        f"--max-num-batched-tokens 2048 --hf-token hf_{CANARY} --enable-chunked-prefill --download-dir /data/{CANARY}"
    )
    shown = share_rules.shared_param(scrubber(), "gen_extra_args", told)
    assert shown == "--max-num-batched-tokens 2048 '(removed)' --enable-chunked-prefill '(removed)'"
    assert share_rules.shared_param(scrubber(), "gen_extra_args", shown) == shown


# --- whole folders ---------------------------------------------------------------------------------------------------


def planted_run(parent: Path) -> Path:
    """A run with a capture, and the canary in every field and file in which a run may have text of somebody."""
    run = write_run(parent, Plan(run_id="private-run", blocks=2))
    capture = add_capture(
        run, "step2", command=[f"/opt/{CANARY}/nsys", "launch"], joint_reason=f"at {CANARY}\n{CANARY}"
    )
    poison(capture / "trace.sqlite")
    for record in run.glob("steps/*/trial-*/trial.json"):
        told = json.loads(record.read_text())
        extra = {"reason": f"gen: the vLLM server ended at /home/{CANARY}/x\n{CANARY}", CANARY: CANARY}
        extra |= {"mechanism_evidence": {"before": {"gpus": [UUIDS[0]], CANARY: 1}, "after": {"gpus": [UUIDS[0]]}}}
        record.write_text(json.dumps(told | extra))
    for frame in run.glob("steps/*/trial-*/*.parquet"):
        poison_frame(frame)
    for extra in (
        "logs/gen.log",
        "notebooks/x.ipynb",
        "page.html",
        "steps/step1/trial-1/logs/embed.log",
        f"{CANARY}.txt",
    ):
        (run / extra).parent.mkdir(parents=True, exist_ok=True)
        (run / extra).write_text(f"{CANARY} {UUIDS[0]}")
    manifest = json.loads((run / paths.MANIFEST).read_text())
    own = {"gen_extra_args": f"--hf-token hf_{CANARY}", "gen_python": f"/home/{CANARY}/python", "run": f"runs/{CANARY}"}
    own |= {"exports": f"{CANARY}.sqlite", "runs_dir": f"/data/{CANARY}", "gen_model": f"{CANARY}/secret-model"}
    own |= {"devices": f"{UUIDS[0]},{UUIDS[1]}", "trace_gen": CANARY}
    manifest["params"] |= own
    machine = {"boot_id": CANARY, "os": f"Linux-{CANARY}", "host": CANARY, "git_dirty": True}
    machine |= {"vllm_settings": {"VLLM_HOST": CANARY, "VLLM_API": CANARY, CANARY: "1", "VLLM_USE_V1": CANARY}}
    manifest["machine"] |= machine | {"gpu": {"name": f"NVIDIA {CANARY}", "uuid": UUIDS[0]}}
    manifest |= {"notes": [f"ask {CANARY}@example.org"], CANARY: CANARY, "files": {}, "captures": []}
    start = {key: manifest[key] for key in ("created_utc", "params", "machine", "models", "budget", "notes")}
    (run / "start.json").write_text(json.dumps(start))
    manifest["files"] = {
        file.relative_to(run).as_posix(): entry(file) for file in sorted(run.rglob("*")) if file.is_file()
    }
    del manifest["files"][paths.MANIFEST]
    (run / paths.MANIFEST).write_text(json.dumps(manifest))
    return run


def entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def poison(export: Path) -> None:
    """The canary in what an export may have beside its numbers."""
    with closing(sqlite3.connect(export)) as database, database:
        database.executescript(f"""
            CREATE TABLE {CANARY} (a TEXT); INSERT INTO {CANARY} VALUES ('{CANARY}');
            CREATE TABLE TARGET_INFO_SYSTEM_ENV (name TEXT, value TEXT);
            INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES ('Hostname', '{CANARY}');
            UPDATE PROCESSES SET name = '/home/{CANARY}/python3 --key {CANARY}';
            UPDATE StringIds SET value = value || ' on {CANARY}' WHERE id = 0;
            UPDATE TARGET_INFO_GPU SET uuid = '{UUIDS[1]}', name = 'NVIDIA {CANARY}';
            INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_PLATFORM', '{CANARY}');
            ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL ADD COLUMN {CANARY} TEXT DEFAULT '/home/{CANARY}';
            CREATE VIEW v AS SELECT '{CANARY}';
        """)


def poison_frame(file: Path) -> None:
    """The canary in a frame's texts and metadata."""
    table = pq.read_table(file)
    columns = {name: table[name] for name in table.column_names}
    if "error" in columns:
        columns["error"] = pa.array([f"Cannot connect to host {CANARY}:80"] * len(table), pa.string())
    if file.stem == "telemetry":
        names = [UUIDS[0] if name == "0" else name for name in columns["name"].to_pylist()]
        columns["name"] = pa.array(names, pa.string())
    made = pa.table(columns, schema=table.schema).replace_schema_metadata({CANARY: CANARY})
    pq.write_table(made, file)


def everything(folder: Path) -> str:
    """All that a folder's files hold, names included, packed pages unpacked."""
    told = []
    for file in sorted(folder.rglob("*")):
        told.append(file.relative_to(folder.parent).as_posix())
        if file.is_file():
            told.append(file.read_bytes().decode("latin-1"))
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            told += [str(table.schema), str(pq.read_metadata(file).metadata), str(table.to_pydict())]
        if file.suffix == ".sqlite":
            with closing(sqlite3.connect(file)) as database:
                told += list(database.iterdump())
    return "\n".join(told)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def figures(run: Run) -> pd.DataFrame:
    return measure_trials(run.trials, run.frame, Thresholds.of(run.params)).trials.select_dtypes("number")


def test_a_planted_run_is_shared_without_its_secrets_and_measures_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planted_run(tmp_path / "runs")
    assert CANARY in everything(run)
    assert main(["share", str(run), str(tmp_path / "shared")]) == 0
    said = capsys.readouterr().out
    shared = tmp_path / "shared" / run.name
    told = everything(shared)
    assert CANARY not in told.lower()
    assert not any(uuid in told for uuid in UUIDS)
    for words in (
        "paths: ",
        "GPU identifiers: ",
        "values not known to be harmless: ",
        "fields not listed: ",
        "files: 5",
    ):
        assert words in said
    before, after = open_run(run), open_run(shared)
    pd.testing.assert_frame_equal(figures(before), figures(after))
    names = {name for trial in (1, 2) for name in after.frame("step2", trial, "telemetry")["name"]}
    assert "GPU 0" in names
    assert after.manifest.params["devices"] == "GPU 0,GPU 1"
    assert json.loads((shared / "steps/step2/trial-1/trial.json").read_text())["reason"] == (
        "gen: the vLLM server ended at (removed)"
    )


def test_sharing_a_shared_folder_changes_nothing_more(tmp_path: Path) -> None:
    first, _ = share(planted_run(tmp_path / "runs"), tmp_path / "one", capture_ms=5.0)
    second, told = share(first, tmp_path / "two", capture_ms=5.0)
    assert contents(first) == contents(second)
    assert not +told.counts


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    run = planted_run(tmp_path / "runs")
    capture = paths.capture_folder(run, "step2") / paths.CAPTURE
    capture.write_text(json.dumps(json.loads(capture.read_text()) | {"clock": None}))
    reseal(run, capture.relative_to(run).as_posix())
    assert main(["share", str(run), str(tmp_path / "out")]) == 2
    assert not list((tmp_path / "out").glob("*"))


def test_a_planted_sweep_is_shared_without_its_secrets(tmp_path: Path) -> None:
    sweep = tmp_path / "sweeps" / "a-sweep"
    cell = paths.cell_folder(sweep, "cell-001")
    run = planted_run(paths.cell_runs(cell))
    change_manifest(run, params=json.loads((run / paths.MANIFEST).read_text())["params"] | {"run_name": "cell-001"})
    own = json.loads((run / paths.MANIFEST).read_text())["params"]
    args = f"--hf-token hf_{CANARY}"
    rows = [
        {"cell": "cell-001", "changes": {"gen_extra_args": args}},
        {"cell": "cell-002", "changes": {"gen_extra_args": ""}},
    ]
    plan = {
        "schema_version": 1,
        "sweep_id": sweep.name,
        "created_utc": CANARY,
        "params": own,
        "jointly": False,
        "cells": rows,
    }
    plan |= {"over": [{"names": ["gen_extra_args"], "values": [[args], [""]]}], CANARY: CANARY}
    (sweep / paths.SWEEP).write_text(json.dumps(plan))
    (cell / paths.CELL).write_text(json.dumps(CELL | {"status": "done", "host": CANARY, "reason": f"on {CANARY}"}))
    (cell / "run.log").write_text(CANARY)
    (paths.cell_folder(sweep, "cell-002")).mkdir()
    failed = CELL | {"cell": "cell-002", "host": CANARY, "reason": f"/tmp/{CANARY}: gone\n{UUIDS[0]}"}
    (paths.cell_folder(sweep, "cell-002") / paths.CELL).write_text(json.dumps(failed))
    shared, told = share_sweep(sweep, tmp_path / "one", capture_ms=5.0)
    assert CANARY not in everything(shared).lower()
    assert UUIDS[0] not in everything(shared)
    assert told.counts["files"] == 5 + 1
    again, _ = share_sweep(shared, tmp_path / "two", capture_ms=5.0)
    assert contents(shared) == contents(again)


RECORDED = sorted(folder for folder in paths.RECORDED.iterdir() if folder.is_dir() and folder.name != "published")


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_what_was_recorded_holds_nothing_that_is_left_to_remove(folder: Path) -> None:
    """Every record of the recorded folders, by the rules of today: a field that was added and not listed is found."""
    rules = {name: rule for name, (_, rule) in RECORDS.items()}
    scrub = Scrubber()
    scrub.folders |= {run.parent.name for run in folder.rglob(paths.MANIFEST)} | {folder.name}
    for file in sorted(folder.rglob("*.json")):
        told = json.loads(file.read_text())
        told.pop("files", None)
        assert rules[file.name](scrub, told) == told, file
    assert not +scrub.counts
