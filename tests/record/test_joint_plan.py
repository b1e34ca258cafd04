"""What a joint sweep measures: common trials once, engines changed least, nothing shared that could differ."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from colo_lib.params import STEPS, Params, check
from colo_lib.paths import RECORDED
from colo_lib.placement import placement_of
from colo_lib.record.joint_sweep import cells_of_one_start, plan_joint, sharing, what_matters
from colo_lib.sweep_plan import read_plan
from tests.conftest import MODELS
from tests.launch.test_identity import identity_of

GPU: dict[str, Any] = {
    "gen_model": str(MODELS / "nano-gen"), "embed_model": str(MODELS / "nano-embed"), "gen_python": "/bin/true",
    "device": "cuda", "devices": "0,1", "steps": "step1,step2,step4,mps-alone", "blocks": 3, "starts": 1,
    "gen_max_num_seqs": 64,
}  # fmt: skip

VARIED = ("gen_concurrency", "embed_duty", "gen_enforce_eager")


def cells(**varied: list[Any]) -> list[tuple[str, Params]]:
    (name, values), *_ = varied.items()
    return [(f"cell-{number}", check(GPU | {name: value}, "test")) for number, value in enumerate(values)]


def shape(varied: list[tuple[str, Params]]) -> Counter:
    """(step, number of cells that a trial counts for) -> trials."""
    return Counter((trial.placement.step, len(trial.cells)) for trial in plan_joint(varied))


def test_how_embed_is_paced_changes_no_trial_of_a_workload_alone() -> None:
    assert shape(cells(embed_duty=[0.2, 0.4, 0.8])) == {
        ("step1", 3): 3, ("step4", 3): 3, ("mps-alone", 3): 3, ("step2", 1): 9,
    }  # fmt: skip


def test_a_cap_on_embed_changes_the_shared_step_alone_and_its_engine() -> None:
    varied = cells(mps_embed_thread_percentage=[100, 50])
    assert shape(varied)["step2", 1] == 6
    assert shape(varied)["mps-alone", 2] == 3
    (_, free), (_, capped) = varied
    one, other = (identity_of(params, placement_of("step2", params)) for params in (free, capped))
    assert one.gen == other.gen
    assert one.embed != other.embed


def test_a_cap_on_gen_changes_its_engine_under_mps_and_not_without() -> None:
    (_, free), (_, capped) = cells(mps_gen_thread_percentage=[100, 50])
    for step, same in (("step1", True), ("step2", False)):
        assert (
            identity_of(free, placement_of(step, free)).gen == identity_of(capped, placement_of(step, capped)).gen
        ) is same
    assert shape(cells(mps_gen_thread_percentage=[100, 50]))["mps-alone", 1] == 6


def test_concurrency_changes_what_gen_does_and_not_what_embed_does_alone() -> None:
    assert shape(cells(gen_concurrency=[1, 8])) == {
        ("step1", 1): 6, ("mps-alone", 1): 6, ("step2", 1): 6, ("step4", 2): 3,
    }  # fmt: skip
    # Without max_num_seqs set, each concurrency has a server of its own.
    (_, one), (_, eight) = [(name, check(params.model_dump() | {"gen_max_num_seqs": 0}, "test"))
                            for name, params in cells(gen_concurrency=[1, 8])]  # fmt: skip
    assert identity_of(one, placement_of("step1", one)).gen != identity_of(eight, placement_of("step1", eight)).gen


def test_engines_are_changed_least_and_gen_least_of_all() -> None:
    plan = plan_joint(cells(mps_embed_thread_percentage=[100, 50, 25]))
    used = [trial.specs.engines for trial in plan]
    gens = [one.gen for one in used]
    assert len([1 for before, after in itertools.pairwise(gens) if before != after]) == 1
    embeds = [one.embed for one in used]
    assert len([1 for before, after in itertools.pairwise(embeds) if before != after]) == 3


def test_blocks_alternate_and_every_trial_of_every_cell_is_planned_once() -> None:
    varied = cells(gen_concurrency=[1, 2, 4])
    plan = plan_joint(varied)
    planned = Counter((cell, trial.placement.step, trial.block) for trial in plan for cell in trial.cells)
    wanted = {(name, step, block) for name, params in varied for step in params.step_names() for block in (1, 2, 3)}
    assert planned == Counter(wanted)
    mps = [(trial.placement.step, trial.cells, trial.block) for trial in plan if trial.placement.mechanism == "mps"]
    by_block = {block: [one[:2] for one in mps if one[2] == block] for block in (1, 2, 3)}
    assert by_block[1] == by_block[2][::-1] == by_block[3]


def test_every_round_starts_the_engines_anew_and_measures_every_cell() -> None:
    varied = [(name, check(params.model_dump() | {"starts": 3}, "test"))
              for name, params in cells(gen_concurrency=[1, 2])]  # fmt: skip
    plan = plan_joint(varied)
    assert [(trial.block, trial.round) for trial in plan] == sorted((trial.block, trial.round) for trial in plan)
    assert {(trial.block, trial.round) for trial in plan} == {(1, 1), (2, 2), (3, 3)}
    first, second = ([one.placement.mechanism for one in plan if one.round == number] for number in (1, 2))
    assert first[0] == second[-1] != first[-1] == second[0], "every second round runs backwards"


def test_who_shares_a_server_is_found_over_all_cells() -> None:
    plan = plan_joint(cells(gen_concurrency=[1, 2]))
    mps = next(trial for trial in plan if trial.placement.mechanism == "mps")
    assert {one.step for one in sharing(plan, mps)} == {"step2", "mps-alone"}


@settings(max_examples=60)
@given(
    step=st.sampled_from(STEPS),
    changed=st.sampled_from(
        [
            ("gen_concurrency", 3),
            ("gen_output_tokens", 9),
            ("embed_batch_size", 3),
            ("embed_duty", 0.1),
            ("mps_gen_priority", "below-normal"),
            ("window_s", 1.5),
            ("seed", 9),
            ("gen_enforce_eager", True),
            ("embed_micro_batch_size", 2),
            ("embed_sequence_tokens", 9),
            ("gen_kv_cache_gib", 2.0),
        ]
    ),
)
def test_what_a_loaded_workload_is_told_always_matters(step: str, changed: tuple[str, Any]) -> None:
    base = check(GPU | {"gen_enforce_eager": False}, "test")
    other = check(base.model_dump() | {changed[0]: changed[1]}, "test")
    placement = placement_of(step, base)
    name = changed[0]
    relevant = what_matters(base, placement) != what_matters(other, placement_of(step, other))
    if name.startswith("gen_") and placement.runs_gen:
        assert relevant
    if name in ("embed_batch_size", "embed_sequence_tokens") and placement.runs_embed:
        assert relevant
    if name in ("window_s", "seed", "gen_enforce_eager", "gen_kv_cache_gib"):
        assert relevant


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([0.2, 0.4, 0.8]), st.booleans()),
                    min_size=1, max_size=9, unique=True),
    workers=st.integers(1, 12),
)  # fmt: skip
def test_cells_that_need_the_same_servers_go_together_as_far_as_workers_are_kept_busy(
    values: list[tuple[int, float, bool]], workers: int
) -> None:
    grid = [
        (
            f"cell-{place}",
            check(GPU | {"gen_concurrency": many, "embed_duty": duty, "gen_enforce_eager": eager}, "test"),
        )
        for place, (many, duty, eager) in enumerate(values)
    ]
    groups = cells_of_one_start(grid, workers)
    by_name = dict(grid)
    assert sorted(name for group in groups for name in group) == sorted(by_name), "each cell once"
    assert all(len({by_name[name].gen_enforce_eager for name in group}) == 1 for group in groups), "of one server each"
    kinds = len({eager for _, _, eager in values})
    assert len(groups) == max(kinds, min(workers, len(grid))), "no more parts than there are workers"
    if kinds == 1:
        assert max(map(len, groups)) - min(map(len, groups)) <= 1, "as evenly as can be"
    assert len(cells_of_one_start(grid)) == kinds


def test_the_recorded_levers_take_two_starts_of_the_server_on_one_worker_instead_of_26() -> None:
    (folder,) = (item for item in RECORDED.glob("h100-llama-*") if item.is_dir())
    base, rows = read_plan(folder)
    local = {"gen_python": "/bin/true", "embed_python": "/bin/true"}
    grid = [(row.name, check(base.model_dump() | row.changes | local, "test")) for row in rows]
    assert len(grid) == 13
    assert len(cells_of_one_start(grid)) == 1

    def starts(plan: list[Any]) -> int:
        servers = [trial.specs.engines.gen for trial in plan]
        return sum(1 for _ in itertools.groupby(servers))

    assert starts(plan_joint([(name, params.model_copy(update={"starts": 1})) for name, params in grid])) == 2
    alone = [plan_joint([(name, params.model_copy(update={"starts": 1}))]) for name, params in grid]
    assert sum(map(starts, alone)) == 26


def test_sizes_and_policies_of_one_process_share_its_server_and_all_that_they_do_not_touch() -> None:
    steps = "step1,step4,inproc,inproc-alone"
    varied = [
        (f"{sizes}-{policy}", check(GPU | {"steps": steps, "inproc_embed_sms": sizes, "inproc_policy": policy}, "test"))
        for sizes in ("0", "96", "96,64")
        for policy in ("fixed", "phase", "slo")
    ]
    assert shape(varied) == {("step1", 9): 3, ("step4", 9): 3, ("inproc-alone", 9): 3, ("inproc", 1): 27}
    order = [trial.specs.engines for trial in plan_joint(varied)]
    servers = [gen for gen, _ in itertools.groupby(engines.gen for engines in order)]
    embedders = [embed for embed, _ in itertools.groupby((engines.gen, engines.embed) for engines in order)]
    assert (len(servers), len(embedders)) == (2, 4)
