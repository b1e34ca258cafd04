"""nsys's command lines and answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colo_lib.child_environment import INJECTION, child_environment, engine_environment
from colo_lib.errors import InputError
from colo_lib.nsys import commands
from colo_lib.nsys.engine_host import hand_on_injection
from colo_lib.record.captures import refuse_conflicts

NSYS = Path("/opt/nsys")
# As nsys 2024.2.3 says it on a machine without a GPU.
NO_SWITCHES = """WARNING: GPU context switch tracing is not available on this system.
    * The NVIDIA kernel module version must be 435.17 or greater.
"""


def test_on_a_gpu_kernels_of_graphs_are_nodes_and_the_command_comes_last() -> None:
    words = commands.launch_command(NSYS, "s1", "cuda", "node", ["python", "-m", "host", "{}"])
    assert words[:2] == ["/opt/nsys", "launch"]
    assert {"--session-new=s1", "--cuda-graph-trace=node", "--trace=cuda,nvtx"} <= set(words)
    assert words[-4:] == ["python", "-m", "host", "{}"]
    assert "--cuda-graph-trace=graph" in commands.launch_command(NSYS, "s1", "cuda", "graph", ["x"])


def test_on_a_cpu_the_c_library_is_traced_and_nothing_of_cuda() -> None:
    words = commands.launch_command(NSYS, "s1", "cpu", "node", ["x"])
    assert "--trace=osrt" in words
    assert not [word for word in words if "cuda" in word]


def test_recording_is_bounded_by_start_and_stop_of_the_same_session() -> None:
    start = commands.start_command(NSYS, "s1", Path("/out/trace"), context_switches=True)
    assert {"--session=s1", "--output=/out/trace", "--gpuctxsw=true", "--sample=none", "--cpuctxsw=none"} <= set(start)
    assert "--gpuctxsw=true" not in commands.start_command(NSYS, "s1", Path("/out/trace"), context_switches=False)
    assert commands.stop_command(NSYS, "s1") == ["/opt/nsys", "stop", "--session=s1"]


def test_the_export_is_sqlite() -> None:
    words = commands.export_command(NSYS, Path("/o/t.nsys-rep"), Path("/o/t.sqlite"))
    assert {"--type=sqlite", "--output=/o/t.sqlite"} <= set(words)
    assert words[-1] == "/o/t.nsys-rep"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("NVIDIA Nsight Systems version 2024.2.3.38-242334140272v0\n", "2024.2.3.38"),
        ("NVIDIA Nsight Systems version 2025.1.1\n", "2025.1.1"),
        ("command not found", None),
    ],
)
def test_the_version_is_read(said: str, version: str | None) -> None:
    assert commands.parse_version(said) == version


def test_a_refused_context_switch_trace_is_seen_in_the_answer() -> None:
    assert not commands.context_switches_granted(NO_SWITCHES)
    assert commands.context_switches_granted("")


def test_a_torch_profiler_beside_a_capture_is_refused_by_name() -> None:
    for word in ("--profiler-config.profiler=torch", "--profiler_config={}", "--torch-profiler-dir=x"):
        with pytest.raises(InputError, match="CUPTI"):
            refuse_conflicts(word, 2.0)
        refuse_conflicts(word, 0.0)
    refuse_conflicts("--max-num-batched-tokens 512", 2.0)


def test_what_nsys_adds_to_the_environment_reaches_the_engines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    added = {
        "CUDA_INJECTION64_PATH": "/nsys/lib.so", "NSYS_ANYTHING": "1", "LD_PRELOAD": "/nsys/proxy.so",
        "QUADD_INJECTION_CONFIG": "/tmp/injection_config_1",
    }  # fmt: skip
    for name, value in (added | {"SECRET": "known before", "TMPDIR": "/tmp/colo-x"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(INJECTION, "{}")
    known = [name for name in os.environ if name not in added or name == "LD_PRELOAD"]
    left = hand_on_injection(known, {"LD_PRELOAD": None, "TMPDIR": None})
    assert left == ["/tmp/injection_config_1"]
    engine, other = engine_environment({"LD_PRELOAD": "/lib/smctrl.so"}), child_environment({})
    assert (engine["CUDA_INJECTION64_PATH"], engine["NSYS_ANYTHING"]) == ("/nsys/lib.so", "1")
    assert engine["LD_PRELOAD"] == "/nsys/proxy.so:/lib/smctrl.so"
    assert engine["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert not {"SECRET", "TMPDIR"} & set(engine)
    # An MPS daemon that is started beside them knows nothing of nsys.
    assert not {*added, "TMPDIR"} & set(other)
