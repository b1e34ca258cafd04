"""One process: what is refused before anything starts, what the engine is told, and what proves nothing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from colo_lib.errors import InputError, StepFailed
from colo_lib.launch.inproc.names import EXTENSION, JOB_NAME, files_of
from colo_lib.launch.mechanisms import in_process
from colo_lib.launch.mechanisms.in_process import InProcess, check_lanes, measured, refuse_settings, refuse_without_flag
from colo_lib.launch.specs import EngineSpec, specs_of
from colo_lib.launch.vllm_server import server_command
from colo_lib.mechanism_records import HostedEmbed, InProcessFacts, Lane
from colo_lib.params import check
from colo_lib.placement import placement_of


def engines(step: str = "inproc", **changes: object) -> EngineSpec:
    params = check({"gen_python": sys.executable, **changes}, "test")
    return specs_of(params, placement_of(step, params)).engines


def python_with_vllm(folder: Path, arguments: str) -> Path:
    """An interpreter that finds a vLLM 0.5.0 whose arguments are these."""
    site = folder / "site"
    (site / "vllm" / "engine").mkdir(parents=True)
    (site / "vllm" / "__init__.py").touch()
    (site / "vllm" / "engine" / "arg_utils.py").write_text(arguments)
    (site / "vllm-0.5.0.dist-info").mkdir()
    (site / "vllm-0.5.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.5.0\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_a_vllm_without_the_flag_is_refused_by_its_version(tmp_path: Path) -> None:
    old = python_with_vllm(tmp_path, "parser.add_argument('--worker-cls')")
    with pytest.raises(StepFailed, match=r"vLLM 0\.5\.0 of .* has no --worker-extension-cls"):
        refuse_without_flag(old)
    with pytest.raises(StepFailed, match="a vLLM that is not there"):
        refuse_without_flag(Path(sys.executable))
    with pytest.raises(StepFailed, match="cannot be asked"):
        refuse_without_flag(tmp_path)


def test_a_vllm_on_the_shells_path_is_found_and_stays_on_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_with_vllm(tmp_path, "'--worker-extension-cls'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    refuse_without_flag(Path(sys.executable))
    variables = InProcess(engines(), tmp_path).environment("gen")
    path = variables["PYTHONPATH"].split(os.pathsep)
    assert path[1:] == [str(tmp_path / "site")]
    assert os.listdir(path[0]) == ["colo_lib"], "nothing of our environment comes before the engine's own"
    assert json.loads(variables[JOB_NAME])["folder"] == str(tmp_path)


def test_the_server_is_started_with_the_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_process, "refuse_without_flag", lambda _: None)
    spec = engines(gen_extra_args="--block-size 16", inproc_embed_sms="96, 64", inproc_gen_priority="normal")
    mechanism = InProcess(spec, tmp_path)
    assert server_command(mechanism.adjusted(spec.gen), 1)[-4:] == ["--block-size", "16", in_process.FLAG, EXTENSION]
    assert mechanism.embed_job() == {"sizes": [96, 64], "gen_priority": "normal"}
    assert [Path(socket) for socket in mechanism.facts().sockets] == [files_of(tmp_path, 0)["socket"]]
    mechanism.close()
    assert not list(tmp_path.iterdir())


def test_what_the_engine_imports_needs_no_library_but_its_own() -> None:
    """Imported by an interpreter that has nothing installed."""
    modules = "extension, host, lanes, engine_steps, policy, names, self_check"
    code = f"from colo_lib.launch.inproc import {modules}; print(extension.EmbedBesideGen.__qualname__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": os.getcwd()}
    )
    assert done.stdout.strip() == EXTENSION.rpartition(".")[2], done.stderr


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"embed_engine": "vllm"}, "set embed_engine: transformers"),
        ({"gen_extra_args": "--worker-extension-cls=x.Y"}, "leave it out"),
        ({"embed_python": "/bin/sh"}, "set embed_python: auto"),
    ],
)
def test_what_cannot_live_in_one_process_is_refused(changes: dict[str, str], remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        refuse_settings(engines(**changes))


def test_sizes_change_the_embedder_alone_and_priority_the_server() -> None:
    before = engines()
    sizes, priority = engines(inproc_embed_sms="64"), engines(inproc_gen_priority="normal")
    assert (sizes.gen, priority.embed) == (before.gen, before.embed)
    assert sizes.embed != before.embed
    assert priority.gen != before.gen
    assert engines("step2").embed == engines("step2", inproc_embed_sms="64").embed
    with pytest.raises(InputError, match="inproc_embed_sms"):
        check({"inproc_embed_sms": "64,all"}, "test")


def host(*lanes: Lane) -> HostedEmbed:
    return HostedEmbed(rank=0, pid=1, tid=2, gen_priority="high", lanes=list(lanes))


def facts(*sizes: int) -> InProcessFacts:
    return InProcessFacts(
        mechanism="in-process", proved_by="in-process", sockets=[], on_cuda=True, empty_pipe="", sizes=list(sizes),
        gen_priority="high",
    )  # fmt: skip


def lane(held_sms: int, held_ms: float) -> Lane:
    told = {"wanted": held_sms, "held_sms": held_sms, "all_sms": 132, "backend": "green context"}
    return measured(told | {"free_ms": 1.0, "held_ms": held_ms, "graphs": True, "why_eager": ""})


def test_a_size_holds_where_its_product_was_slowed_as_its_share_demands() -> None:
    held = lane(32, 4.0)
    assert held.slowdown_demanded == pytest.approx(132 / 32)
    assert held.slowdown_measured == 4.0
    check_lanes(host(held), facts(32))
    check_lanes(host(lane(32, 4.0), lane(132, 1.0)), facts(32, 132))
    with pytest.raises(StepFailed, match=r"void: on 32 of 132 SMs a matrix product took 1\.00 times as long"):
        check_lanes(host(lane(32, 1.0)), facts(32))
    with pytest.raises(StepFailed, match=r"void: .* has lanes for \[32\]"):
        check_lanes(host(held), facts(64))
    unmeasured = Lane(wanted=32, held_sms=32, all_sms=132, backend="green context")
    with pytest.raises(StepFailed, match="void: 32 SMs for the embedder were not verified"):
        check_lanes(host(unmeasured), facts(32))
