"""Where tokens are merged and given back, on blocks of a few layers."""

import pytest
import torch
from highlight_diffusion.engine.merging.matching import Merge, merge_tokens, merge_windows, windows
from highlight_diffusion.engine.merging.sites import (
    ATTENTION,
    MLP,
    MergedTokens,
    MergeResiduals,
    attention,
    merging,
    mlp,
    parallel,
    recording_residuals,
)
from highlight_diffusion.engine.partial.cache import ImageRows
from highlight_diffusion.engine.partial.order import Around
from torch import nn

COUNT, WIDTH, KEYS = 16, 8, ("positive", "negative")
BOTH, NONE = frozenset((ATTENTION, MLP)), frozenset()
LAYOUTS = {
    "image alone": (0, 0, True, 0), "text first": (3, 0, True, 0), "text last": (0, 3, False, 0),
    "text first, some behind": (3, 2, True, 2),
}  # fmt: skip


def merge() -> Merge:
    return merge_windows(torch.arange(4.0), windows((4, 4)), 2, COUNT)


def tokens(layout: str = "image alone", of: Merge | None = None) -> MergedTokens:
    _, _, others_first, trailing = LAYOUTS[layout]
    return MergedTokens(of or merge(), Around(others_first, trailing))


def hidden(before: int = 0, after: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, before + COUNT + after, WIDTH, generator=torch.Generator().manual_seed(0))


class Counted(nn.Linear):
    """A layer that notes how many tokens it was given."""

    def __init__(self):
        super().__init__(WIDTH, WIDTH)
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.shape[1])
        return super().forward(x)


class Attention(nn.Module):
    """Takes the tokens by name, and returns them beside something else, as some families' attentions do."""

    def __init__(self):
        super().__init__()
        self.into, self.out = Counted(), Counted()

    def forward(self, *, x: torch.Tensor, table: torch.Tensor) -> tuple[str, torch.Tensor]:
        return "beside", self.out(torch.tanh(self.into(x)) + table)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.mlp = Attention(), Counted()

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        beside, attended = self.attention(x=x, table=table)
        assert beside == "beside" and attended.shape == x.shape
        x = x + attended
        return x + self.mlp(x)


def sites(block: Block):
    yield attention(block.attention, input_arg="x", output_index=1)
    yield mlp(block.mlp)


def gather_inputs(block, args: list, kwargs: dict, gather: MergedTokens):
    x, table = args
    return [gather.tokens(x), gather.positions(table, 1)], kwargs


@pytest.fixture
def blocks() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Block() for _ in range(3)).eval().requires_grad_(False)


def run(blocks, x: torch.Tensor) -> torch.Tensor:
    table = torch.linspace(-1, 1, x.shape[1])[None, :, None]
    for block in blocks:
        x = block(x, table)
    return x


def seen(blocks) -> list[tuple[int, int]]:
    """How many tokens the last call's attentions and MLPs were given, block by block."""
    return [(block.attention.into.seen[-1], block.mlp.seen[-1]) for block in blocks]


# -- tokens among others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_images_tokens_are_merged_and_others_stay_where_they_are(layout):
    before, after = LAYOUTS[layout][:2]
    x, of, image = hidden(before, after), merge(), slice(before, before + COUNT)
    merged = tokens(layout).merge(x)
    assert merged.shape[1] == before + of.merged_count + after
    assert torch.equal(merged[:, before : before + of.merged_count], of.merge(x[:, image]))
    back = tokens(layout).unmerge(merged)
    assert torch.equal(back[:, image], of.unmerge(of.merge(x[:, image])))
    for part in (slice(0, before), slice(before + COUNT, None)):
        assert torch.equal(back[:, part], x[:, part])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_sets_members_apart_makes_the_whole_again(layout):
    before, after = LAYOUTS[layout][:2]
    x, gather = hidden(before, after), tokens(layout)
    detail = gather.residual(x)
    assert detail.shape == (2, len(merge().members), WIDTH)
    assert torch.allclose(gather.unmerge(gather.merge(x), detail), x, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lead", range(4))
def test_a_merged_token_has_the_position_of_its_leader(layout, lead):
    before, after = LAYOUTS[layout][:2]
    members = windows((4, 4))
    of = merge_tokens(torch.rand(4, 4, generator=torch.Generator().manual_seed(1)), members, 5, COUNT, lead)
    table = torch.arange(before + COUNT + after)[None]
    at = tokens(layout, of).positions(table, 1)[0].tolist()
    image = [before + int(place) for place in (*of.kept, *members[:, lead])]
    assert at == [*range(before), *image, *range(before + COUNT, before + COUNT + after)]


def test_between_the_sites_hidden_states_stay_whole():
    x = hidden()
    assert tokens().tokens(x) is x and tokens().text(x) is x


# -- sites ---------------------------------------------------------------------------------------------------------------


def test_a_site_of_one_module_begins_and_ends_there():
    first, last = nn.Linear(1, 1), nn.Linear(1, 1)
    assert (attention(first).input_module, attention(first).output_module, attention(first).parts) == (
        first,
        first,
        (ATTENTION,),
    )
    assert attention(first, last).output_module is last and mlp(first).parts == (MLP,)
    assert parallel(first, last).parts == (ATTENTION, MLP) and parallel(first, last).output_module is last


def test_attention_and_mlp_are_given_merged_tokens_and_the_stream_stays_whole(blocks):
    x = hidden()
    whole, few = run(blocks, x), merge().merged_count
    with merging(blocks, sites, gather_inputs, tokens(), BOTH):
        merged = run(blocks, x)
    assert seen(blocks) == [(few, few)] * 3
    assert merged.shape == whole.shape and not torch.equal(merged, whole)


def test_with_equal_tokens_in_each_group_nothing_is_lost(blocks):
    """Of one block whose table of positions is the same within a group."""
    x, of = hidden(), merge()
    x[:, of.groups] = x[:, of.groups][:, :, :1]
    table = torch.zeros(1, COUNT, 1)
    expected = blocks[0](x, table)
    with merging(blocks[:1], sites, gather_inputs, tokens(), BOTH):
        assert torch.allclose(blocks[0](x, table), expected, atol=1e-6)


def test_the_mlp_can_be_merged_alone(blocks):
    with merging(blocks, sites, gather_inputs, tokens(), frozenset((MLP,))):
        run(blocks, hidden())
    assert seen(blocks) == [(COUNT, merge().merged_count)] * 3


def test_attention_beside_its_mlp_is_not_merged_with_the_mlp_alone():
    """What is not all wanted is left alone: the two of a parallel block share their first layer."""
    block = nn.Sequential(Counted(), Counted())
    beside = lambda module: [parallel(module[0], module[1])]  # noqa: E731
    for kinds, count in ((frozenset((MLP,)), COUNT), (BOTH, merge().merged_count)):
        with merging([block], beside, lambda module, args, kwargs, picked: (args, kwargs), tokens(), kinds):
            assert block(hidden()).shape[1] == COUNT
        assert block[0].seen[-1] == block[1].seen[-1] == count


def test_spared_blocks_compute_every_token(blocks):
    with merging(blocks, sites, gather_inputs, tokens(), BOTH, frozenset((0, 2))):
        run(blocks, hidden())
    few = merge().merged_count
    assert seen(blocks) == [(COUNT, COUNT), (few, few), (COUNT, COUNT)]


@pytest.mark.parametrize("failing", [False, True])
def test_every_forward_is_what_it_was_afterwards(blocks, failing):
    x, theirs = hidden(), blocks[1].mlp.forward
    blocks[1].mlp.forward = lambda x: 2 * theirs(x)  # of another pack
    expected, before = run(blocks, x), blocks[1].mlp.forward
    residuals = MergeResiduals(1.0)
    for context in (
        merging(blocks, sites, gather_inputs, tokens(), BOTH),
        recording_residuals(blocks, sites, tokens(), residuals, KEYS, BOTH),
    ):
        try:
            with context:
                run(blocks, x)
                if failing:
                    raise ValueError("in the middle of a call")
        except ValueError:
            assert failing
        assert blocks[1].mlp.forward is before
        assert [name for name, module in blocks.named_modules() if "forward" in module.__dict__] == ["1.mlp"]
        assert torch.equal(run(blocks, x), expected)


# -- detail that is remembered -------------------------------------------------------------------------------------------


def test_recording_detail_changes_nothing(blocks):
    x, residuals = hidden(), MergeResiduals(1.0)
    expected = run(blocks, x)
    with recording_residuals(blocks, sites, tokens(), residuals, KEYS, BOTH):
        assert torch.equal(run(blocks, x), expected)
    assert residuals.bytes == 3 * 2 * 2 * len(merge().members) * WIDTH * 4  # blocks, sites, streams


def test_with_all_detail_the_same_input_gives_nearly_the_whole_result(blocks):
    """Both layers are nearly linear in so small a range, so a group's mean is that of its members."""
    x, residuals = 1e-3 * hidden(), MergeResiduals(1.0)
    table = torch.zeros(1, COUNT, 1)
    expected = blocks[0](x, table)
    with recording_residuals(blocks[:1], sites, tokens(), residuals, KEYS, BOTH):
        blocks[0](x, table)
    with merging(blocks[:1], sites, gather_inputs, tokens(), BOTH, residuals=residuals, keys=KEYS):
        remembered = blocks[0](x, table)
    with merging(blocks[:1], sites, gather_inputs, tokens(), BOTH):
        lost = blocks[0](x, table)
    off, without = ((got - expected).abs().max() for got in (remembered, lost))
    assert off < 1e-6 and without > 1e-4


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_a_share_of_the_detail_is_remembered(share):
    whole, residuals = hidden(), MergeResiduals(share)
    residuals.put((0, 1), KEYS, tokens().residual(whole))
    assert torch.allclose(residuals.get((0, 1), KEYS), share * tokens().residual(whole))


def test_detail_is_of_its_place_and_its_streams():
    residuals, own = MergeResiduals(1.0), hidden(batch=2)
    residuals.put((0, 1), KEYS, own.clone())
    assert residuals.get((0, 0), KEYS) is None and residuals.get((0, 1), ("another",)) is None
    assert torch.equal(residuals.get((0, 1), KEYS[::-1]), own.flip(0))
    residuals.clear()
    assert residuals.get((0, 1), KEYS) is None and residuals.bytes == 0


def test_streams_without_recorded_detail_are_merged_without(blocks):
    """A guider's third pass of the same evaluation."""
    x, residuals = hidden(), MergeResiduals(1.0)
    with recording_residuals(blocks, sites, tokens(), residuals, KEYS, BOTH):
        run(blocks, x)
    with merging(blocks, sites, gather_inputs, tokens(), BOTH):
        expected = run(blocks, x)
    with merging(blocks, sites, gather_inputs, tokens(), BOTH, residuals=residuals, keys=("perturbed", "another")):
        assert torch.equal(run(blocks, x), expected)


@pytest.mark.parametrize("image", [0, 1])
def test_of_a_batch_only_the_images_own_rows_are_remembered(blocks, image):
    """Rows are the streams, each with both images one after the other."""
    x, of_batch, alone = hidden(batch=4), MergeResiduals(1.0, ImageRows(image, 2)), MergeResiduals(1.0)
    with recording_residuals(blocks, sites, tokens(), of_batch, KEYS, BOTH):
        run(blocks, x)
    with recording_residuals(blocks, sites, tokens(), alone, KEYS, BOTH):
        run(blocks, x[image::2])
    for place in ((0, 0), (0, 1), (2, 1)):
        assert torch.allclose(of_batch.get(place, KEYS), alone.get(place, KEYS), atol=1e-6)
    assert of_batch.bytes == alone.bytes


@pytest.mark.parametrize(("memory", "off"), [("device", 0.0), ("offload", 0.0), ("8 bit", 0.02)])
def test_detail_is_kept_as_memory_says(memory, off):
    whole, plain, residuals = hidden(), MergeResiduals(1.0), MergeResiduals(1.0, memory=memory)
    for held in (plain, residuals):
        held.put((0, 0), KEYS, tokens().residual(whole))
    assert (residuals.get((0, 0), KEYS) - plain.get((0, 0), KEYS)).abs().max() <= off
    assert (residuals.bytes < plain.bytes) == (memory == "8 bit")


def test_kinds_that_are_not_merged_are_not_recorded(blocks):
    residuals = MergeResiduals(1.0)
    with recording_residuals(blocks, sites, tokens(), residuals, KEYS, frozenset((MLP,)), frozenset((1,))):
        run(blocks, hidden())
    places = [(block, site) for block in range(3) for site in range(2)]
    assert [place for place in places if residuals.get(place, KEYS) is not None] == [(0, 1), (2, 1)]
