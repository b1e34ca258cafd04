"""MPS against a control daemon that behaves like the real one, its failures included; nothing is left by any of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colo_lib.launch.mechanisms import witness
from colo_lib.launch.mechanisms.mps import Mps
from colo_lib.launch.process import Child
from tests.launch.mechanisms.conftest import Nvidia, Tenant, cuda, tenants
from tests.processes import wait_until


@contextmanager
def started(runtime: Path, logs: Path, **changes: object) -> Iterator[Mps]:
    params, placement = cuda(**changes)
    mps = Mps(params, placement, runtime, logs)
    try:
        yield mps
    finally:
        mps.close()
        assert not mps.folder.exists()


def both(mps: Mps, tenant: Tenant) -> tuple[Child, Child]:
    return tenant("gen", mps.environment("gen")), tenant("embed", mps.environment("embed"))


def test_attachment_is_proved_by_pid(nvidia: Nvidia, runtime: Path, tmp_path: Path, tenant: Tenant) -> None:
    with started(runtime, tmp_path) as mps:
        gen, embed = both(mps, tenant)
        assert wait_until(lambda: mps.control.servers() and len(mps.control.clients(mps.control.servers()[0])) == 2)
        evidence = witness(mps.facts(), tenants(gen, embed))
        assert evidence is not None
        assert evidence["attached"] == {"gen": [gen.pid], "embed": [embed.pid]}
        assert evidence["other_clients"] == []
        gen.stop()
        embed.stop()
    assert nvidia.orders()[-1] == "quit"
    assert (tmp_path / "mps-step2-control.log").read_text()
    assert "Creating server" in (tmp_path / "mps-step2-server.log").read_text()
