"""Who runs where, and with what command line."""

from __future__ import annotations

import pytest

from colo_lib.errors import InputError
from colo_lib.launch.specs import GenSpec, specs_of
from colo_lib.launch.vllm_server import free_port, gen_environment, server_command
from colo_lib.params import STEPS, Params, check
from colo_lib.placement import placement_of

CPU = check({"devices": "0,1"}, "test")
CUDA = check({"device": "cuda", "devices": "0,1", "gen_quantization": "fp8", "gen_enforce_eager": False}, "test")


def test_steps_one_to_four_share_engines_on_a_cpu() -> None:
    assert len({placement_of(step, CPU).engine_key() for step in STEPS[:4]}) == 1
    assert len({placement_of(step, CPU).engine_key() for step in CPU.step_names()}) == 3


def test_mps_needs_engines_of_its_own_on_a_gpu() -> None:
    keys = {step: placement_of(step, CUDA).engine_key() for step in STEPS[:4]}
    assert keys["step1"] == keys["step3"] == keys["step4"] != keys["step2"]


def test_configurations_use_one_device_each_or_both() -> None:
    dedicated, sharded = placement_of("configA", CPU), placement_of("configB", CPU)
    assert (dedicated.gen_devices, dedicated.embed_devices) == (("0",), (("1",),))
    assert (sharded.gen_devices, sharded.embed_devices) == (("0", "1"), (("0",), ("1",)))
    assert (dedicated.tensor_parallel, sharded.tensor_parallel) == (1, 2)


@pytest.mark.parametrize(("devices", "told"), [("0", "two devices"), ("", "no device"), ("0,0", "twice")])
def test_devices_that_do_not_suffice_are_refused(devices: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        placement_of("configB", check({"devices": devices}, "test"))


def gen_of(params: Params, step: str) -> GenSpec:
    return specs_of(params, placement_of(step, params)).engines.gen


def test_the_key_is_never_in_the_command_line() -> None:
    words = server_command(gen_of(CPU, "step1"), 1234)
    env = gen_environment(gen_of(CPU, "step1"), "secret-key")
    assert env["VLLM_API_KEY"] == "secret-key"
    assert not any("secret-key" in word for word in words)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--no-enable-prefix-caching" in words


def test_ranks_get_cores_of_their_own() -> None:
    assert gen_environment(gen_of(CPU, "configB"), "k")["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
    assert gen_environment(gen_of(CPU, "step2"), "k")["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"


def test_gpu_words_are_for_gpus() -> None:
    words = server_command(gen_of(CUDA, "configB"), 1)
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert words[words.index("--quantization") + 1] == "fp8"
    assert words[words.index("--kv-cache-memory-bytes") + 1] == str(2**30)
    assert "--enforce-eager" not in words
    assert gen_environment(gen_of(CUDA, "configB"), "k")["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_extra_arguments_cannot_undo_the_launchers_own() -> None:
    params = check({"gen_extra_args": "--host=0.0.0.0"}, "test")
    with pytest.raises(InputError, match="--host"):
        specs_of(params, placement_of("step1", params))


def test_a_taken_port_is_named() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"gen_port' = {port}"):
            free_port(port)
    assert free_port() > 0
