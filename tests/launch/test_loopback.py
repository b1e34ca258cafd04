"""Engines listen on loopback alone, whatever the host is called and whatever the shell says."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from colo_lib.launch import vllm_server
from colo_lib.launch.specs import specs_of
from colo_lib.params import check
from colo_lib.paths import REPOSITORY
from colo_lib.placement import placement_of
from tests.conftest import MODELS
from tests.sockets import beyond_loopback, listening

WIDER = {
    "VLLM_HOST_IP": "192.0.2.7",
    "NCCL_SOCKET_IFNAME": "eth0",
    "GLOO_SOCKET_IFNAME": "eth0",
    "TP_SOCKET_IFNAME": "eth0",
}
NANO = {
    "gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"), "device": "cpu", "devices": "0,1",
    "gen_kv_cache_gib": 1.0, "gen_max_model_len": 128, "ready_timeout_s": 400.0,
}  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("step", ["step1", "configB"])
def test_the_shell_cannot_widen_where_the_ranks_meet(device: str, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WIDER.items():
        monkeypatch.setenv(name, value)
    params = check({"device": device, "devices": "0,1"}, "test")
    told = vllm_server.gen_environment(specs_of(params, placement_of(step, params)).engines.gen, "key")
    assert told["VLLM_HOST_IP"] == "127.0.0.1"
    assert {told[name] for name in WIDER if name != "VLLM_HOST_IP"} == {"lo"}


def test_the_reading_of_proc_finds_what_listens_and_where() -> None:
    kinds = (
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET6, "::"),
        (socket.AF_INET6, "::1"),
    )
    made = []
    for family, host in kinds:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = socket.socket(family, kind)
            one.bind((host, 0))
            if kind == socket.SOCK_STREAM:
                one.listen()
            made.append(one)
    connected = socket.create_connection(made[2].getsockname())
    found = listening([os.getpid()])
    ports = {(host, port) for _, _, host, port in found}
    assert {one.getsockname()[:2] for one in made} <= ports
    assert connected.getsockname()[:2] not in ports
    assert {host for _, _, host, _ in beyond_loopback(found)} == {"0.0.0.0", "::"}
    for one in (*made, connected):
        one.close()


@pytest.mark.engine
def test_engines_of_two_ranks_listen_on_loopback_alone(tmp_path: Path, engine_python: Path) -> None:
    """Where the host's name means its outer address, as on many hosts: Gloo took that one, and listened there."""
    file = tmp_path / "nano.yaml"
    values = NANO | {"gen_python": str(engine_python), "embed_python": str(engine_python)}
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    command = [sys.executable, "-m", "tests.launch.listens", str(file), "configB", str(tmp_path / "logs")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["processes"] >= 5, "a server, its core, two ranks, two embedders"
    assert told["ready"], "the server itself listens"
    assert beyond_loopback(told["ready"]) == []
    assert [host for _, host in told["seen"] if not ipaddress.ip_address(host).is_loopback] == []
