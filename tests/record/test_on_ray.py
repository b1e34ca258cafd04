"""A sweep on two local Ray nodes: cells of one start together, lost workers sent again, a lost node survived."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo_lib.data.sweep import open_sweep
from colo_lib.errors import InputError
from colo_lib.examples.simulated_run import write_run
from colo_lib.examples.simulated_trial import Plan
from colo_lib.params import Params
from colo_lib.paths import REPOSITORY, cell_folder, cell_runs
from colo_lib.record import ray_worker, sweep_on_ray
from colo_lib.record.sweep import carry_out_sweep, sweep_summary
from colo_lib.records import CellRecord
from colo_lib.sweep_plan import begin_sweep, grid, parse_axis
from tests.processes import token_carriers, wait_until
from tests.test_run_command import colo, ended, params_file, read_until

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
NODES, ATTEMPTS = 2, 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of this machine, two CPUs each; workers find this checkout."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        made = Cluster(initialize_head=False)
        try:
            started(made, **options)
            started(made, num_cpus=2, object_store_memory=100 * 2**20)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def started(cluster: Any, **options: Any) -> Any:
    """A node more; Ray gives a node 30 s to start, which cores that are kept busy do not always give it."""
    for _ in range(ATTEMPTS - 1):
        try:
            return cluster.add_node(**options)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return cluster.add_node(**options)


def begun(tmp_path: Path, values: str, jointly: bool = False, over: str = "gen_concurrency", **given: Any) -> Path:
    params = Params(sweeps_dir=str(tmp_path / "sweeps"), blocks=1, **given)
    axes = [parse_axis(f"{over}={values}")]
    return begin_sweep(params, axes, grid(params, axes), jointly)


def pretend(folder: Path, cells: list[dict[str, Any]], jointly: bool) -> list[dict[str, Any]]:
    """A worker's part: 1 ends well, 2 is killed at its first attempt, 4 always, 8 is slow at its first."""
    node = ray.get_runtime_context().get_node_id()
    records = []
    for cell in cells:
        count, attempt, values = cell["values"]["gen_concurrency"], cell["attempt"], cell["values"]
        if count == 4 or (count == 2 and attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if count == 8 and attempt == 1:
            Path(values["runs_dir"]).parent.mkdir(parents=True, exist_ok=True)
            (Path(values["runs_dir"]).parent / "began").write_text(f"{node} {os.getpid()}")
            time.sleep(600)
        time.sleep(0.5)
        write_run(cell_runs(cell_folder(folder, cell["cell"])), Plan(run_id=cell["cell"], blocks=1, window_s=0.5))
        host = f"{node} {os.getpid()}"
        record = CellRecord(cell=cell["cell"], status="done", reason=None, attempts=attempt, host=host, total_s=0.5)
        records.append(record.plain())
    return records


def test_cells_run_on_both_nodes_and_a_lost_worker_is_sent_again(cluster: Any, tmp_path: Path) -> None:
    folder = begun(tmp_path, "1,2,4,16,32,64")
    said: list[str] = []
    records = carry_out_sweep(folder, said.append, sweep_on_ray.carry_out_on(cluster.address, pretend))
    status = {found.cell: (found.status, found.attempts) for found in records}
    assert status == {
        "cell-001": ("done", 1), "cell-002": ("done", 2), "cell-003": ("lost", 3),
        "cell-004": ("done", 1), "cell-005": ("done", 1), "cell-006": ("done", 1),
    }  # fmt: skip
    assert len({found.host.split()[0] for found in records if found.status == "done"}) == NODES
    assert "cell-003 lost: its worker was lost 3 times" in sweep_summary(records, 6)
    assert any("cell-002: its worker was lost" in line and "sent again" in line for line in said)
    assert list(open_sweep(folder).runs) == ["cell-001", "cell-002", "cell-004", "cell-005", "cell-006"]


def test_cells_of_one_start_share_a_worker_and_none_pays_for_the_one_that_kills_it(
    cluster: Any, tmp_path: Path, engine_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server takes all concurrencies: a half of the cells goes to each node, and 4 kills its worker every time."""
    del engine_python
    # A node that was slow to start and was asked for twice may have come up after all.
    monkeypatch.setattr(sweep_on_ray._Cluster, "_workers", lambda *_: NODES)
    folder = begun(tmp_path, "1,3,4,5,6,7", jointly=True, gen_max_num_seqs=64, steps="step4")
    records = carry_out_sweep(folder, lambda _: None, sweep_on_ray.carry_out_on(cluster.address, pretend))
    status = {found.cell: (found.status, found.attempts) for found in records}
    assert status == {
        "cell-001": ("done", 3), "cell-002": ("done", 3), "cell-003": ("lost", 3),
        "cell-004": ("done", 1), "cell-005": ("done", 1), "cell-006": ("done", 1),
    }  # fmt: skip
    assert len({found.host for found in records[3:]}) == 1, "one worker had them all"
    assert len({found.host for found in records[:2]}) == NODES, "and each of these its own in the end"
    assert list(open_sweep(folder).runs) == ["cell-001", "cell-002", "cell-004", "cell-005", "cell-006"]


def test_a_lost_node_costs_no_cell(cluster: Any, tmp_path: Path) -> None:
    """After those that count on two nodes: it adds one and takes one away."""
    folder = begun(tmp_path, "8")
    said: list[str] = []
    began = folder / "cells/cell-001/began"
    started(cluster, num_cpus=8, object_store_memory=100 * 2**20)

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("cell-001: gen_concurrency"):
            threading.Thread(target=lose, daemon=True).start()

    def lose() -> None:
        assert wait_until(lambda: began.exists() and " " in began.read_text(), 120)
        node, pid = began.read_text().split()
        victims = [item for item in cluster.worker_nodes if item.node_id == node]
        if victims:
            cluster.remove_node(victims[0], allow_graceful=False)
        else:  # Ray chose the head node, which cannot be lost without the cluster
            os.kill(int(pid), signal.SIGKILL)

    records = carry_out_sweep(folder, say, sweep_on_ray.carry_out_on(cluster.address, pretend))
    assert [(found.status, found.attempts) for found in records] == [("done", 2)], said


def test_a_cell_asks_for_as_many_gpus_as_it_names() -> None:
    offered = {"GPU": 4.0, "CPU": 8.0}
    assert sweep_on_ray.resources_of("cuda", ["0"], offered)["num_gpus"] == 1
    assert sweep_on_ray.resources_of("cuda", ["0", "1"], offered)["num_gpus"] == 2
    assert "num_gpus" not in sweep_on_ray.resources_of("cpu", ["0", "1"], offered)
    with pytest.raises(InputError, match="the cluster has 1"):
        sweep_on_ray.resources_of("cuda", ["0", "1"], {"GPU": 1.0})


def test_a_folder_travels_whole_in_pieces_and_escapes_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import tarfile

    monkeypatch.setattr(ray_worker, "CHUNK_BYTES", 65_536)
    content = os.urandom(1_000_000)
    (tmp_path / "from/a").mkdir(parents=True)
    (tmp_path / "from/a/file").write_bytes(content)
    pieces = list(ray_worker.packed(tmp_path / "from"))
    assert len(pieces) > 15
    assert max(map(len, pieces)) == 65_536
    ray_worker.unpack(io.BytesIO(b"".join(pieces)), tmp_path / "to")
    assert (tmp_path / "to/a/file").read_bytes() == content
    half = ray_worker.packed(tmp_path / "from")
    assert next(half)
    half.close()  # nobody asks for the rest: nothing waits for ever
    assert list(ray_worker.packed(tmp_path / "from")) == pieces
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../escaped"))
    buffer.seek(0)
    with pytest.raises(tarfile.TarError):
        ray_worker.unpack(buffer, tmp_path / "to")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.engine
def test_real_cells_run_together_on_workers_which_start_their_engines_once(
    cluster: Any, tmp_path: Path, engine_python: Path
) -> None:
    """Four cells on two nodes, two a worker: each pair takes the embedder's trial from one start of it."""
    given = {"steps": "step4", "gen_python": str(engine_python), "starts": 1}
    file = params_file(tmp_path, sweeps_dir=str(tmp_path / "sweeps"), **given)
    words = ("sweep", str(file), "--over", "gen_prompt_tokens=8,12,16,20", "--ray", cluster.address)
    code, output = ended(colo(*words, cwd=tmp_path), 400)
    assert code == 0, output
    (folder,) = (tmp_path / "sweeps").iterdir()
    runs = open_sweep(folder).runs
    rates = [run.trials["recorded_embed_sequences_per_s"].iloc[0] for run in runs.values()]
    assert rates[0] == rates[1] > 0
    assert rates[2] == rates[3] > 0
    measured = {
        name: json.loads((run.folder / "steps/step4/trial-1/trial.json").read_text()).get("measured_in")
        for name, run in runs.items()
    }
    assert measured == {"cell-001": None, "cell-002": "cell-001", "cell-003": None, "cell-004": "cell-003"}
    assert len(list(folder.glob("cells/*/runs/*/logs/embed*.log"))) == NODES


@pytest.mark.engine
def test_a_real_cell_runs_on_the_cluster(cluster: Any, tmp_path: Path, engine_python: Path) -> None:
    file = params_file(tmp_path, steps="step4", sweeps_dir=str(tmp_path / "sweeps"), gen_python=str(engine_python))
    words = ("sweep", str(file), "--over", "embed_batch_size=2", "--ray", cluster.address)
    code, output = ended(colo(*words, cwd=tmp_path))
    assert code == 0, output
    assert re.search(r"^Ray: \d nodes", output, re.M)
    (folder,) = (tmp_path / "sweeps").iterdir()
    (run,) = open_sweep(folder).runs.values()
    assert run.trials["recorded_embed_sequences_per_s"].iloc[0] > 0
    assert "Ray node" in (folder / "cells/cell-001/cell.json").read_text()


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path, engine_python: Path) -> None:
    file = params_file(tmp_path, steps="step4", sweeps_dir=str(tmp_path / "sweeps"))
    for address in ("127.0.0.1:1", "127.0.0.1:99999", "params/cpu.yaml"):
        code, output = ended(
            colo("sweep", str(file), "--over", "embed_batch_size=2", "--ray", address, cwd=tmp_path), 60
        )
        assert code == 2, output
        assert f"--ray {address}" in output
        assert "Traceback" not in output
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.engine
def test_a_killed_driver_leaves_nothing_of_its_local_ray(tmp_path: Path, engine_python: Path) -> None:
    file = params_file(tmp_path, steps="step4", sweeps_dir=str(tmp_path / "sweeps"))
    process = colo("sweep", str(file), "--over", "embed_batch_size=2", "--ray", cwd=tmp_path)
    read_until(process, r"^cell-001: ")
    assert token_carriers()
    process.kill()
    process.communicate()
    assert wait_until(lambda: not token_carriers(), 120), token_carriers()
