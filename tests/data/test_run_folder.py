"""Only a finished, unchanged run of the right layout is read."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colo_lib import paths, select
from colo_lib.cli import main as colo
from colo_lib.data.run import find_runs, find_unfinished, newest_run, open_run, planned_trials, trials_frame
from colo_lib.data.unchanged import HeldFrames
from colo_lib.errors import InputError
from colo_lib.frames import FRAMES, arrow_schema
from colo_lib.json_records import read_object
from colo_lib.params import Params
from colo_lib.records import Trial
from tests.run_folders import Plan, change_manifest, reseal, write_run

GEN = "steps/step1/trial-1/gen.parquet"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs", Plan(blocks=2, window_s=2.0))


def test_a_finished_run_gives_its_trials_in_order_and_its_frames_typed(run: Path) -> None:
    opened = open_run(run)
    assert list(opened.trials["step"][:3]) == ["step1", "step2", "step3"]
    assert opened.trials["step"].iloc[-1] == "step1", "the second block runs backwards"
    gen = opened.frame("step1", 1, "gen")
    assert gen is not None
    assert list(gen.columns) == list(FRAMES["gen"])
    assert gen["arrival_ns"].dtype == "int64"
    assert opened.frame("step1", 1, "requests")["done_ns"].dtype == "Int64", "ns must not pass through floats"
    assert opened.frame("step1", 1, "embed") is None
    assert opened.simulated
    assert opened.stand_in


def test_an_unfinished_run_names_the_way_on(run: Path) -> None:
    partial = run.with_name(run.name + ".partial")
    run.rename(partial)
    with pytest.raises(InputError, match=r"unfinished; colo run --resume .*partial"):
        open_run(partial)
    partial.rename(run)
    (run / "manifest.json").unlink()
    with pytest.raises(InputError, match="is unfinished; colo run --resume"):
        open_run(run)


@pytest.mark.parametrize("harm", ["flip", "append", "delete"])
def test_a_changed_file_is_named(run: Path, harm: str) -> None:
    content = bytearray((run / GEN).read_bytes())
    if harm == "delete":
        (run / GEN).unlink()
    else:
        content = content + b"x" if harm == "append" else content[:100] + bytes([content[100] ^ 1]) + content[101:]
        (run / GEN).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(GEN)):
        open_run(run)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "steps/../../outside"])
def test_a_manifest_cannot_lead_out_of_its_folder(run: Path, name: str) -> None:
    (run.parent / "outside").write_text("x")
    change_manifest(run, files={name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(InputError, match="outside the run folder"):
        open_run(run)


def test_a_link_out_of_the_folder_is_refused(run: Path) -> None:
    outside = run.parent / "gen.parquet"
    (run / GEN).rename(outside)
    os.symlink(outside, run / GEN)
    with pytest.raises(InputError, match="outside the run folder"):
        open_run(run)


def test_wrong_columns_are_named(run: Path) -> None:
    pd.DataFrame({"request_id": [1], "sequence_number": [1.5], "extra": [0]}).to_parquet(run / GEN)
    reseal(run, GEN)
    with pytest.raises(InputError) as told:
        open_run(run)
    for word in (
        "'arrival_ns' is missing",
        "'extra' is not in the schema",
        "'sequence_number' is float64",
        "gen.parquet",
    ):
        assert word in str(told.value)


def test_a_file_that_is_no_parquet_is_named(run: Path) -> None:
    (run / GEN).write_bytes(b"not parquet")
    reseal(run, GEN)
    with pytest.raises(InputError, match=r"gen\.parquet: not a readable parquet file"):
        open_run(run)


def test_a_frame_that_the_manifest_does_not_list_is_not_read(run: Path) -> None:
    (run / "steps/step1/trial-1/embed.parquet").write_bytes(b"slipped in")
    assert open_run(run).frame("step1", 1, "embed") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"trials": None}, "'trials' = None"),
        ({"params": {"blokcs": 3}}, "did you mean 'blocks'"),
        ({"trials": [{"step": "../x", "trial": 1}]}, "'trials.0.step' = '../x'"),
        ({"run_id": "../x"}, "'run_id' = '../x'"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(run: Path, changes: dict[str, object], told: str) -> None:
    change_manifest(run, **changes)
    with pytest.raises(InputError, match=told):
        open_run(run)


TRIAL_FILE = "steps/step2/trial-1/trial.json"


def change_record(run: Path, name: str, **changes: object) -> None:
    """Put `changes` on top of a record and mend its checksum."""
    record = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**record, **changes}))
    reseal(run, name)


START_NS = 1_000_000_000_000


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"window_start_ns": START_NS + 9, "window_end_ns": START_NS}, "the window is empty"),
        ({"window_end_ns": 10**30}, "'window_end_ns'"),
        ({"window_start_ns": -5}, "'window_start_ns'"),
        ({"window_start_ns": float("nan")}, "'window_start_ns'"),
        ({"window_start_ns": "1"}, "'window_start_ns'"),
        ({"window_start_ns": None}, "has no window"),
        ({"window_s": 7.5}, "and says 7.5 s"),
        ({"gen_tokens": -1}, "'gen_tokens'"),
        ({"gen_tokens_per_s": []}, "'gen_tokens_per_s'"),
        ({"telemetry": {"absent": [], "gaps": "x"}}, "'telemetry.absent'"),
        ({"memory_gib": 3}, "'memory_gib'"),
        ({"devices": {"gen": 3}}, "'devices.gen'"),
        ({"pacing": "slo"}, "'pacing'"),
        ({"reason": "a\0b"}, "holds a NUL"),
        ({"reason": "\ud800"}, "surrogates not allowed"),
        ({"status": "fine"}, "'status'"),
        ({"step": "step3"}, "is the record of step3 trial 1"),
        ({"gen_tokens": 3}, r"gen\.parquet has \d+ tokens in the window, trial\.json says 3"),
    ],
)
def test_a_record_that_cannot_be_is_named_with_its_field(run: Path, changes: dict[str, object], told: str) -> None:
    change_record(run, TRIAL_FILE, **changes)
    with pytest.raises(InputError, match=told) as error:
        open_run(run)
    assert TRIAL_FILE.removesuffix("/trial.json") in str(error.value)
    assert "take it again" in str(error.value), "the remedy"


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "", "[" * 100_000])
@pytest.mark.parametrize("name", [TRIAL_FILE, "manifest.json"])
def test_a_record_of_another_type_is_a_sentence(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    if name != "manifest.json":
        reseal(run, name)
    with pytest.raises(InputError, match=re.escape(name)):
        open_run(run)
    assert find_runs(run.parent) == [run]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert colo(["list", "--runs-dir", str(run.parent)]) == 0
    assert ("unreadable" in said.getvalue()) == (name == "manifest.json")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert colo(["report", str(run), "--reports-dir", str(run.parent / "reports")]) == 2
    assert name in said.getvalue()


def change_rows(run: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Write a frame anew with other rows and mend its checksum."""
    frame = change(pq.read_table(run / name).to_pandas())
    schema = pa.schema([field.with_nullable(True) for field in arrow_schema(Path(name).stem)])
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False, safe=False), run / name)
    reseal(run, name)


def with_value(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The fourth row's cell becomes another."""
    return lambda frame: frame.astype({column: object}).assign(
        **{column: [value if place == 3 else old for place, old in enumerate(frame[column])]}
    )


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("gen", with_value("arrival_ns", None), "null values"),
        ("gen", with_value("arrival_ns", -1), "'arrival_ns' holds -1"),
        ("gen", with_value("arrival_ns", 2**62), "far from its window"),
        ("gen", lambda frame: frame.iloc[::-1], "order of 'arrival_ns'"),
        ("gen", lambda frame: pd.concat([frame, frame]), "order of 'arrival_ns'"),
        ("gen", lambda frame: frame.iloc[:0], "tokens in the window"),
        ("gen", lambda frame: frame.iloc[:-3], "as requests.parquet says"),
        ("gen", lambda frame: frame.assign(request_id=7, sequence_number=range(len(frame))), "requests.parquet"),
        ("requests", lambda frame: frame.iloc[1:], "a request that requests.parquet has not"),
        ("requests", with_value("first_token_ns", START_NS), "comes before"),
        ("embed", with_value("sequences", -2), "'sequences' holds -2"),
        ("embed", lambda frame: frame.iloc[:5], "sequences in the window"),
        ("telemetry", with_value("utilization", 1e9), "'utilization' holds 1000000000"),
        ("telemetry", with_value("scope", "moon"), "'scope' says 'moon'"),
        ("telemetry", with_value("name", "a\0b"), "holds a NUL"),
        ("telemetry", lambda frame: frame.iloc[:0], "has 0 samples"),
    ],
)
def test_rows_that_cannot_have_been_recorded_are_named(
    run: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame], told: str
) -> None:
    change_rows(run, f"steps/step2/trial-1/{name}.parquet", change)
    with pytest.raises(InputError, match=told) as error:
        open_run(run)
    assert "steps/step2/trial-1" in str(error.value)


def test_a_cut_or_flipped_frame_is_named_though_its_checksum_was_mended(run: Path) -> None:
    whole = (run / GEN).read_bytes()
    for at in range(20, len(whole), len(whole) // 12):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
            (run / GEN).write_bytes(content)
            reseal(run, GEN)
            read = None
            with contextlib.suppress(InputError):  # else the flip is in what only describes the file
                read = open_run(run).frame("step1", 1, "gen")
            (run / GEN).write_bytes(whole)
            assert read is None or read.equals(pq.read_table(run / GEN).to_pandas())


@pytest.mark.parametrize(
    "gone", ["gen.parquet", "requests.parquet", "embed.parquet", "telemetry.parquet", "trial.json"]
)
def test_a_file_removed_together_with_its_entry_is_missed(run: Path, gone: str) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "steps/step2/trial-1" / gone).unlink()
    del manifest["files"][f"steps/step2/trial-1/{gone}"]
    change_manifest(run, **manifest)
    with pytest.raises(InputError, match=f"steps/step2/trial-1/{gone}"):
        open_run(run)


def test_a_trial_removed_with_all_its_entries_is_missed(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    place = "steps/step2/trial-2"
    manifest["trials"] = [row for row in manifest["trials"] if row["folder"] != place]
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith(place)}
    change_manifest(run, **manifest)
    with pytest.raises(InputError, match="step2 trial 2 is missing: its parameters plan it"):
        open_run(run)


def test_a_frame_of_a_workload_that_the_step_does_not_run_is_foreign(run: Path) -> None:
    name = "steps/step1/trial-1/embed.parquet"
    (run / name).write_bytes((run / "steps/step4/trial-1/embed.parquet").read_bytes())
    reseal(run, name)
    with pytest.raises(InputError, match=r"embed\.parquet: does not belong here"):
        open_run(run)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_is_refused_at_once(run: Path, kind: str) -> None:
    for name in (GEN, TRIAL_FILE):
        (run / name).unlink()
        if kind == "pipe":
            os.mkfifo(run / name)
        elif kind == "folder":
            (run / name).mkdir()
        else:
            os.symlink(run / name, run / name)
    with pytest.raises(InputError, match="trial-1"):
        open_run(run)
    with pytest.raises(InputError, match=r"trial\.json"):
        read_object(run / TRIAL_FILE)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "steps/\ud800"])
def test_a_name_that_no_file_has_is_refused(run: Path, name: str) -> None:
    change_manifest(run, files={name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(InputError):
        open_run(run)


def test_what_one_notebook_made_by_itself_is_planned_by_its_name(run: Path) -> None:
    params = Params(blocks=2)
    assert planned_trials(params, "cpu-20261124-101500-step1") == [("step1", 1), ("step1", 2)]
    assert planned_trials(params.model_copy(update={"block": 2}), "cpu-20261124-101500-configb") == [("configB", 2)]
    assert len(planned_trials(params, "cpu-20261124-101500")) == 12


def test_the_stricter_status_holds(run: Path) -> None:
    name = "steps/step2/trial-1/trial.json"
    record = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**record, "status": "invalid", "reason": "a stranger"}))
    reseal(run, name)
    trials = open_run(run).trials
    row = trials[(trials["step"] == "step2") & (trials["trial"] == 1)].iloc[0]
    assert (row["status"], row["reason"]) == ("invalid", "a stranger")


def test_partial_folders_never_count(tmp_path: Path) -> None:
    for name, created in (("old", "2026-01-01"), ("new", "2026-02-01")):
        change_manifest(write_run(tmp_path, Plan(run_id=name, blocks=1, window_s=1.0)), created_utc=created)
    half = write_run(tmp_path, Plan(run_id="half", blocks=1, window_s=1.0))
    half.rename(tmp_path / "half.partial")
    (tmp_path / "cut" / "steps").mkdir(parents=True)
    assert [folder.name for folder in find_runs(tmp_path)] == ["new", "old"]
    assert [folder.name for folder in find_unfinished(tmp_path)] == ["cut", "half.partial"]
    assert newest_run(tmp_path) == tmp_path / "new"
    assert newest_run(tmp_path / "none") is None


def test_without_a_run_a_recorded_one_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = select.select_run(Params(runs_dir=str(tmp_path)))
    assert run.folder.parent == paths.RECORDED
    assert run.trials.groupby("step").size().min() >= 3, "not a single look, from which no notebook has an interval"
    assert "EXAMPLE: no finished run was found here; this one was recorded on NVIDIA" in capsys.readouterr().out


def test_without_any_run_the_example_is_simulated_and_loudly_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RECORDED", tmp_path / "none")
    run = select.select_run(Params(runs_dir=str(tmp_path)))
    assert run.simulated
    assert "SIMULATED" in capsys.readouterr().out
    assert sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file()) < 700_000


def test_a_named_run_is_read_even_if_a_newer_one_exists(run: Path) -> None:
    write_run(run.parent, Plan(run_id="other", blocks=1, window_s=1.0))
    assert select.select_run(Params(run=str(run))).run_id == "simulated-run"


@pytest.mark.parametrize(
    ("recorded", "read"),
    [
        ([["0"], ["1"]], ("0", "1")),
        ([["0", "1"]], ("0", "1")),
        (["0", "1"], ("0", "1")),
        ([], ()),
        (None, ()),
        ([0, ["0"]], ("0",)),
    ],
)
def test_devices_of_several_processes_are_counted_once(recorded: object, read: tuple[str, ...]) -> None:
    row = {"step": "configB", "trial": 1, "status": "failed", "devices": {"gen": ["0"], "embed": recorded}}
    assert trials_frame([Trial.model_validate(row)])["embed_devices"].iloc[0] == read


def test_a_run_of_the_same_models_is_found_also_among_the_recorded(tmp_path: Path) -> None:
    (pair,) = paths.RECORDED.glob("h100-x2-*/cells/cell-001/runs/*")
    nothing = Params(runs_dir=str(tmp_path / "none"), sweeps_dir=str(tmp_path / "none"))
    run = open_run(pair)
    found = select.alike(nothing, run, ("step1", "step2", "step4"))
    assert found is not None
    assert found.folder.is_relative_to(next(paths.RECORDED.glob("h100-llama-*[0-9]")))
    other = run.params.model_copy(update={"gen_model": "qwen2.5-3b-instruct"})
    assert select.alike(nothing, dataclasses.replace(run, params=other), ("step1", "step2", "step4")) is None


# --- what was read stays known while it is as it was -----------------------------------------------------


def test_a_run_that_is_open_is_read_again_only_when_it_changed(run: Path) -> None:
    opened = open_run(run)
    assert open_run(run) is opened
    change_manifest(run, created_utc="2026-01-01T00:00:00+00:00")
    changed = open_run(run)
    assert changed is not opened
    assert changed.manifest.created_utc != opened.manifest.created_utc
    file = run / "steps/step1/trial-1/gen.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="is not the file that was recorded"):
        open_run(run)


def test_what_a_reader_does_to_a_frame_the_next_one_does_not_see(run: Path) -> None:
    opened = open_run(run)
    first = opened.frame("step1", 1, "gen")
    assert first is not None
    first["mine"] = 1
    del first["arrival_ns"]
    again = opened.frame("step1", 1, "gen")
    assert again is not None
    assert list(again) == list(FRAMES["gen"])


def test_frames_are_held_up_to_a_limit_and_the_oldest_go() -> None:
    frame = pd.DataFrame({"a": range(1000)})
    size = int(frame.memory_usage().sum())
    held = HeldFrames(2 * size)
    for name in "abac":
        held.put(name, frame)
        assert held.get(name) is not None
        assert held.bytes <= 2 * size
    assert held.get("b") is None
    assert held.get("a") is not None
    held.put("large", pd.concat([frame] * 3))
    assert held.get("large") is None
