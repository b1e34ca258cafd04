"""Several processes that load `gen` together, told and read as one: where one process would not keep up.

    python -m colo_lib.launch.gen_team '{"socket": …, "processes": 4, …}'

Each member (`gen_client`) has every `processes`-th slot or request, with numbers of its own; all take the host's one
monotonic clock, so that what they saw is merged by time. Orders and answers are those of `gen_client`. A member that
ends, or does not answer, fails the load.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colo_lib.child_environment import spare_pandas
from colo_lib.frames import GEN, REQUESTS, ROWS, write_frame
from colo_lib.launch.client_orders import cpu_reading, run_ahead, serve_orders
from colo_lib.launch.rpc import ClientJob, Gaps, Handle, answers, call
from colo_lib.paths import frame_file

# Measured, 64 and 256 streams of a server that does nothing else: 42 to 51 us of a core a token, on cores that others
# used too. At 64 in flight and a token each 5 ms that is 0.6 of a core.
SLOTS_A_PROCESS = 64
MOST_PROCESSES = 8
CORES_A_PROCESS = 4
START_S = 15.0
POLL_S = 0.02


def processes_for(wanted: int, concurrency: int) -> int:
    """How many processes load gen: as many as are wanted, though no more than slots; 0: as the load needs.

    One for every 64 requests in flight, at most 8, and no more than a quarter of the cores: gen's server needs cores.
    """
    if wanted:
        return min(wanted, concurrency)
    cores = len(os.sched_getaffinity(0))
    return max(1, min(math.ceil(concurrency / SLOTS_A_PROCESS), MOST_PROCESSES, cores // CORES_A_PROCESS))


class Team:
    """The members, and what is asked of all of them at once."""

    def __init__(self, job: ClientJob) -> None:
        self.job = job
        self.members: list[Handle] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.gaps_ms: list[float] = []
        self.seen = [0] * job.processes

    async def assemble(self) -> None:
        """Start the members and wait until each answers; raises RuntimeError for one that does not."""
        for number in range(self.job.processes):
            job = replace(self.job, socket=f"{self.job.socket}-{number}", process=number)
            words = [sys.executable, "-m", "colo_lib.launch.gen_client", json.dumps(asdict(job))]
            child = subprocess.Popen(words)
            self.children.append(child)
            self.members.append(Handle(socket=job.socket, pid=child.pid, log=""))
        deadline_s = time.monotonic() + START_S
        for member, child in zip(self.members, self.children, strict=True):
            while not await asyncio.to_thread(answers, member):
                if child.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"member {member.socket} of the load client does not answer")
                await asyncio.sleep(POLL_S)

    def dismiss(self) -> None:
        """End the members."""
        for child in self.children:
            child.kill()
            child.wait()

    async def ask(self, do: str, more: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """An order to every member, with `more` of its own, all at once; raises OSError when one does not answer."""
        orders = zip(self.members, more, strict=True)
        return await asyncio.gather(*(asyncio.to_thread(call, member, do, **own) for member, own in orders))

    async def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order; a member that is gone is the load's error."""
        try:
            return await self._answer(order)
        except OSError as error:
            return EMPTY | {"error": f"a process of the load client does not answer ({error}); see its log"}

    async def _answer(self, order: dict[str, Any]) -> dict[str, Any]:
        do, each = order["do"], len(self.members)
        own = {name: value for name, value in order.items() if name != "do"}
        if do == "gaps":
            return asdict(await self.gaps(order["since"]))
        if do == "start":
            self.gaps_ms, self.seen = [], [0] * each
            return merged(await self.ask("start", [own | {"began_ns": time.monotonic_ns()}] * each))
        if do == "stop":
            folders = [Path(order["to"]) / f"client-{number}" for number in range(each)]
            for folder in folders:
                folder.mkdir()
            told = await self.ask("stop", [{"to": str(folder)} for folder in folders])
            await asyncio.to_thread(merge_frames, folders, Path(order["to"]))
            return merged(told)
        return merged(await self.ask("status", [{}] * each))

    async def gaps(self, since: int) -> Gaps:
        """As a client's: the gaps that any member saw after the first `since`, ms."""
        news = [Gaps(**told) for told in await self.ask("gaps", [{"since": seen} for seen in self.seen])]
        self.seen = [told.seen for told in news]
        for told in news:
            self.gaps_ms += told.gaps_ms
        return Gaps(len(self.gaps_ms), self.gaps_ms[since:], max(told.open_ms for told in news))


EMPTY: dict[str, Any] = {"tokens": 0, "last_ns": None, "failed_requests": 0, "silent": 0, "cpu": [], "lag_ms": 0.0}


def merged(told: list[dict[str, Any]]) -> dict[str, Any]:
    """The members' answers as one client's; `cpu` has a reading of each, and of this process at last."""
    return {
        **{name: sum(one[name] for one in told) for name in ("tokens", "failed_requests", "silent")},
        "last_ns": max((one["last_ns"] for one in told if one["last_ns"] is not None), default=None),
        "error": next((one["error"] for one in told if one["error"]), None),
        "cpu": [reading for one in told for reading in one["cpu"]] + [cpu_reading()],
        "oldest_due_ns": min((one["oldest_due_ns"] for one in told if one["oldest_due_ns"] is not None), default=None),
        "lag_ms": max(one["lag_ms"] for one in told),
    }


def merge_frames(folders: list[Path], to: Path) -> None:
    """The members' frames as one of each kind in `to`, in the order of time; theirs are removed."""
    for frame, columns in (("gen", GEN), ("requests", REQUESTS)):
        files = [frame_file(folder, frame) for folder in folders]
        table = pa.concat_tables([pq.read_table(file) for file in files]).sort_by(ROWS[frame].ordered)
        write_frame(to, frame, {name: table[name].combine_chunks() for name in columns})
        for file in files:
            file.unlink()
    for folder in folders:
        folder.rmdir()


async def serve(job: ClientJob) -> None:
    """Assemble the team, and answer for it."""
    team = Team(job)
    try:
        await team.assemble()
        await serve_orders(team.answer, job.socket)
    finally:
        team.dismiss()


def main() -> None:
    """Serve orders."""
    spare_pandas()
    run_ahead()
    asyncio.run(serve(ClientJob(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
