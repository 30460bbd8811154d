"""Highlight Diffusion: the node that makes a MODEL sample faster."""

from comfy_api.latest import io

from ..engine.config import (
    CONTROLS,
    FORECASTS,
    MEMORIES,
    PRESETS,
    WHENS,
    Control,
    ForecastOf,
    HighlightConfig,
    Memory,
    When,
    parse_interval,
)
from ..engine.region.regions import UserMasks
from ..engine.trace import Trace
from ..host.attach import attach
from .types import ADVANCED, CATEGORY, HighlightTrace, aliases

PROMISED = ", ".join(f"{own['promise']:g}" for own in PRESETS.values())  # dB


class HighlightDiffusion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HighlightDiffusion",
            display_name="Highlight Diffusion",
            category=CATEGORY,
            description="Samples faster without retraining: after a dense warm-up only some evaluations are computed in "
            "full; in between, predictions are forecast, and where that pays the region the prompt looks at is computed to "
            "correct them.",
            **aliases("accelerate", "speed up", "cache", "skip steps", "region"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any MODEL, after LoRA and IP-Adapter. On one that is not known nothing but time is saved.",
                ),
                io.Boolean.Input("enabled", default=True, tooltip="Off gives exactly the unaccelerated picture."),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default="balanced",
                    tooltip="quality stays closest to the unaccelerated picture, fast saves most. Where it is known what plans "
                    f"cost, as few evaluations are computed in full as it takes to expect {PROMISED} dB of the latent's "
                    "signal-to-noise ratio to the unaccelerated one.",
                ),
                io.Combo.Input(
                    "correct", options=list(WHENS), default="auto",
                    tooltip="Compute the highlight once in each longer gap and correct the forecast with it. auto: with a "
                    "mask, and under samplers and schedules where it was measured to be worth its cost; elsewhere another "
                    "evaluation in full is worth more. never: forecast alone.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Highlight this region instead of what the prompt looks at. Inpainting needs none: the latent's "
                    "noise mask is the highlight by itself.",
                ),
                io.Mask.Input(
                    "protect", optional=True,
                    tooltip="Highlight this region besides what the prompt looks at: a face, a hand, a line of text.",
                ),
                io.String.Input(
                    "interval", default="auto", extra_dict=ADVANCED,
                    tooltip="Gap between dense evaluations. auto leaves it to the preset; 2 computes every second one; "
                    "a list such as 1,3,5,7,9 is spread over the schedule; adaptive goes by the error of the forecasts, "
                    "more of it at a higher pace; 1 computes everything.",
                ),
                io.Float.Input(
                    "pace", default=0.0, min=0.0, max=100.0, step=0.1, extra_dict=ADVANCED,
                    tooltip="How many average steps of the schedule a dense evaluation serves, at least 1. 0 leaves it to the "
                    "preset.",
                ),
                io.Int.Input(
                    "warmup", default=0, min=0, max=100, extra_dict=ADVANCED,
                    tooltip="Dense steps at the start, before anything is saved; at least 2. 0 leaves it to preset and model.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, extra_dict=ADVANCED,
                    tooltip="Nothing is saved before this share of the schedule.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, extra_dict=ADVANCED,
                    tooltip="Nothing is saved after this share of the schedule.",
                ),
                io.Float.Input(
                    "threshold", default=0.6, min=0.0, max=1.0, step=0.01, extra_dict=ADVANCED,
                    tooltip="How narrow the highlight is. 0.6 divides the heat where it divides best (Otsu's threshold). More "
                    "makes it narrower, less wider; 0 highlights, and computes, everything.",
                ),
                io.Int.Input(
                    "halo", default=2, min=0, max=32, extra_dict=ADVANCED,
                    tooltip="Latent cells computed around the highlight and thrown away; more is more exact and slower.",
                ),
                io.Int.Input(
                    "levels", default=2, min=0, max=8, extra_dict=ADVANCED,
                    tooltip="Of the UNet's levels, how many of the finest the highlight is computed through; what the deeper "
                    "ones would give is forecast. 0 computes all.",
                ),
                io.Float.Input(
                    "max_area", default=0.6, min=0.0, max=1.0, step=0.01, extra_dict=ADVANCED,
                    tooltip="A highlight that needs more of the frame than this is left to the forecast.",
                ),
                io.Combo.Input(
                    "forecast", options=list(FORECASTS), default="auto", extra_dict=ADVANCED,
                    tooltip="What is extrapolated. auto: noise for deterministic samplers, the denoised image for others and "
                    "in flows.",
                ),
                io.Combo.Input(
                    "memory", options=list(MEMORIES), default="device", extra_dict=ADVANCED, optional=True,
                    tooltip="Where the tokens outside the highlight are kept: device is exact and fastest, 8 bit takes half "
                    "of that memory or less, offload none of the GPU's.",
                ),
                io.Combo.Input(
                    "control", options=list(CONTROLS), default="auto", optional=True, extra_dict=ADVANCED,
                    tooltip="Control nets where only the highlight is computed: reuse forecasts what they add from evaluations "
                    "computed in full, compute runs them there too. auto: reuse for ComfyUI's own control nets.",
                ),
                io.Combo.Input(
                    "shallow", options=list(WHENS), default="auto", optional=True, extra_dict=ADVANCED,
                    tooltip="On UNets, fill gaps with evaluations of the outermost blocks instead of forecasts. auto: in short "
                    "schedules at a high pace, and under samplers that add noise.",
                ),
                io.Float.Input(
                    "speed", default=0.0, min=0.0, max=20.0, step=0.1, optional=True, extra_dict=ADVANCED,
                    tooltip="How many times fewer evaluations are computed in full, placed where the model's "
                    "profile says that they matter most; at least 1. 0 leaves it to preset, pace or fidelity.",
                ),
                io.Float.Input(
                    "fidelity", default=0.0, min=0.0, max=100.0, step=1.0, optional=True, extra_dict=ADVANCED,
                    tooltip="Least signal-to-noise ratio to the unaccelerated latent, in decibels, to be expected, with as "
                    "few evaluations computed in full as that takes. 0 for no limit.",
                ),
                io.Boolean.Input(
                    "learn", default=False, optional=True, extra_dict=ADVANCED,
                    tooltip="Adds runs in which every step is computed, as with enabled off, to this model's own profile, as "
                    "Profile a Model does, at no cost. The report says what became of each run.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, sampling with Highlight Diffusion."),
                HighlightTrace.Output(display_name="trace", tooltip="What each evaluation did; for Highlight Mask Preview."),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # or ComfyUI's cache would hand one node's trace to another with the same inputs
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, interval: str | None) -> bool | str:
        try:
            parse_interval(interval or "auto")  # None where it is linked, and checked when it runs
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model: io.Model.Type, enabled: bool, preset: str, correct: When, interval: str, pace: float, warmup: int,
        start_percent: float, end_percent: float, threshold: float, halo: int, levels: int, max_area: float,
        forecast: ForecastOf, mask: io.Mask.Type | None = None, protect: io.Mask.Type | None = None,
        memory: Memory = "device", control: Control = "auto", shallow: When = "auto",
        speed: float = 0.0, fidelity: float = 0.0, learn: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        asked = {"pace": pace} if pace else PRESETS[preset]
        config = HighlightConfig(
            **asked, warmup=warmup, interval=parse_interval(interval),
            start_percent=start_percent, end_percent=end_percent, correct=correct, threshold=threshold, halo=halo,
            levels=levels, max_area=max_area, forecast=forecast, shallow=shallow, memory=memory, control=control,
            enabled=enabled, speed=speed, fidelity=fidelity,
        )  # fmt: skip
        trace = Trace()
        node_id = str(getattr(cls.hidden, "unique_id", None) or "")
        return io.NodeOutput(attach(model, config, trace, node_id, UserMasks(mask, protect), learn), trace)
