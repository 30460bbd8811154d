"""The plan of merging over a run."""

import math

import pytest
import torch
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.job import Job, Request
from highlight_diffusion.engine.merging.config import PLANNED, PRESETS, SDTMConfig, parse_blocks
from highlight_diffusion.engine.merging.job import MergeJob
from highlight_diffusion.engine.merging.matcher import BUCKETS, patches
from highlight_diffusion.engine.merging.sites import ATTENTION, MLP
from highlight_diffusion.engine.merging.stages import MergingRun, progress_of
from highlight_diffusion.engine.method import DenseContext
from highlight_diffusion.engine.partial.token_subset import TokenGrid, subsets_of
from highlight_diffusion.engine.setup import start_run
from highlight_diffusion.engine.time_axis import FLOW
from highlight_diffusion.engine.trace import Evaluation, RunRecord

OFF = HighlightConfig(enabled=False)
PURE = SDTMConfig(mcw=1, protect_steps=0)
STEPS = 10
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS + 1))


def state(config: SDTMConfig, size=(16, 16), images: int = 1) -> MergingRun:
    return MergingRun(config, SIGMAS, TokenGrid(size), images, depth=4)


def step(merging: MergingRun, index: int, **known) -> tuple[Evaluation, MergeJob | None]:
    evaluation = Evaluation(index, index, SIGMAS[index], "dense", "off", 1.0)
    job = merging.before_dense(evaluation, DenseContext(alone=True, **known))
    images = merging.matcher.images
    merging.after_dense(torch.randn(len(images), 4, *merging.matcher.grid.frame, generator=torch.Generator().manual_seed(1)))
    record(job)
    return evaluation, job


def record(job: MergeJob | None) -> None:
    """As an executor does."""
    for image in job.images if job is not None and job.record else ():
        if image.merge is not None:
            image.residuals.put((0, 0), ("positive",), torch.zeros(1))


def merges(job: MergeJob | None) -> bool:
    return job is not None and not job.record


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_ratio_falls_by_a_cosine():
    config = SDTMConfig(r=0.3, delta=0.2)
    assert config.ratio(0) == pytest.approx(0.5) and config.ratio(1) == pytest.approx(0.1)
    assert config.ratio(0.5) == pytest.approx(0.1 + 0.4 * math.cos(math.pi / 4))
    assert SDTMConfig(r=0.9, delta=0.5).ratio(0) == 0.75  # all windows of four


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 1.5}, "r is 1.5"), ({"delta": -0.1}, "delta is -0.1"), ({"switch": 2}, "switch is 2"),
        ({"window": 1}, "window is 1"), ({"reuse": 0}, "reuse is 0"), ({"protect_steps": 1}, "protect_steps is 1"),
        ({"mcw": 0.5, "protect_steps": 0}, "set mcw to 1 or protect_steps to 2"), ({"threshold": 3}, "threshold is 3"),
        ({"memory": "disk"}, 'memory is "disk"; choose device, 8 bit or offload'),
        ({"start_percent": 0.9, "end_percent": 0.1}, "start_percent 0.9 is not below"),
    ],
)  # fmt: skip
def test_bad_settings_are_clear_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        SDTMConfig(**settings)


def test_blocks_are_counted_from_either_end():
    assert SDTMConfig(protect_blocks=parse_blocks("0, 1,-1,99")).spared_blocks(24) == {0, 1, 23}
    with pytest.raises(ValueError, match='protect_blocks is "first"'):
        parse_blocks("first")


def test_presets_are_valid_and_save_ever_more():
    ratios = [SDTMConfig(**PRESETS[name]).r for name in ("quality", "balanced", "fast")]
    assert ratios == sorted(set(ratios))


def test_progress_goes_by_sigma():
    assert progress_of(1.0, SIGMAS) == 0 and progress_of(SIGMAS[STEPS - 1], SIGMAS) == 1
    assert progress_of(SIGMAS[3], SIGMAS) == pytest.approx(3 / 9)
    assert progress_of((SIGMAS[3] + SIGMAS[4]) / 2, SIGMAS) == pytest.approx(3.5 / 9)


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_stages_follow_each_other_and_every_evaluation_has_its_reason():
    merging = state(SDTMConfig(r=0.5, delta=0.25, mcw=1, protect_steps=0, detail_attention=False, switch=0.4))
    reasons = [step(merging, i)[0].reason for i in range(STEPS)]
    assert reasons[0] == "whole: no prediction yet to match tokens by"
    assert all("structure" in r and "attention and MLP" in r for r in reasons[1:4])
    assert all("detail" in r and r.endswith("in MLP") for r in reasons[4:])


def test_detail_is_recorded_before_anything_is_merged():
    merging = state(SDTMConfig(protect_steps=3))
    kinds = []
    for i in range(8):
        _, job = step(merging, i)
        kinds.append("whole" if job is None else "records" if job.record else "merges")
    assert kinds == ["whole", "records", "merges", "merges", "records", "merges", "merges", "records"]


def test_a_matching_serves_several_evaluations_and_then_moves():
    merging = state(SDTMConfig(r=0.5, delta=0, mcw=1, protect_steps=0, reuse=3, switch=1))
    step(merging, 0)
    made = []
    for i in range(1, 7):
        step(merging, i)
        made.append(merging.matcher.images[0].merge)
    assert made[0] is made[1] is made[2] and made[3] is made[4] is made[5] and made[0] is not made[3]
    assert not torch.equal(made[0].places, made[3].places)


def test_merged_counts_come_in_buckets():
    merging = state(SDTMConfig(r=0.5, delta=0.4, mcw=1, protect_steps=0, reuse=1), size=(64, 64))
    counts = set()
    for i in range(STEPS):
        _, job = step(merging, i)
        if merges(job):
            counts.add(1024 - job.images[0].merge.merged_count)
    assert len(counts) > 3 and all(abs(n * BUCKETS / 1024 - round(n * BUCKETS / 1024)) < 0.1 for n in counts)


def test_what_is_attended_is_never_merged():
    merging = state(SDTMConfig(r=0.75, delta=0, mcw=1, protect_steps=0, reuse=1))
    highlight = torch.zeros(1, 8, 8, dtype=torch.bool)
    highlight[:, 2:5, 3:6] = True
    jobs = [job for i in range(STEPS) if merges(job := step(merging, i, highlight=highlight)[1])]
    assert jobs
    for job in jobs:
        assert not job.images[0].merge.shared().view(8, 8)[2:5, 3:6].any()
        assert job.images[0].merge.shared().any()


def test_a_threshold_leaves_unlike_tokens_alone():
    features = torch.randn(1, 4, 16, 16)
    merging = state(SDTMConfig(r=0.5, delta=0, mcw=1, protect_steps=0, threshold=0.9))
    merging.after_dense(features)
    assert merging.before_dense(Evaluation(0, 1, SIGMAS[1], "dense", "off", 1.0), DenseContext()) is None
    flat = features.clone()
    flat[..., :8] = 0.5
    merging.after_dense(flat)
    merging.forget()
    job = merging.before_dense(Evaluation(0, 2, SIGMAS[2], "dense", "off", 1.0), DenseContext())
    shared = job.images[0].merge.shared().view(8, 8)
    assert shared[:, :4].any() and not shared[:, 4:].any()


def test_fairness_spares_what_was_merged_last():
    """The released code has the sign the other way round and merges the same tokens again and again."""

    def again(a: float) -> float:
        merging = state(SDTMConfig(r=0.375, delta=0, mcw=1, protect_steps=0, reuse=1, a_s=a, switch=1, rotate=False))
        merged = []
        for i in range(STEPS):
            _, job = step(merging, i)
            if merges(job):
                merged.append(job.images[0].merge.shared())
        return float(torch.stack(merged).float().mean(0).max())

    assert again(-1.0) == again(0.0) == 1.0 and again(10.0) <= 0.6


def test_patches_of_a_frame_that_does_not_divide():
    x = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
    own = patches(x, TokenGrid((5, 3)))
    assert own.shape == (6, 8) and own[0].tolist() == [0, 1, 3, 4, 15, 16, 18, 19]
    assert own[5].tolist() == [14] * 4 + [29] * 4


def test_only_what_a_stage_merges_is_recorded():
    both, detail = (state(SDTMConfig(detail_attention=False, switch=switch, protect_steps=2)) for switch in (1.0, 0.0))
    for merging, parts in ((both, {ATTENTION, MLP}), (detail, {MLP})):
        jobs = [job for i in range(4) if (job := step(merging, i)[1]) is not None]
        assert [job.record for job in jobs] == [True, False, True] and all(job.parts == parts for job in jobs)


def test_where_memory_runs_out_the_run_goes_on_without_merging():
    merging = state(SDTMConfig())
    own = RunRecord((1, 4, 16, 16), "euler", SIGMAS)
    held = start_run(OFF, own, 2, subsets_of(TokenGrid((16, 16))), axis=FLOW, methods=[merging])

    def compute(job: Job) -> list[torch.Tensor]:
        task = job.task(MergeJob)
        if merges(task):
            raise RuntimeError("out of memory")
        record(task)
        return [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))]

    for sigma in SIGMAS[:-1]:
        held.evaluate(Request(torch.zeros(1, 4, 16, 16), sigma, "same"), compute, lambda error: "memory" in str(error))
    reasons = [e.reason for e in own.evaluations]
    assert reasons[2].startswith("memory ran out beside what merging remembers: computed without") and merging.bytes == 0
    assert all("not merged: memory ran out" in reason for reason in reasons[3:])
    assert all(e.merged is None and e.active == 1 for e in own.evaluations)


# -- by a plan of Highlight Diffusion ------------------------------------------------------------------------------------


def by_plan(*wanted, own: bool = True) -> list[tuple[str, bool]]:
    """What merging does over evaluations of which the plan wants something: what it says, and whether it merges."""
    merging = MergingRun(PLANNED if own else SDTMConfig(), SIGMAS, TokenGrid((16, 16)), 1, depth=4, by_plan=own)
    done = []
    for index, planned in enumerate(wanted, 1):
        evaluation = Evaluation(index, index, SIGMAS[index], "dense", "refresh", 1.0)
        job = merging.before_dense(evaluation, DenseContext(planned=planned))
        record(job)
        merging.after_dense(torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)))
        done.append((evaluation.reason, merges(job)))
    return done


def test_by_plan_tokens_are_merged_where_the_plan_says_so_and_nothing_is_said_elsewhere():
    done = by_plan("exact", "record", "merge", "exact", "record", "merge")
    assert [merged for _, merged in done] == [False, False, True, False, False, True]
    assert [reason for reason, merged in done if not merged] == ["refresh"] * 4
    assert all("tokens saved in attention and MLP" in reason for reason, merged in done if merged)


def test_by_plan_without_a_recording_the_evaluation_is_whole_and_says_why():
    (reason, merged), *_ = by_plan("merge")
    assert not merged and "no prediction yet" in reason
    *_, (reason, merged) = by_plan("exact", "merge")
    assert not merged and "no detail recorded yet" in reason


def test_a_node_that_merges_goes_by_the_plan_where_there_is_one():
    done = by_plan("exact", "record", "merge", "exact", "exact", "exact", own=False)
    assert [merged for _, merged in done] == [False, False, True, False, False, False]
    assert any(merged for _, merged in by_plan(*[None] * 6, own=False))
    assert not any(merged for _, merged in by_plan(*[None] * 6))
