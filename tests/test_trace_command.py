"""`colo trace` and `colo redact` as a user meets them: real captures, JSON by its schema, what is refused."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colo_lib.cli import main
from colo_lib.cli import trace as trace_cli
from colo_lib.data.packed_export import unpacked
from colo_lib.examples.captures import H100_PAIR, simulated_capture
from colo_lib.paths import REPOSITORY
from tests.corpus_files import MARKUP
from tests.exports import EMBED, GEN, Kernel, write

RECORDED = sorted(REPOSITORY.glob("recorded/*/steps/step3/capture/trace.sqlite*"))
NUMBER, INTEGER, TEXT, OPTIONAL = (int, float), int, str, type(None)
WORKLOAD = {
    "pid": INTEGER, "kernel_count": INTEGER, "kernel_time_ns": INTEGER, "busy_ns": INTEGER,
    "mean_kernel_us": (*NUMBER, OPTIONAL), "mean_blocks_per_kernel": (*NUMBER, OPTIONAL),
    "sm_occupancy_by_count": (*NUMBER, OPTIONAL), "sm_occupancy_by_time": (*NUMBER, OPTIONAL),
    "under_half_device": (dict, OPTIONAL), "one_block_fraction": (*NUMBER, OPTIONAL),
    "full_device_fraction": (*NUMBER, OPTIONAL), "categories": list, "top_kernels": list,
}  # fmt: skip
TOP = {
    "schema_version": INTEGER, "device": dict, "granularity": TEXT, "basis": TEXT, "window_ns": INTEGER,
    "busy_ns": INTEGER, "idle_fraction": NUMBER, "gaps": dict, "overlap_ns": (INTEGER, OPTIONAL),
    "overlap_of_gen": (*NUMBER, OPTIONAL), "overlap_of_embed": (*NUMBER, OPTIONAL), "workloads": dict,
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def traced(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    code, out, err = run(capsys, "trace", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def of_schema(found: dict[str, Any], schema: dict[str, Any]) -> None:
    for key, kinds in schema.items():
        assert isinstance(found[key], kinds), (key, found[key])
        assert not isinstance(found[key], bool), key


def test_the_json_object_keeps_its_documented_shape(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for files in (H100_PAIR, [simulated_capture(tmp_path / f"{step}.sqlite", step) for step in ("step2",)]):
        found = traced(capsys, *files)
        of_schema(found, TOP)
        of_schema(found["device"], {"name": TEXT, "sm_count": (INTEGER, OPTIONAL)})
        of_schema(found["gaps"], {"count": INTEGER, "over_10us_count": INTEGER} | dict.fromkeys(
            ("mean_us", "p50_us", "p99_us"), (*NUMBER, OPTIONAL)))  # fmt: skip
        assert set(found["workloads"]) == {"gen", "embed"}
        for workload in found["workloads"].values():
            of_schema(workload, WORKLOAD)
            for row in workload["categories"]:
                of_schema(
                    row, {"category": TEXT, "kernel_count": INTEGER, "kernel_time_ns": INTEGER, "fraction": NUMBER}
                )
            for row in workload["top_kernels"]:
                of_schema(row, {"name": TEXT, "kernel_count": INTEGER, "kernel_time_ns": INTEGER, "fraction": NUMBER,
                                "mean_us": NUMBER, "mean_blocks": (*NUMBER, OPTIONAL)})  # fmt: skip
    documented = (REPOSITORY / "docs" / "traces.md").read_text(encoding="utf-8")
    told = {*found, *found["workloads"]["gen"], *found["gaps"], *found["workloads"]["gen"]["top_kernels"][0]}
    assert not [key for key in told if f"`{key}`" not in documented], "docs/traces.md names every key"


def test_the_real_pair_counts_graph_replays_and_the_start_offset(capsys: pytest.CaptureFixture[str]) -> None:
    """Seven replays, whose times stand in the export, and the sessions' starts 22.5 ms apart."""
    found = traced(capsys, *H100_PAIR)
    gen = found["workloads"]["gen"]
    assert found["device"] == {"id": 0, "name": "NVIDIA H100 80GB HBM3", "sm_count": 132}
    assert found["granularity"] == "graph"
    assert (gen["pid"], gen["graph_launch_count"], gen["kernel_count"]) == (777, 7, 0)
    assert gen["busy_ns"] == gen["graph_time_ns"] == 116_728_492
    assert gen["sm_occupancy_by_count"] is None
    assert found["alignment"]["offsets_ms"] == pytest.approx([22.539387, 0.0])
    assert found["overlap_of_gen"] == pytest.approx(0.823, abs=1e-3)
    assert found["workloads"]["embed"]["sm_occupancy_by_count"] == 1.0, "132 blocks on 132 SMs"
    assert found["workloads"]["embed"]["categories"][0]["category"] == "GEMM"
    low, high = found["alignment"]["overlap_of_gen_range"]
    assert low < found["overlap_of_gen"] < high


@pytest.mark.skipif(not RECORDED, reason="no recorded capture of a time-sliced step in this checkout")
def test_a_real_time_sliced_capture_overlaps_only_until_residency_is_looked_at(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """vLLM and an embedding model on one GPU in turns: their kernels' intervals overlap, their residency never does."""
    found = traced(capsys, RECORDED[0])
    assert found["basis"] == "residency"
    assert found["overlap_ns"] == 0
    blind = tmp_path / "blind.sqlite"
    blind.write_bytes(unpacked(RECORDED[0]).read_bytes())
    connection = sqlite3.connect(blind)
    connection.execute("DROP TABLE GPU_CONTEXT_SWITCH_EVENTS")
    connection.commit()
    connection.close()
    upper = traced(capsys, blind)
    assert upper["overlap_is_upper_bound"]
    assert upper["overlap_of_gen"] > 0.3
    for name, workload in found["workloads"].items():
        assert workload["busy_ns"] < upper["workloads"][name]["busy_ns"]


def test_without_names_it_lists_who_launched_work_and_guesses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alone = [tmp_path / file.name for file in H100_PAIR]  # without the capture.json that says who was who
    for file, copy in zip(H100_PAIR, alone, strict=True):
        copy.write_bytes(file.read_bytes())
    _, out, _ = run(capsys, "trace", *alone)
    assert "777  python3: 0 kernels, 7 graph launches  -> likely LLM" in out
    assert "-> likely embedder" in out
    assert "UPPER BOUND" in out
    _, out, _ = run(capsys, "trace", *H100_PAIR)
    assert "777  python3: 0 kernels, 7 graph launches  -> LLM" in out
    assert "UPPER BOUND" not in out
    assert "uncertainty 100 us" in out
    code, _, err = run(capsys, "trace", *H100_PAIR, "--gen", "nobody")
    assert code == 2
    assert "no process 'nobody'" in err
    assert "777  python3" in err
    code, _, err = run(capsys, "trace", *H100_PAIR, "--gen", "777", "--embed", "777")
    assert code == 2
    assert "as gen and as embed" in err


@pytest.mark.parametrize("window", ["9:10", "5:4", "4.05:4.05", "1", "a:b", "nan:1", "1:inf", "0:1:2"])
def test_a_window_that_holds_nothing_is_refused(capsys: pytest.CaptureFixture[str], window: str) -> None:
    code, out, err = run(capsys, "trace", *H100_PAIR, "--window", window)
    assert (code, out) == (2, "")
    assert "window" in err


def test_a_window_cuts_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    found = traced(capsys, *H100_PAIR, "--window", "4.05:4.06")
    assert found["window_ns"] == 10_000_000
    assert found["workloads"]["gen"]["busy_ns"] == 10_000_000, "one long replay fills it"
    assert found["overlap_ns"] == found["workloads"]["embed"]["busy_ns"]


def test_own_categories_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = traced(capsys, *H100_PAIR, "--category", "products=nvjet")
    assert found["workloads"]["embed"]["categories"][0]["category"] == "products"
    for wrong in ("products", "products=(", "=x"):
        assert run(capsys, "trace", *H100_PAIR, "--category", wrong)[0] == 2


def test_perfetto_gets_what_was_running_and_nothing_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write(tmp_path / "e.sqlite", [Kernel(GEN, 1000, 2000, name=MARKUP), Kernel(EMBED, 1500, 9000)])
    traced(capsys, file, "--gen", GEN, "--embed", EMBED, "--perfetto", tmp_path / "out.json", "--window", "0:0.000003")
    events = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["traceEvents"]
    spans = {(event["pid"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"}
    gen, embed = (next(e["pid"] for e in events if e["name"] == "process_name" and e["args"]["name"].startswith(name))
                  for name in ("LLM", "embedder"))  # fmt: skip
    assert {(gen, 1.0, 1.0), (embed, 1.5, 1.5)} < spans
    assert [e["dur"] for e in events if e["name"] == "LLM and embedder"] == [0.5]
    assert not [char for event in events for char in event["name"] if not char.isprintable()]
    assert run(capsys, "trace", file, "--perfetto", tmp_path / "no" / "out.json")[0] == 2


def secret_export(folder: Path) -> Path:
    """An export with everything that should not be shared."""
    kernels = [
        Kernel(GEN, 1000, 2000, name="gemm"),
        Kernel(EMBED, 1500, 3000, name="/home/alice/lib/my_kernel.cu attn"),
    ]
    named = {
        GEN: "/home/alice/venv/bin/python3 serve --key hunter2",
        EMBED: "python3",
        4242: "/opt/other/secret-server",
    }
    file = write(folder / "e.sqlite", kernels, processes=named)
    connection = sqlite3.connect(file)
    connection.executescript("""
        CREATE TABLE TARGET_INFO_SYSTEM_ENV (globalVid INT, devStateName TEXT, name TEXT, nameEnum TEXT, value TEXT);
        INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES (1, 'x', 'Hostname', 'HOSTNAME', 'node17.example');
        CREATE TABLE ProcessStreams (globalPid INT, filenameId INT, contentId INT);
        INSERT INTO ProcessStreams VALUES (1, 2, 3);
        CREATE TABLE NVTX_EVENTS (start INT, text TEXT);
        INSERT INTO NVTX_EVENTS VALUES (5, 'user alice asked for /data/private');
        INSERT INTO StringIds VALUES (900, 'AWS_SECRET_ACCESS_KEY=abcdef');
        UPDATE StringIds SET value = 'gemm on node17.example' WHERE value = 'gemm';
        UPDATE TARGET_INFO_GPU SET uuid = 'GPU-1234';
    """)
    connection.commit()
    connection.close()
    return file


def test_a_redacted_capture_tells_the_same_and_gives_nothing_away(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, out = secret_export(tmp_path), tmp_path / "shared.sqlite"
    before = file.read_bytes()
    code, told, err = run(capsys, "redact", file, out)
    assert code == 0, err
    assert file.read_bytes() == before
    content = out.read_bytes()
    for secret in (b"alice", b"node17", b"hunter2", b"secret", b"SECRET", b"private", b"GPU-1234", b"/home", b"4242"):
        assert secret not in content, secret
    for table in ("TARGET_INFO_SYSTEM_ENV", "ProcessStreams", "NVTX_EVENTS"):
        assert f"table {table}: 1 rows" in told
    for words in ("paths: 2", "user names: 1", "GPU identifiers: 1"):
        assert words in told
    first, second = (traced(capsys, one, "--gen", GEN, "--embed", EMBED) for one in (file, out))
    for key in ("window_ns", "busy_ns", "overlap_ns", "gaps", "device"):
        assert first[key] == second[key]
    assert run(capsys, "redact", file, out)[0] == 2, "an existing file is not overwritten"
    assert run(capsys, "redact", tmp_path / "none.sqlite", tmp_path / "x.sqlite")[0] == 2
    assert sorted(item.name for item in tmp_path.iterdir()) == ["e.sqlite", "shared.sqlite"]


def test_redacting_keeps_residency_and_drops_strangers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = simulated_capture(tmp_path / "e.sqlite", "step3")
    connection = sqlite3.connect(file)
    connection.execute("INSERT INTO GPU_CONTEXT_SWITCH_EVENTS SELECT tag, vmId, seqNo, 99, timestamp, 999 << 24, 0 "
                       "FROM GPU_CONTEXT_SWITCH_EVENTS LIMIT 6")  # fmt: skip
    connection.commit()
    connection.close()
    code, told, _ = run(capsys, "redact", file, tmp_path / "out.sqlite")
    assert code == 0
    assert "GPU_CONTEXT_SWITCH_EVENTS: 6 of" in told
    found = traced(capsys, tmp_path / "out.sqlite")
    assert found["basis"] == "residency"
    assert found["overlap_ns"] == traced(capsys, file)["overlap_ns"]


def test_large_exports_are_read_the_same_in_parallel_and_from_the_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colo_lib.data import export, sqlite_reader

    kernels = [Kernel(GEN if k % 3 else EMBED, 100 * k, 100 * k + 150, k % 200 + 1, f"k{k % 7}") for k in range(3000)]
    (tmp_path / "in").mkdir()
    file = write(tmp_path / "in" / "e.sqlite", kernels)
    words = (file, "--gen", GEN, "--embed", EMBED)
    monkeypatch.setenv("COLO_EXPORT_CACHE", "")
    alone = traced(capsys, *words)
    monkeypatch.setattr(sqlite_reader, "WORTH_A_PROCESS", 500)
    monkeypatch.setattr(sqlite_reader, "cores", lambda: 4)
    assert traced(capsys, *words) == alone, "four readers"
    monkeypatch.setenv("COLO_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(export, "WORTH_ROWS", 1000)
    assert traced(capsys, *words) == alone
    monkeypatch.setattr(export, "read_export", lambda file: pytest.fail("it was in the cache"))
    assert traced(capsys, *words) == alone
    for answer in (tmp_path / "cache").glob("*.answer"):
        answer.unlink()
    assert traced(capsys, *words) == alone, "from the columns that are kept"
    assert [item.name for item in file.parent.iterdir()] == ["e.sqlite"], "nothing beside the input"
    monkeypatch.undo()
    monkeypatch.setenv("COLO_EXPORT_CACHE", str(tmp_path / "cache"))
    for broken in [*(tmp_path / "cache").rglob("*.npy"), *(tmp_path / "cache").rglob("*.answer")]:
        broken.write_bytes(b"x")
    assert traced(capsys, *words) == alone, "a damaged cache is read over"


def test_an_answer_is_kept_until_anything_that_it_rests_on_changes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colo_lib.data import export, export_cache

    monkeypatch.setenv("COLO_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(export, "WORTH_ROWS", 10)
    kernels = [Kernel(GEN if k % 3 else EMBED, 100 * k, 100 * k + 150, k % 200 + 1) for k in range(60)]
    (tmp_path / "in").mkdir()
    file = write(tmp_path / "in" / "e.sqlite", kernels)
    words = (file, "--gen", GEN, "--embed", EMBED)
    first = traced(capsys, *words)
    with monkeypatch.context() as patch:
        patch.setattr(trace_cli, "answer_of", lambda options: pytest.fail("it was kept"))
        assert traced(capsys, *words) == first
    assert main(["trace", *map(str, words)]) == 0
    assert "{" not in capsys.readouterr().out[:1], "words where words are asked for"
    assert traced(capsys, file, "--gen", EMBED, "--embed", GEN) != first
    told = {"exports": ["e.sqlite"], "mechanism": "mps"}
    (file.parent / "capture.json").write_text(json.dumps(told))
    assert (first["mechanism"], traced(capsys, *words)["mechanism"]) == (None, "mps")
    (file.parent / "capture.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(export_cache, "_program", lambda: [("another.py", 1, 1)])
        patch.setattr(trace_cli, "answer_of", lambda options: ("{}", False))
        assert traced(capsys, *words) == {}, "another program answers anew"
    file.with_name("e.sqlite-journal").write_bytes(b"x")
    assert main(["trace", *map(str, words)]) == 2, "a file that is being written to"
    file.with_name("e.sqlite-journal").unlink()
    write(file, kernels[:30])
    assert traced(capsys, *words)["workloads"]["gen"]["kernel_count"] == 20


def test_text_that_is_no_utf_8_stops_no_reader(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a column of numbers, which large exports have read by processes of their own, and in a file's name."""
    from colo_lib.data import sqlite_reader

    kernels = [Kernel(GEN if k % 3 else EMBED, 100 * k, 100 * k + 150) for k in range(2_000)]
    file = tmp_path / "e\udcff.sqlite"
    write(file, [*kernels, Kernel(GEN, 9_000_000, 8_000_000)])
    connection = sqlite3.connect(file)
    connection.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET gridX = CAST(x'ff31' AS TEXT), "
                       "demangledName = CAST(x'ff' AS TEXT) WHERE rowid % 2")  # fmt: skip
    connection.commit()
    connection.close()
    other = write(tmp_path / "other.sqlite", [Kernel(EMBED, 5, 9)], session_start_utc_ns=1_795_435_813_758_566_458)
    monkeypatch.setenv("COLO_EXPORT_CACHE", "")
    words = (file, other, "--gen", GEN, "--embed", EMBED)
    alone = traced(capsys, *words)
    assert alone["omissions"] == ["e\\udcff.sqlite: 1 kernels end before they start: left out"]
    monkeypatch.setattr(sqlite_reader, "WORTH_A_PROCESS", 500)
    monkeypatch.setattr(sqlite_reader, "cores", lambda: 2)
    assert traced(capsys, *words) == alone
    done = subprocess.run([sys.executable, "-m", "colo_lib.cli", "trace", *map(str, words)], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_command_starts_quickly_and_needs_neither_pandas_nor_matplotlib(tmp_path: Path) -> None:
    file = write(tmp_path / "e.sqlite", [Kernel(GEN, 0, 10), Kernel(EMBED, 5, 20)])
    code = "import sys; from colo_lib.cli import main; main(['trace', sys.argv[1]]); " \
           "print([m for m in ('pandas', 'matplotlib', 'torch') if m in sys.modules], file=sys.stderr)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stderr.strip() == "[]"
