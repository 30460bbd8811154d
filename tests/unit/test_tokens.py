"""Subsets of a transformer's tokens, on the plain demo MMDiT with random weights."""

import pytest
import torch
from highlight_diffusion.demo.mmdit import MMDiT, MMDiTConfig
from highlight_diffusion.demo.plain_flow import PlainCall, PlainFlow, transformer_of
from highlight_diffusion.engine.partial.attention_override import SubsetOverride
from highlight_diffusion.engine.partial.cache import ImageRows
from highlight_diffusion.engine.partial.order import Around
from highlight_diffusion.engine.partial.storage import DenseStorage
from highlight_diffusion.engine.partial.token_gather import ALL_FIRST, PLACEHOLDER_TOKENS, TokenGather
from highlight_diffusion.engine.partial.token_subset import BUCKETS, TEXT, TokenGrid, TokenSubset
from highlight_diffusion.engine.partial.transformer import compute_subsets, record_subsets
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = ("positive", "negative")


@pytest.fixture(scope="module")
def mmdit() -> MMDiT:
    torch.manual_seed(0)
    model = MMDiT(MMDiTConfig(heads=1, blocks=3, context_dim=16)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model


def model_of(mmdit, tokens: int = 7, batch: int = 1) -> PlainFlow:
    generator = torch.Generator().manual_seed(1)
    positive, negative = (torch.randn(batch, tokens, 16, generator=generator) for _ in KEYS)
    return PlainFlow(mmdit, positive, negative)


def latent(frame, batch: int = 1, seed: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, *frame, generator=torch.Generator().manual_seed(seed))


def record(mmdit, model, subset, x, sigma: float) -> list[torch.Tensor]:
    subset.begin(sigma)
    rows, _ = record_subsets(transformer_of(mmdit), PlainCall(model, x, sigma), [subset], subset.grid.count)
    return list(rows.chunk(2))


def compute(mmdit, model, subset, x, sigma: float) -> list[torch.Tensor]:
    rows = compute_subsets(transformer_of(mmdit), PlainCall(model, x, sigma), [subset], sigma, ALL_FIRST)
    return list(rows.chunk(2))


@pytest.mark.parametrize("frame", [(16, 16), (8, 20), (12, 6)])
@pytest.mark.parametrize("boxes", [((2, 8, 0, 6),), ((0, 2, 0, 2), (4, 8, 2, 6))])
def test_a_subset_is_exact_where_it_was_recorded(mmdit, frame, boxes):
    model, x = model_of(mmdit), latent(frame)
    plain = model(x, 0.6)
    subset = TokenSubset(boxes, TokenGrid(frame))
    assert all(torch.equal(a, b) for a, b in zip(record(mmdit, model, subset, x, 0.6), plain, strict=True))
    parts = compute(mmdit, model, subset, x, 0.6)
    for whole, part in zip(plain, parts, strict=True):
        for y0, y1, x0, x1 in boxes:
            own, true = part[..., y0:y1, x0:x1], whole[..., y0:y1, x0:x1]
            assert torch.allclose(own, true, atol=1e-5)  # some CPUs multiply matrices of few rows another way


def test_it_really_stands_on_what_was_recorded(mmdit):
    """The negative control: without the others' keys and values another picture comes out."""
    model, x, subset = model_of(mmdit), latent((16, 16)), TokenSubset([(2, 8, 2, 8)], TokenGrid((16, 16)))
    dense = record(mmdit, model, subset, x, 0.6)[0]
    for calls in subset.entries[-1].parts.values():
        for keys in calls:
            calls[keys] = DenseStorage(torch.zeros_like(calls[keys].x))
    part = compute(mmdit, model, subset, x, 0.6)[0]
    assert (part - dense)[..., 2:8, 2:8].abs().max() > 1e-3


def test_text_does_not_run_again_but_is_found_as_it_was_recorded(mmdit):
    model, x, subset = model_of(mmdit), latent((16, 16)), TokenSubset([(2, 8, 2, 8)], TokenGrid((16, 16)))
    dense, lengths = record(mmdit, model, subset, x, 0.6)[0], []
    hooks = [
        block.context_block.attn.qkv.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
        for block in mmdit.joint_blocks
    ]
    part = compute(mmdit, model, subset, x, 0.6)[0]
    for hook in hooks:
        hook.remove()
    assert set(lengths) == {PLACEHOLDER_TOKENS} and torch.equal(part[..., 2:8, 2:8], dense[..., 2:8, 2:8])
    for place, calls in subset.entries[-1].parts.items():
        for keys in calls if TEXT in place else ():
            calls[keys] = DenseStorage(torch.zeros_like(calls[keys].x))
    assert (compute(mmdit, model, subset, x, 0.6)[0] - dense)[..., 2:8, 2:8].abs().max() > 1e-3


def test_text_of_calls_of_their_own_is_joined_where_it_is_of_one_length(mmdit):
    subset, x = TokenSubset([(2, 8, 2, 8)], TokenGrid((16, 16))), latent((16, 16))
    for lengths, joins in (((7, 7), True), ((7, 9), False)):
        subset.begin(0.6)
        for key, tokens in zip(KEYS, lengths, strict=True):
            model = PlainFlow(mmdit, torch.randn(1, tokens, 16), torch.randn(1, tokens, 16))
            call = PlainCall(model, x, 0.6, keys=(key,))
            record_subsets(transformer_of(mmdit), call, [subset], subset.grid.count)
        assert subset.joins(KEYS) == joins and subset.joins(KEYS[:1])


def test_images_of_a_batch_have_subsets_of_their_own(mmdit):
    model, x = model_of(mmdit, batch=2), latent((8, 8), batch=2)
    subset = TokenSubset([(0, 4, 2, 6)], TokenGrid((8, 8)), rows=ImageRows(1, 2))
    dense = record(mmdit, model, subset, x, 0.5)
    parts = compute(mmdit, model, subset, x, 0.5)
    for whole, part in zip(dense, parts, strict=True):
        assert torch.allclose(part[1, :, 0:4, 2:6], whole[1, :, 0:4, 2:6], atol=1e-6) and not part[0].any()


def test_the_others_are_extrapolated_from_two_recordings(mmdit):
    """Between recordings at 0.8 and 0.6, what is used at 0.5 is neither of them."""
    model, x, subset = model_of(mmdit), latent((16, 16)), TokenSubset([(2, 8, 2, 8)], TokenGrid((16, 16)))
    for sigma in (0.8, 0.6):
        record(mmdit, model, subset, x, sigma)
    two = compute(mmdit, model, subset, x, 0.5)[0]
    del subset.entries[0]
    one = compute(mmdit, model, subset, x, 0.5)[0]
    assert not torch.equal(two, one) and torch.allclose(two, one, atol=0.5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 3), st.data())
def test_active_and_rest_are_all_tokens(height, width, frames, data):
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    grid = TokenGrid((height, width), frames=frames)
    subset = TokenSubset([(y0, y1, x0, x1)], grid)
    both = torch.cat([subset.active, subset.rest]).sort().values
    assert torch.equal(both, torch.arange(grid.count))
    assert len(subset.active) >= frames * ((y1 - y0) * (x1 - x0)) / 4


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_what_is_gathered_comes_back_to_its_place(before, trailing, others_first):
    grid = TokenGrid((8, 8))
    gather = TokenGather(TokenSubset([(2, 6, 0, 4)], grid), Around(others_first, trailing))
    x = torch.randn(2, (before if others_first else 0) + grid.count + trailing, 3)
    gathered = gather.tokens(x)
    gather.entering = False
    assert gather.tokens(gathered) is gathered
    back, start = gather.scatter(gathered), before if others_first else 0
    active = start + gather.subset.active
    assert torch.equal(back[:, active], x[:, active]) and torch.equal(back[:, :start], x[:, :start])
    assert not back[:, start + gather.subset.rest].any() and torch.equal(
        back[:, start + grid.count :], x[:, start + grid.count :]
    )


@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_a_sequence_without_its_text_comes_back_as_long_as_it_was(before, trailing, others_first):
    grid = TokenGrid((8, 8))
    gather = TokenGather(TokenSubset([(2, 6, 0, 4)], grid), Around(others_first, trailing))
    first = before if others_first else 0
    x = torch.randn(2, first + grid.count + trailing, 3)
    gathered = gather.tokens(x, text=True)
    assert gathered.shape[1] == len(gather.subset.active) + min(first, PLACEHOLDER_TOKENS) + min(trailing, PLACEHOLDER_TOKENS)
    back = gather.scatter(gathered)
    assert back.shape == x.shape and torch.equal(back[:, first + gather.subset.active], x[:, first + gather.subset.active])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_the_text_lets_all_image_tokens_be_seen(dtype):
    subset = TokenSubset([(0, 4, 0, 4)], TokenGrid((8, 8)))
    subset.begin(1.0)
    override, others = SubsetOverride(TokenGather(subset), ("a",), 1.0), torch.zeros(1, 12, 8)
    subset.put((0, 0), ("a",), others)
    seen = {}

    def attention(q, k, v, heads, mask=None):
        seen.update(mask=mask, keys=k.shape[-2])
        return q

    mask = torch.ones(1, 1, 3 + 4, dtype=dtype) if dtype == torch.bool else torch.zeros(1, 1, 3 + 4)
    mask[..., 0] = False if dtype == torch.bool else -1e9
    q = torch.randn(1, 3 + 4, 4)
    with override.within(0):
        override(attention, q, q, q, 1, mask)
    assert seen["keys"] == 3 + 16 == seen["mask"].shape[-1]
    free = seen["mask"] if dtype == torch.bool else seen["mask"] == 0
    assert free.sum() == 18 and not free[..., 0]


BOXES = st.tuples(st.integers(0, 20), st.integers(1, 12), st.integers(0, 20), st.integers(1, 12)).map(
    lambda edges: (edges[0], edges[0] + edges[1], edges[2], edges[2] + edges[3])
)


@given(st.lists(BOXES, max_size=3), st.sampled_from([(32, 32), (33, 40), (64, 48)]))
def test_counts_of_tokens_come_in_buckets(boxes, frame):
    """All that the boxes touch, and at most one bucket's worth of their neighbours."""
    grid = TokenGrid(frame)
    touched = torch.zeros(grid.size, dtype=torch.bool)
    for y0, y1, x0, x1 in boxes:
        touched[y0 // 2 : -(-y1 // 2), x0 // 2 : -(-x1 // 2)] = True
    inside, bucket = grid.inside(boxes), -(-grid.count // BUCKETS)
    assert inside[touched.flatten()].all()
    assert int(inside.sum()) % bucket == 0 or inside.all()
    assert int(touched.sum()) <= int(inside.sum()) < int(touched.sum()) + bucket


@pytest.mark.parametrize("memory, off", [("device", 0.0), ("offload", 0.0), ("8 bit", 0.02)])
def test_tokens_can_be_kept_in_less_memory(mmdit, memory, off):
    model, x, errors = model_of(mmdit), latent((16, 16)), []
    subset, plain = (TokenSubset([(2, 8, 2, 8)], TokenGrid((16, 16))) for _ in range(2))
    subset.memory = memory
    dense = record(mmdit, model, subset, x, 0.6)
    record(mmdit, model, plain, x, 0.6)
    for whole, part in zip(dense, compute(mmdit, model, subset, x, 0.6), strict=True):
        errors.append(float((part - whole)[..., 2:8, 2:8].abs().max() / whole.abs().max()))
    assert max(errors) <= off and (off == 0.0 or max(errors) > 0)
    assert subset.bytes <= (0.3 if memory == "8 bit" else 1.0) * plain.bytes
