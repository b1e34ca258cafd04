"""A run's captures: found, read, through the recorded window, to the verdict and to gen's loss."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from colo_lib.analysis.loss import PerToken, decompose_loss, with_captures
from colo_lib.analysis.thresholds import Thresholds
from colo_lib.analysis.trace import overlap, summary, token_time, window
from colo_lib.analysis.trace.window import Asked
from colo_lib.analysis.verdict import judge
from colo_lib.cli import main
from colo_lib.data.capture import captured_steps, read_capture, read_files, read_step_launches
from colo_lib.errors import InputError
from colo_lib.nsys.capture import missing_workloads
from colo_lib.params import Params
from colo_lib.paths import RECORDED
from colo_lib.report import trace_tables
from colo_lib.select import H100, select_trace
from tests.run_folders import Plan, add_capture, planted_measures, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_run(tmp_path_factory.mktemp("runs"), Plan(window_s=2.0))
    for step in ("step1", "step2", "step3", "step4"):
        add_capture(made, step)
    return made


def view(run: Path, step: str) -> Any:
    one = read_capture(run, step)
    return window.view_of(one.capture, one.facts, Asked(), one.window_s)


def test_the_recorded_window_and_pids_are_used(run: Path) -> None:
    assert captured_steps(run) == ["step1", "step2", "step3", "step4"]
    found = summary.summary_of(view(run, "step2"))
    assert found["window_s"] == pytest.approx([0.010, 0.050])
    assert (found["workloads"]["gen"]["pids"], found["workloads"]["embed"]["pids"]) == ([777], [774])
    assert (found["mechanism"], found["basis"]) == ("mps", "residency")
    narrow = window.view_of(*_parts(run, "step2"), Asked(window="0.02:0.03"), (0.01, 0.05))
    assert narrow.window == (20_000_000, 30_000_000), "what the user asks for comes first"


def _parts(run: Path, step: str) -> tuple[Any, Any]:
    one = read_capture(run, step)
    return one.capture, one.facts


def test_time_slices_do_not_overlap_and_sharing_does(run: Path) -> None:
    assert overlap.verdict_overlap(view(run, "step3")) == overlap.MeasuredOverlap(0.0, "residency", upper_bound=False)
    shared = overlap.verdict_overlap(view(run, "step2"))
    assert shared is not None
    assert shared.fraction_of_gen > 0.9
    clause = judge(planted_measures(Plan()), Thresholds.of(Params()), stand_in=False, overlap=shared).clauses.iloc[-1]
    assert (clause["status"], clause["mean"]) == ("supported", shared.fraction_of_gen)
    assert overlap.verdict_overlap(view(run, "step1")) is None


def test_gens_time_splits_without_rest_and_reaches_the_loss(run: Path) -> None:
    times = {}
    for step in ("step1", "step2", "step3", "step4"):
        one = read_capture(run, step)
        launches = read_step_launches(one.files, one.capture)
        times[step] = token_time.gen_times(view(run, step), one.facts, launches, 1)
    assert times["step4"] is None
    for step in ("step1", "step2", "step3"):
        own = times[step]
        parts = ("busy_ns", "switched_out_ns", "waiting_ns", "host_ns", "unattributed_ns")
        assert sum(getattr(own, part) for part in parts) == pytest.approx(own.window_ns) == pytest.approx(1e9 / 90)
        assert sum(own.busy_by_category_ns.values()) == pytest.approx(own.busy_ns)
        assert own.unattributed_ns == 0
        assert own.clipped
    assert times["step3"].switched_out_ns > 0 == times["step2"].switched_out_ns
    totals = {step: PerToken(1e9 / 90) for step in ("step1", "step2")}
    sides = with_captures(totals, times, 0.8)
    loss = decompose_loss(sides["step1"], sides["step2"])
    assert ("waiting",) in loss.parts
    assert sum(loss.parts.values()) == loss.total_ns


def test_a_failed_or_foreign_capture_is_not_read(run: Path, tmp_path: Path) -> None:
    made = write_run(tmp_path, Plan(window_s=2.0))
    add_capture(made, "step1", status="failed", reason="nsys stop left no report")
    add_capture(made, "step4", traced="osrt")
    folder = add_capture(made, "step2", exports=["../../../../secret.sqlite"])
    assert captured_steps(made) == [] or captured_steps(made) == ["step2"]
    assert "step1" not in captured_steps(made)
    with pytest.raises(InputError, match="nsys stop left no report"):
        read_capture(made, "step1")
    with pytest.raises(InputError, match="outside its folder"):
        read_capture(made, "step2")
    (folder / "capture.json").write_text("[1")
    with pytest.raises(InputError, match="not readable as JSON"):
        read_capture(made, "step2")


def test_what_a_notebook_chooses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = {"runs_dir": str(tmp_path)}
    assert select_trace(Params(**none), H100).run_id == "example-h100"
    assert "REAL but short" in capsys.readouterr().out
    example = select_trace(Params(**none), alone=True)
    assert (example.run_id, set(example.alone)) == ("example-simulated", {"gen", "embed"})
    assert "SIMULATED" in capsys.readouterr().out
    trace = select_trace(Params(run=str(run)), alone=True)
    assert (trace.run_id, trace.captured.step, set(trace.alone)) == ("simulated-run", "step2", {"gen", "embed"})
    assert "LLM 0.9" in summary.profiled_words(trace.captured.facts, {"gen_tokens_per_s": 100.0})
    assert set(trace.unprofiled) == {"gen_tokens_per_s", "embed_sequences_per_s"}
    assert select_trace(Params(run=str(run), trace_step="step3")).captured.step == "step3"
    bare = select_trace(Params(exports=str(read_capture(run, "step2").files[0]), **none))
    assert bare.run_id == "exports"
    without = write_run(tmp_path / "other", Plan(window_s=2.0))
    with pytest.raises(InputError, match="has no capture of GPU work"):
        select_trace(Params(run=str(without)))
    with pytest.raises(InputError, match="configA of simulated-run has no capture"):
        select_trace(Params(run=str(run), trace_step="configA"))


def test_the_manifest_is_checked_before_a_capture_is_read(tmp_path: Path) -> None:
    made = write_run(tmp_path, Plan(window_s=2.0))
    folder = add_capture(made, "step2")
    facts = json.loads((folder / "capture.json").read_text())
    (folder / "capture.json").write_text(json.dumps(facts | {"mechanism": "none"}))
    with pytest.raises(InputError, match="not the file that was recorded"):
        select_trace(Params(run=str(made)))


def test_colo_trace_reads_what_lies_beside_an_export(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same numbers as the notebooks: recorded window, processes and mechanism; what is given comes first."""
    file = str(read_capture(run, "step2").files[0])
    found = _traced(capsys, file)
    assert found["window_s"] == pytest.approx([0.010, 0.050])
    assert (found["mechanism"], found["workloads_guessed"]) == ("mps", False)
    expected = summary.summary_of(view(run, "step2"))
    assert all(found[key] == expected[key] for key in expected if key not in ("exports",))
    given = _traced(
        capsys, file, "--window", "0.02:0.03", "--mechanism", "time-sliced", "--gen", "774", "--embed", "777"
    )
    assert (given["window_ns"], given["mechanism"]) == (10_000_000, "time-sliced")
    assert given["workloads"]["gen"]["pid"] == 774
    assert any("mechanism was mps, you say time-sliced" in note for note in given["notes"])
    bare = select_trace(Params(exports=file))
    seen = window.view_of(bare.captured.capture, bare.captured.facts, Asked(), bare.captured.window_s)
    assert summary.summary_of(seen)["overlap_ns"] == expected["overlap_ns"]


def _traced(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main(["trace", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_does_not_name_the_export_says_nothing_of_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = read_capture(run, "step2").files[0]
    for name in ("trace.sqlite", "other.sqlite"):
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "capture.json").write_text(json.dumps({"mechanism": "mps", "exports": ["trace.sqlite"]}))
    assert _traced(capsys, str(tmp_path / "trace.sqlite"))["mechanism"] == "mps"
    assert _traced(capsys, str(tmp_path / "other.sqlite"))["mechanism"] is None


@pytest.mark.parametrize(
    "facts",
    [{"pids": [1]}, {"pids": {"gen": ["x"]}}, {"mechanism": 3}, {"visible_devices": {"777": "0"}}, {"window_ns": [1]},
     {"clock": {"utc_ns": 1}}, {"clock": []}, {"profiled": {"gen_tokens_per_s": "fast"}}, {"exports": "trace.sqlite"},
     {"window_ns": [1, 10**30]}, {"status": []}],
)  # fmt: skip
def test_a_capture_json_of_another_kind_is_a_sentence(
    facts: Any, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace.sqlite").write_bytes(read_capture(run, "step2").files[0].read_bytes())
    (tmp_path / "capture.json").write_text(json.dumps(facts))
    assert main(["trace", str(tmp_path / "trace.sqlite")]) == 2
    said = capsys.readouterr().err
    assert f"'{next(iter(facts))}" in said
    assert "take it again from where it was recorded, or leave it out" in said
    assert said.count("\n") == 1


def test_a_workload_whose_recorded_processes_idled_is_not_guessed_among_strangers(run: Path, tmp_path: Path) -> None:
    source = read_capture(run, "step2").files[0]
    (tmp_path / "trace.sqlite").write_bytes(source.read_bytes())
    (tmp_path / "capture.json").write_text(json.dumps({"pids": {"gen": [777], "embed": [5]}}))
    one = read_files([tmp_path / "trace.sqlite"])
    seen = window.view_of(one.capture, one.facts, Asked(), one.window_s)
    assert list(seen.workloads) == ["gen"]
    assert seen.absent() == {"embed": "ran no kernel on this device"}


def test_the_recorded_embedder_on_the_second_gpu_is_looked_at_there(capsys: pytest.CaptureFixture[str]) -> None:
    """By each process's own numbers both would be on GPU 0 and overlap for 37 % of gen's time, who never met there."""
    (file,) = RECORDED.glob("h100-x2-*/cells/cell-001/runs/*/steps/configB-one/capture/trace.sqlite*")
    found = _traced(capsys, str(file))
    assert (found["device"]["id"], found["mechanism"], found["overlap_is_upper_bound"]) == (1, "mps", False)
    assert found["overlap_of_gen"] == pytest.approx(0.303, abs=5e-4)
    assert found["overlap_of_embed"] == pytest.approx(0.687, abs=5e-4)
    assert _traced(capsys, str(file), "--device", "0")["overlap_ns"] is None


def test_trace_notebook_and_verdict_say_the_same_of_step_2_on_the_recorded_h100(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Under MPS without context switches: kernel intervals, and no upper bound."""
    (folder,) = RECORDED.glob("h100-llama-*/cells/cell-001/runs/*")
    one = read_capture(folder, "step2")
    seen = window.view_of(one.capture, one.facts, Asked(), one.window_s)
    of_notebook, of_verdict = summary.summary_of(seen), overlap.verdict_overlap(seen)
    of_trace = _traced(capsys, str(one.files[0]))
    assert of_verdict is not None
    for told in (of_trace, of_notebook):
        assert (told["basis"], told["overlap_is_upper_bound"]) == ("kernel intervals", False)
        assert told["overlap_of_gen"] == pytest.approx(of_verdict.fraction_of_gen) == pytest.approx(0.686, abs=5e-4)
    assert trace_tables.device(of_notebook).set_index("What").loc["Basis", "Value"] == "kernel intervals"
    clause = judge(planted_measures(Plan()), Thresholds.of(Params()), stand_in=False, overlap=of_verdict).clauses.iloc[
        -1
    ]
    assert (clause["status"], clause["mean"]) == ("supported", of_verdict.fraction_of_gen)
    blind = _traced(capsys, str(one.files[0]), "--mechanism", "time-sliced")
    assert blind["overlap_is_upper_bound"]


def test_a_capture_that_lost_its_kernels_is_passed_over_and_named(tmp_path: Path) -> None:
    """nsys has kept what a process copied and lost its kernels: the page must be made without that capture."""
    made = write_run(tmp_path, Plan(window_s=2.0))
    for step in ("step1", "step4"):
        add_capture(made, step)
    file = read_capture(made, "step4").files[0]
    pids = {"gen": [777], "embed": [774]}
    assert missing_workloads(file, pids, on_gpu=True) == ["gen"]
    with closing(sqlite3.connect(file)) as database, database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE name LIKE '%KIND_KERNEL%'").fetchall():
            database.execute(f'DROP TABLE "{table}"')
    assert missing_workloads(file, pids, on_gpu=True) == ["gen", "embed"]
    assert captured_steps(made) == ["step1"]
    assert "step4" not in captured_steps(made)
