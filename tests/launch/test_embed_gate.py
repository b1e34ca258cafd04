"""An embedder that starts beside gen: it imports, and goes to its device no sooner than it is let."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_lib.launch.embed_server import EmbedProcess
from colo_lib.launch.rpc import runtime_folder
from colo_lib.launch.specs import specs_of
from colo_lib.params import check
from colo_lib.placement import placement_of
from tests.conftest import MODELS
from tests.processes import wait_until

pytestmark = pytest.mark.engine


def test_it_builds_no_model_before_it_is_let(tmp_path: Path, engine_python: Path) -> None:
    models = {"gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed")}
    params = check(models, "test")
    spec, log = specs_of(params, placement_of("step4", params)).engines.embed, tmp_path / "embed.log"
    with runtime_folder() as runtime:
        socket, gate = runtime / "embed.sock", runtime / "embed.go"
        process = EmbedProcess(spec, spec.devices[0], log, socket, held={"gate": str(gate)})
        try:
            assert wait_until(lambda: "waits for its turn" in log.read_text())
            assert not wait_until(lambda: socket.exists() or "ready" in log.read_text(), timeout_s=2.0)
            assert process.child.running()
            process.wait_ready()
            assert wait_until(lambda: "embed: ready" in log.read_text())
        finally:
            process.stop()
