"""Models that are given reference pictures: where the picture's tokens and the text's are, and what is heard of them.

The heatmap is compared with one that is computed here from the picture's queries and the text's keys alone, at positions
that each case states, by an attention override of this file's own.
"""

import inspect
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.qwen_image import model as qwen_image
from comfy_extras import nodes_flux
from einops import rearrange
from highlight_diffusion.engine.config import HighlightConfig
from highlight_diffusion.engine.job import Job
from highlight_diffusion.engine.merging.config import SDTMConfig
from highlight_diffusion.engine.merging.job import MergeJob
from highlight_diffusion.engine.merging.matcher import Matcher
from highlight_diffusion.engine.merging.sites import ATTENTION, MLP
from highlight_diffusion.engine.method import DenseContext
from highlight_diffusion.engine.partial.token_subset import REFERENCES
from highlight_diffusion.engine.region import tracking
from highlight_diffusion.engine.region.heatmap import HeatmapAccumulator, TokenWeights
from highlight_diffusion.engine.region.regions import UserMasks
from highlight_diffusion.engine.trace import RunRecord, Trace
from highlight_diffusion.host.attach import KEY, attach, attach_merging
from highlight_diffusion.host.call import ModelCall
from highlight_diffusion.host.families import family_of
from highlight_diffusion.host.families.base import chosen
from highlight_diffusion.host.words import WORDS

from . import tiny
from .classes import CLASSES
from .sampling import run_thrice
from .test_families import AT_ONE, ROUNDING, WRAPPERS, errors_of_a_subset

FluxKVCache = getattr(nodes_flux, "FluxKVCache", None)
HAS_CACHE = pytest.mark.skipif(FluxKVCache is None, reason="this ComfyUI is older than FluxKVCache")
STEPS, OVERRIDE = 8, "optimized_attention_override"
CONFIG = HighlightConfig(threshold=0.9, correct="always", interval=(3,), warmup=3)
MERGING = SDTMConfig(r=0.5, protect_steps=3)
Span = tuple[int, int]


def latent(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def flux_references(*sizes: Span, channels: int = 16, frames: tuple[int, ...] = ()) -> list[torch.Tensor]:
    return [latent(channels, *frames, *size, seed=number) for number, size in enumerate(sizes)]


@dataclass(frozen=True)
class Case:
    """A model, what its conditioning carries besides the prompt, and where the tokens are.

    text: places among the keys. picture: runs of places among the queries. keys: how many the listened attention has.
    """

    model: Callable[[], tiny.Tiny]
    text: Span
    picture: tuple[Span, ...]
    keys: int
    extra: dict = field(repr=False)
    cfg: float = 4.0  # 1 where ComfyUI itself cannot compute the two conds of a batch


def flux(method: str | None, *sizes: Span) -> Case:
    tokens = sum(-(-h // 2) * -(-w // 2) for h, w in sizes)
    named = {"reference_latents_method": method} if method else {}
    return Case(tiny.flux, (0, 77), ((77, 141),), 141 + tokens, {"reference_latents": flux_references(*sizes), **named})


def flux2_references(method: str | None, *sizes: Span) -> dict:
    named = {"reference_latents_method": method} if method else {}
    return {"reference_latents": flux_references(*sizes, channels=128), **named}


def qwen(method: str | None, *sizes: Span) -> Case:
    tokens = sum(-(-h // 2) * -(-w // 2) for h, w in sizes)
    named = {"reference_latents_method": method} if method else {}
    references = flux_references(*sizes, frames=(1,))
    return Case(tiny.qwen_image, (0, 77), ((77, 141),), 141 + tokens, {"reference_latents": references, **named})


def omni(**changed) -> Callable[[], tiny.Tiny]:
    return lambda: tiny.z_image(siglip_feat_dim=32, **changed)


def vision(height: int, width: int) -> SimpleNamespace:
    """What a SigLIP encoder returns of an image of so many patches."""
    return SimpleNamespace(
        image_sizes=[(3, height * 16, width * 16)], last_hidden_state=latent(height * width, 32, seed=height)
    )  # fmt: skip


def clip_vision(tokens: int) -> SimpleNamespace:
    return SimpleNamespace(penultimate_hidden_states=latent(tokens, 1280, seed=4))


def texts(*lengths: int) -> list[torch.Tensor]:
    return [latent(length, 64, seed=length) for length in lengths]


SAME, WIDE, ODD = (16, 16), (8, 24), (5, 7)
CASES = {
    **{f"flux, {method}": flux(method, SAME) for method in (None, "index", "offset", "uxo")},
    "flux, of another shape": flux(None, WIDE), "flux, of an odd shape": flux("index", ODD),
    **{f"flux, several, {method}": flux(method, SAME, WIDE, ODD) for method in ("index", "offset", "uxo")},
    "flux2": Case(tiny.flux2, (0, 512), ((512, 768),), 768 + 35, flux2_references(None, ODD)),
    "flux2, several": Case(tiny.flux2, (0, 512), ((512, 768),), 768 + 256 + 35, flux2_references("offset", SAME, ODD)),
    "flux2, index_timestep_zero": Case(
        tiny.flux2, (0, 512), ((512, 768),), 768 + 256 + 35, flux2_references("index_timestep_zero", SAME, ODD), cfg=1.0),
    "chroma, which ignores them": Case(tiny.chroma, (0, 77), ((77, 141),), 141,
                                       {"reference_latents": flux_references(SAME)}),
    **{f"qwen, {method}": qwen(method, SAME) for method in (None, "index", "negative_index", "offset",
                                                            "index_timestep_zero")},
    "qwen, several": qwen(None, SAME, WIDE, ODD),
    "lumina2": Case(tiny.lumina2, (10, 87), ((10 + 77 + 64, 10 + 77 + 128),), 10 + 77 + 128,
                    {"reference_latents": flux_references(SAME), "reference_latents_text_embeds": texts(10)}),
    # 32 tokens of padding for each reference without a text, 77 of text filled up to 96, 12 of a reference up to 32
    "z-image": Case(tiny.z_image, (32, 109), ((32 + 96 + 64, 32 + 96 + 128),), 32 + 96 + 128,
                    {"reference_latents": flux_references(SAME)}),
    "z-image, several": Case(tiny.z_image, (64, 141), ((64 + 96 + 64 + 32, 64 + 96 + 64 + 32 + 64),), 320,
                             {"reference_latents": flux_references(SAME, (4, 12))}),
    # texts of 10 and 40 tokens before the prompt's and one of 7 after it
    "z-image, with texts": Case(
        tiny.z_image, (96, 173), ((96 + 96 + 32 + 64 + 32, 96 + 96 + 32 + 64 + 32 + 64),), 384,
        {"reference_latents": flux_references(SAME, (4, 12)), "reference_latents_text_embeds": texts(10, 40, 7)}, cfg=1.0),
    # SigLIP's 4x5 patches filled up to 32, and as much for the picture
    "z-image omni": Case(
        omni(), (32, 109), ((32 + 96 + 32 + 64 + 64, 32 + 96 + 32 + 64 + 128),), 352,
        {"reference_latents": flux_references(SAME), "reference_latents_text_embeds": texts(10, 7),
         "clip_vision_outputs": [vision(4, 5)]}, cfg=1.0),
    "krea": Case(CLASSES["Krea2"], (0, 77), ((77, 141),), 141 + 64 + 12,
                 {"reference_latents": flux_references(SAME, ODD, frames=(1,)), "reference_latents_method": "index"}),
    "krea, index_timestep_zero": Case(
        CLASSES["Krea2"], (0, 77), ((77, 141),), 141 + 64 + 12,
        {"reference_latents": flux_references(SAME, ODD, frames=(1,)), "reference_latents_method": "index_timestep_zero"},
        cfg=1.0),
    "mage": Case(CLASSES["MageFlow"], (0, 77), ((77, 333),), 333 + 256,
                 {"reference_latents": flux_references(SAME, channels=128)}, cfg=1.0),
    "joy": Case(CLASSES["JoyImage"], (128, 205), ((0, 64),), 64 + 64 + 77,
                {"reference_latents": flux_references(SAME, frames=(1,))}),
    "omnigen": Case(CLASSES["Omnigen2"], (0, 77), ((77 + 64, 77 + 128),), 77 + 128,
                    {"reference_latents": flux_references(SAME)}),
    "boogu": Case(CLASSES["Boogu"], (0, 77), ((77 + 64, 77 + 128),), 77 + 128,
                  {"reference_latents": flux_references(SAME)}, cfg=1.0),
    "hunyuan video": Case(tiny.hunyuan_video, (0, 77), ((141, 333),), 333, {"ref_latent": latent(16, 1, 16, 16)}, cfg=1.0),
    "hidream-e1": Case(tiny.hidream, (128, 128 + 3 * 77), tuple((16 * row, 16 * row + 8) for row in range(8)), 128 + 231,
                       {"concat_latent_image": latent(16, 16, 16)}),
    "wan, before": Case(lambda: tiny.wan(in_dim_ref_conv=16), (0, 77), ((64, 256),), 77,
                        {"reference_latents": [latent(16, 1, 16, 16)]}),
    "wan, after": Case(tiny.wan, (0, 77), ((0, 192),), 77,
                       {"time_dim_concat": latent(16, 1, 16, 16), "context_latents": [latent(16, 1, 8, 12)]}),
    "wan, image to video": Case(lambda: tiny.wan(model_type="i2v", in_dim=36), (0, 77), ((0, 192),), 77,
                                {"clip_vision_output": clip_vision(50)}),
}  # fmt: skip


# What the oldest ComfyUI lacks, and why.
NO_REFERENCES = "ref_latents" not in inspect.signature(NextDiT._forward).parameters
LACKING = {
    **{name: "in this ComfyUI Lumina 2 and Z-Image are given no references" for name in CASES
       if NO_REFERENCES and name.startswith(("lumina2", "z-image"))},
    **({"hunyuan video": "this ComfyUI has HunyuanVideo's picture before its text, which is not listened to"}
       if "flipped_img_txt" in inspect.signature(DoubleStreamBlock).parameters else {}),
}  # fmt: skip


def cases(*names: str) -> list:
    """The names of cases, those marked to be skipped that this ComfyUI lacks."""
    return [pytest.param(n, marks=pytest.mark.skipif(n in LACKING, reason=LACKING.get(n, ""))) for n in names]


IMAGE_EMBEDDING = "wan, image to video"  # is looked at, and is no reference in the sequence


class Listener:
    """An attention override that adds up how the picture looks at the text, at places that it was told."""

    def __init__(self, model: tiny.Tiny, case: Case):
        network, family = model.patcher.model.diffusion_model, family_of(model.patcher)
        self.blocks = list(family.blocks(network))
        self.listened = [self.blocks[index] for index in chosen(self.blocks, 4)]
        self.case, self.block, self.patch = case, None, family.patch(network)
        self.maps: dict[float, list[torch.Tensor]] = {}

    @contextmanager
    def listening(self):
        hooks = [b.register_forward_pre_hook(self.enter) for b in self.blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __deepcopy__(self, memo: dict) -> "Listener":
        """Clones of a model share it, also in the oldest ComfyUI, which copies a model's options deeply."""
        return self

    def enter(self, block, *_) -> None:
        self.block = block

    def __call__(self, function, q, k, v, heads, *args, **kwargs):
        options = kwargs["transformer_options"]
        if self.block in self.listened and k.shape[-2] == self.case.keys:
            self.listen(q.detach(), k.detach(), heads, options["cond_or_uncond"], float(options["sigmas"][0]))
        return function(q, k, v, heads, *args, **kwargs)

    def listen(self, q, k, heads: int, rows: list[int], sigma: float) -> None:
        if q.ndim == 3:
            width = q.shape[-1] // heads
            q, k = (t.unflatten(-1, (-1, width)).transpose(1, 2) for t in (q, k))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # several heads may share their keys
        start, stop = self.case.text
        for row, (q_row, k_row) in zip(rows, zip(q.chunk(len(rows)), k.chunk(len(rows)), strict=True), strict=True):
            if row == 0:  # the positive
                own = torch.cat([q_row[:, :, a:b] for a, b in self.case.picture], dim=2)
                scores = own @ k_row[:, :, start:stop].transpose(-1, -2) / math.sqrt(q.shape[-1])
                self.maps.setdefault(sigma, []).append(scores.softmax(-1).mean(1).transpose(1, 2))

    def heatmaps(self, run: RunRecord) -> list[torch.Tensor]:
        """What the evaluations that were listened to should have heard, the running mean of it."""
        found: list[torch.Tensor] = []
        height, width = run.shape[-2] // self.patch, run.shape[-1] // self.patch
        for evaluation in run.evaluations:
            if evaluation.heatmap is None:
                continue
            accumulator = HeatmapAccumulator()
            for maps in self.maps[evaluation.sigma]:
                frames = rearrange(maps, "b m (f n) -> (b f) m n", n=height * width)
                accumulator.add(frames, (height, width), "prompt", self.weights)
            heat, share = accumulator.heatmap(), max(0.2, 1 / (len(found) + 1))
            found.append(heat if not found else found[-1].lerp(heat, share))
        return [heat.unflatten(0, (run.shape[0], -1)).amax(1) for heat in found]

    @property
    def weights(self) -> TokenWeights | None:
        """Named words, where a case has some. Flux.2 fills text up with zeros in front, which count nothing."""
        if WORDS in self.case.extra:
            return self.case.extra[WORDS]
        return TokenWeights((0.0,) * (512 - 77 + 1) + (1.0,) * 76) if self.case.text == (0, 512) else None


def conditioning(model: tiny.Tiny, case: Case, positive: bool = True, negative: bool = True) -> dict:
    both = {"positive": tiny.cond(model, 1), "negative": tiny.cond(model, 2)}
    for name, wanted in (("positive", positive), ("negative", negative)):
        if wanted:
            both[name][0][1].update(case.extra)
    return both


def alike(guide: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture that differs from its reference nowhere."""
    return guide.new_zeros(len(guide), 1, 1, 1), guide.new_zeros(len(guide))


@pytest.fixture(autouse=True)
def unrefined(monkeypatch):
    """Heatmaps as they were heard, without what the denoised latent makes of them."""
    monkeypatch.setattr(tracking, "refined_by", lambda maps, guide: maps.unflatten(0, (len(guide), -1)).amax(1))
    monkeypatch.setattr(tracking, "resized", lambda maps, size: maps)
    monkeypatch.setattr(tracking, "difference", alike)


def heard(
    case: Case, node: Callable | None = None, first: bool = True, positive: bool = True, negative: bool = True, **kwargs
) -> tuple[RunRecord, list[torch.Tensor]]:  # fmt: skip
    """A run of Highlight Diffusion beside another node, which comes first or last, and what it should have heard."""
    model = case.model()
    listener, trace = Listener(model, case), Trace()
    patcher = model.patcher.clone()
    patcher.model_options["transformer_options"][OVERRIDE] = listener
    if node is not None and first:
        patcher = node(patcher)
    patcher = attach(patcher, CONFIG, trace)
    if node is not None and not first:
        patcher = node(patcher)
    with listener.listening():
        given = conditioning(model, case, positive, negative)
        result = tiny.sample(model, patcher, **{"steps": STEPS, "cfg": case.cfg, **given, **kwargs})
    assert torch.isfinite(result).all()
    return trace.last, listener.heatmaps(trace.last)


def assert_equal(run: RunRecord, expected: list[torch.Tensor]) -> None:
    """Equal but for rounding, which grows with the map where a nearly flat one is spread over 0 to 1, as the oldest ComfyUI's
    tiny Chroma has it."""
    given = [e.heatmap for e in run.evaluations if e.heatmap is not None]
    assert len(given) == len(expected) >= 2, [(e.kind, e.reason) for e in run.evaluations]
    for ours, true in zip(given, expected, strict=True):
        assert ours.std() > 0.01 and torch.allclose(ours, true.cpu(), atol=5e-4), (ours - true).abs().max()


@pytest.mark.parametrize("name", cases(*CASES))
def test_the_heatmap_is_of_the_pictures_queries_and_the_texts_keys(name):
    assert_equal(*heard(CASES[name]))


ALONE = ("lumina2", "z-image", "hunyuan video", "hidream-e1", "wan")  # beside whose references no part is computed
REFUSED = [name for name in CASES if name.startswith(ALONE) and name != IMAGE_EMBEDDING]
PARTS = [name for name in CASES if not name.startswith(ALONE)]


@pytest.mark.parametrize("name", cases(*REFUSED))
@pytest.mark.compatibility("Conditioning", "reference images: {name}", on="transformers")
def test_beside_references_of_some_families_nothing_is_computed_in_part_or_merged(observe, name):
    """Forecasts stay; merging leaves every evaluation whole and says why."""
    case = CASES[name]
    model, trace, merging = case.model(), Trace(), Trace()
    settings = {"steps": STEPS, "cfg": case.cfg, **conditioning(model, case)}
    tiny.sample(model, attach(model.patcher, CONFIG, trace), **settings)
    merged = tiny.sample(model, attach_merging(model.patcher, MERGING, merging), **settings)
    observe(trace.last)
    assert trace.last.count("skipped") and not trace.last.count("partial")
    assert all(e.merged is None and "reference images are in use" in e.reason for e in merging.last.evaluations)
    assert torch.equal(merged, tiny.sample(model, **settings))


def settings_of(model: tiny.Tiny, case: Case, **kwargs) -> dict:
    return {"steps": STEPS, "cfg": case.cfg, **conditioning(model, case), **kwargs}


UPPER_HALF = UserMasks(torch.zeros(1, 16, 16).index_fill(1, torch.arange(8), 1.0))
ONE_EACH = ["flux, several, offset", "flux2, index_timestep_zero", "qwen, several", "krea", "mage", "joy"]


@pytest.mark.parametrize(("name", "batch"), [*((n, 1) for n in PARTS), *((n, 2) for n in ("omnigen", *ONE_EACH))])
def test_a_part_equals_dense_where_it_was_recorded(name, batch):
    """Law 2 beside references: what they say is read from the recording, whether they are left out of the call or not."""
    case = CASES[name]
    if batch > 1 and case.cfg == 1:
        return  # ComfyUI itself does not compute these
    model = case.model()
    settings = settings_of(model, case)
    del settings["steps"]
    exact, wiped = errors_of_a_subset(model, batch, **settings)
    assert len(exact) >= 3 and max(exact) <= ROUNDING
    assert max(wiped) > 1e-4 and min(wiped) > 0


@pytest.mark.parametrize("name", cases(*PARTS))
@pytest.mark.compatibility("Conditioning", "reference images: {name}", on="transformers")
def test_parts_are_computed_and_tokens_merged_beside_references(observe, name):
    case = CASES[name]
    model, trace = case.model(), Trace()
    settings = settings_of(model, case, steps=14)
    used, fresh = (attach(model.patcher, CONFIG, t, given=UPPER_HALF) for t in (trace, Trace()))
    first = tiny.sample(model, used, **settings)
    observe(trace.last)
    assert torch.isfinite(first).all() and trace.last.count("partial"), [e.reason for e in trace.last.evaluations]
    assert all(torch.equal(first, tiny.sample(model, patcher, **settings)) for patcher in (used, fresh))
    merging = Trace()
    used, fresh = (attach_merging(model.patcher, MERGING, t) for t in (merging, Trace()))
    merged = tiny.sample(model, used, **settings)
    assert torch.isfinite(merged).all() and any(e.merged is not None for e in merging.last.evaluations)
    assert all(torch.equal(merged, tiny.sample(model, patcher, **settings)) for patcher in (used, fresh))


def tokens_by_call(model: tiny.Tiny) -> list[int]:
    """How many tokens of all kinds a block of the second half is given in each call; filled while sampling."""
    counts: list[int] = []
    block = list(family_of(model.patcher).blocks(model.patcher.model.diffusion_model))[-1]

    def count(_, args, kwargs) -> None:
        sequences = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.ndim == 3]
        counts.append(max(v.shape[1] for v in sequences))

    block.register_forward_pre_hook(count, with_kwargs=True)
    return counts


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("name", ONE_EACH)
def test_references_are_computed_in_whole_evaluations_alone(name, merging):
    case, trace = CASES[name], Trace()
    model = case.model()
    counts = tokens_by_call(model)
    attached = (
        attach_merging(model.patcher, MERGING, trace) if merging else attach(model.patcher, CONFIG, trace, given=UPPER_HALF)
    )
    tiny.sample(model, attached, **settings_of(model, case, steps=14))
    some = [e for e in trace.last.evaluations if e.kind != "skipped"]
    calls = [counts[i * len(counts) // len(some)] for i in range(len(some))]
    parts = [n for n, e in zip(calls, some, strict=True) if e.kind == "partial" or e.merged is not None]
    references = case.keys - sum(b - a for a, b in (case.text, *case.picture))
    assert parts and len(counts) % len(some) == 0
    assert max(parts) <= max(max(calls) - references, case.text[1] - case.text[0]) < max(calls), (parts, calls)


@pytest.mark.parametrize("name", ONE_EACH)
def test_merged_tokens_see_the_same_references_recorded_as_computed(name):
    """A merged call right where references were recorded, with them left out and with them in the sequence."""
    case, off = CASES[name], []
    model = case.model()

    def again(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        args = (x, t, c_concat, c_crossattn, control, transformer_options)
        state, own = transformer_options[KEY], ModelCall(executor, *args, kwargs)
        matcher = Matcher(replace(MERGING, window=2), state.grid, len(x) // len(transformer_options["uuids"]))
        matcher.learn(x[: len(matcher.images)])
        assert matcher.match("structure", 12, DenseContext())
        record = MergeJob(matcher.matched, frozenset((ATTENTION, MLP)), True, uses_residuals=True)
        dense = state.apply_model(Job(AT_ONE, tasks=(record,)), own)
        merge = replace(record, record=False)
        assert merge.keeps_references(own.keys)
        left_out = state.apply_model(Job(AT_ONE, tasks=(merge,)), own)
        for image in matcher.images:
            parts = image.residuals.entry.parts
            for place in [p for p in parts if p[-1] == REFERENCES]:
                del parts[place]
        assert not merge.keeps_references(own.keys)
        along = state.apply_model(Job(AT_ONE, tasks=(merge,)), own)
        off.append([float((a - b).abs().max() / b.abs().max()) for a, b in ((left_out, along), (along, dense))])
        return dense

    patcher = attach(model.patcher, HighlightConfig(enabled=False), Trace())
    patcher.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, "again", again)
    tiny.sample(model, patcher, **settings_of(model, case, steps=3))
    # what merged tokens change of the references in later blocks is not seen where they were recorded
    assert len(off) >= 3 and all(recorded < 0.2 * merged for recorded, merged in off[:2]), off


SOME = ["flux, None", "flux, several, offset", "qwen, several", "z-image, several", "hidream-e1", "wan, before"]
PLAIN = {  # the same without references
    "flux": Case(tiny.flux, (0, 77), ((77, 141),), 141, {}), "qwen": Case(tiny.qwen_image, (0, 77), ((77, 141),), 141, {}),
    "z-image": Case(tiny.z_image, (0, 77), ((96, 160),), 160, {}),
    "hidream-e1": Case(tiny.hidream, (64, 64 + 3 * 77), ((0, 64),), 64 + 231, {}),
    "wan": Case(CASES["wan, before"].model, (0, 77), ((0, 192),), 77, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", cases(*SOME))
@pytest.mark.parametrize("where", ["positive", "negative"])
def test_references_of_one_cond_alone(name, where):
    """Where only the negative has them, the positive's sequence is text and picture alone."""
    case, plain = CASES[name], PLAIN[name.split(",")[0]]
    listened = case if where == "positive" else replace(plain, model=case.model, extra=case.extra)
    assert_equal(*heard(listened, positive=where == "positive", negative=where == "negative"))


@pytest.mark.parametrize("name", cases(*SOME))
def test_a_batch_beside_references(name):
    assert_equal(*heard(CASES[name], batch=2))


@pytest.mark.parametrize("name", PLAIN)
def test_without_references_it_is_the_same_rule(name):
    assert_equal(*heard(PLAIN[name]))


WORD = TokenWeights((0.0,) * 20 + (1.0,) * 3 + (0.0,) * 54, named=True, words=(("cup", (20, 21, 22)),))
WITH_WORDS = {  # models that have tokens of their own beside the text's
    "z_image": replace(PLAIN["z-image"], extra={WORDS: WORD}),
    "aura_flow": Case(tiny.aura_flow, (8, 85), ((85, 149),), 149, {WORDS: WORD}),
    "z-image, several": replace(CASES["z-image, several"], extra=CASES["z-image, several"].extra | {WORDS: WORD}),
}


@pytest.mark.parametrize("name", cases(*WITH_WORDS))
def test_named_words_are_found_beside_padding_and_registers(name):
    assert_equal(*heard(WITH_WORDS[name]))


@HAS_CACHE
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["flux, several, uxo", "flux2", "flux2, several", "qwen, several"])
@pytest.mark.compatibility("Nodes that change the model", "FluxKVCache: {name}", on="transformers")
def test_flux_kv_cache_takes_the_references_out_of_the_sequence(observe, name, first):
    """From the second evaluation on the keys of the references come from the node's cache, their queries are gone."""
    case = CASES[name]
    run, expected = heard(case, lambda model: FluxKVCache.execute(model).args[0], first, cfg=1.0)
    observe(run)
    assert_equal(run, expected)
    assert run.count("skipped")


@HAS_CACHE
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("name", ["flux, several, uxo", "flux2, several", "qwen, several", "krea", "mage"])
def test_parts_are_computed_and_tokens_merged_beside_flux_kv_cache(name, merging, first):
    """In either order; the second run is the first, and so is one on a MODEL that was not used before."""
    case, trace = CASES[name], Trace()
    model = case.model()
    settings = settings_of(model, case, steps=14, cfg=1.0)

    def own(patcher, t):
        return attach_merging(patcher, MERGING, t) if merging else attach(patcher, CONFIG, t, given=UPPER_HALF)

    def both(t):
        cached = lambda patcher: FluxKVCache.execute(patcher).args[0]  # noqa: E731
        return own(cached(model.patcher), t) if first else cached(own(model.patcher, t))

    used, fresh = both(trace), both(Trace())
    latent = tiny.sample(model, used, **settings)
    found = trace.last.evaluations
    assert any(e.merged is not None if merging else e.kind == "partial" for e in found), [e.reason for e in found]
    assert torch.isfinite(latent).all()
    assert all(torch.equal(latent, tiny.sample(model, patcher, **settings)) for patcher in (used, fresh))


@HAS_CACHE
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_an_interrupt_inside_a_forward_beside_flux_kv_cache_leaves_the_next_run_as_a_fresh_one(first):
    case = CASES["flux2, several"]
    model, calls = case.model(), []
    settings = {"size": SAME, "steps": STEPS, "cfg": 1.0, **conditioning(model, case)}

    def both():
        cached = lambda patcher: FluxKVCache.execute(patcher).args[0]  # noqa: E731
        return attach(cached(model.patcher), CONFIG, Trace()) if first else cached(attach(model.patcher, CONFIG, Trace()))

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise comfy.model_management.InterruptProcessingException

    fresh, used = tiny.sample(model, both(), **settings), both()
    hook = model.patcher.model.diffusion_model.single_blocks[0].register_forward_pre_hook(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(model, used, **settings)
    hook.remove()
    assert torch.equal(tiny.sample(model, used, **settings), fresh)


@pytest.mark.skipif(NO_REFERENCES, reason=LACKING.get("z-image", ""))
@pytest.mark.parametrize("merging", [False, True])
def test_bug_references_counted_before_the_share_of_the_schedule_they_are_for(merging):
    """A prompt with references in the second half alone: in the first, the highlight is computed and tokens are merged."""
    case, trace, plain = CASES["z-image"], Trace(), Trace()
    model = case.model()
    early, late = tiny.cond(model, 1), tiny.cond(model, 1)
    late[0][1].update(case.extra)
    for conds, (start, end) in ((early, (0.0, 0.5)), (late, (0.5, 1.0))):
        conds[0][1].update(start_percent=start, end_percent=end)

    def attached(t):
        return attach_merging(model.patcher, MERGING, t) if merging else attach(model.patcher, CONFIG, t)

    latent = tiny.sample(model, attached(trace), steps=14, positive=early + late)
    assert torch.equal(latent, tiny.sample(model, attached(plain), steps=14, positive=early + late))
    said = [("reference images" in e.reason, e.merged is not None, e.kind) for e in trace.last.evaluations]
    assert not any(named for named, *_ in said[:6]) and any(named for named, *_ in said[7:]), said
    assert any(merged or kind == "partial" for _, merged, kind in said[:7]), said
    assert not any(merged or kind == "partial" for _, merged, kind in said[8:]), said


@HAS_CACHE
def test_a_second_run_beside_flux_kv_cache_is_the_first():
    case = CASES["flux2, several"]
    model = case.model()
    settings = {"size": SAME, "steps": STEPS, "cfg": 1.0, **conditioning(model, case)}
    run = run_thrice(model, FluxKVCache.execute(model.patcher).args[0], config=CONFIG, **settings)
    assert run.count("skipped") and run.count("dense")


def with_more_tokens(model):
    """A node that puts tokens before the text's, as style adapters do."""
    clone = model.clone()

    def patch(inputs):
        for name in ("txt", "txt_ids"):
            inputs[name] = torch.cat([inputs[name][:, :5], inputs[name]], dim=1)
        return inputs

    clone.set_model_post_input_patch(patch)
    return clone


NO_PATCH = pytest.mark.skipif(
    "post_input" not in inspect.getsource(qwen_image), reason="this ComfyUI's Qwen-Image does not ask such a node"
)  # fmt: skip


@pytest.mark.parametrize("name", ["flux, None", pytest.param("qwen, several", marks=NO_PATCH)])
def test_where_the_tokens_do_not_add_up_nothing_is_heard_and_the_trace_says_why(name):
    case = CASES[name]
    model, trace = case.model(), Trace()
    given = conditioning(model, case)
    tiny.sample(model, attach(with_more_tokens(model.patcher), CONFIG, trace), steps=STEPS, **given)
    assert all(e.heatmap is None for e in trace.last.evaluations)
    said = [e.reason for e in trace.last.evaluations if "not listened to" in e.reason]
    assert said and all(f"{case.keys + 5} tokens on {case.keys + 5} does not add up" in reason for reason in said)
