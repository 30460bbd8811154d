"""SDTM Token Merging: the node that merges the tokens of a diffusion transformer."""

from comfy_api.latest import io

from ..engine.config import MEMORIES, Memory
from ..engine.merging.config import PRESETS, SDTMConfig, parse_blocks
from ..engine.trace import Trace
from ..host.attach import attach_merging
from .types import ADVANCED, CATEGORY, HighlightTrace, aliases

PRESET = -1.0  # a knob at this value is left to the preset


class HighlightSDTM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def share(name: str, tooltip: str, low: float = PRESET, high: float = 1.0, default: float = PRESET) -> io.Float.Input:
            return io.Float.Input(
                name, default=default, min=low, max=high, step=0.01, extra_dict=ADVANCED,
                tooltip=f"{tooltip} -1 leaves it to the preset." if default == PRESET else tooltip,
            )  # fmt: skip

        return io.Schema(
            node_id="HighlightSDTM",
            display_name="SDTM Token Merging",
            category=CATEGORY,
            description="Samples diffusion transformers faster without retraining: image tokens that are alike are computed "
            "as one, whole windows of them early (structure), single ones the prompt does not look at late (detail).",
            **aliases("token merging", "tome", "accelerate", "speed up", "structure then detail"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A diffusion transformer, before or after Highlight Diffusion. Others stay as they are, and the "
                    "trace says so.",
                ),
                io.Boolean.Input("enabled", default=True, tooltip="Off gives exactly the unaccelerated picture."),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default="balanced",
                    tooltip="quality stays closest to the unaccelerated picture, fast saves most.",
                ),
                share("r", "Share of the image tokens that is saved, in the middle of its descent; 0 merges nothing."),
                share("delta", "The share falls from r + delta at the start to r - delta at the end."),
                share("switch", "Share of the schedule at which the structure stage ends and the detail stage begins."),
                share(
                    "mcw", "How much of what sets merged tokens apart is lost. The rest is remembered from the last whole "
                    "evaluation, which is temporal reuse; 1 remembers nothing."
                ),
                io.Int.Input(
                    "protect_steps", default=-1, min=-1, max=100, extra_dict=ADVANCED,
                    tooltip="One evaluation of so many is computed whole, 2 or more; 0 for none, which needs mcw 1. -1 leaves "
                    "it to the preset.",
                ),
                io.String.Input(
                    "protect_blocks", default="", extra_dict=ADVANCED,
                    tooltip="Blocks without merging, such as 0,1,-1; negative ones are counted from the end.",
                ),
                share("threshold", "Least likeness of tokens that are merged, 1 for equal ones; 0 for any.", default=0.0),
                io.Int.Input(
                    "window", default=2, min=2, max=8, extra_dict=ADVANCED, tooltip="Side of the windows, in tokens.",
                ),
                share("a_s", "How much it counts in the structure stage that a window was spared for long.", -10.0, 10.0, 0.05),
                share("a_d", "The same of a token in the detail stage.", -10.0, 10.0, 0.05),
                io.Boolean.Input(
                    "proportional", default=True, extra_dict=ADVANCED,
                    tooltip="In attention a merged token weighs as many as it stands for. Needs an attention mask.",
                ),
                share(
                    "a_p", "Weight of the prompt in joint attention: its logarithm falls from a_p to -a_p over the schedule.",
                    -10.0, 10.0, 0.0,
                ),
                io.Int.Input(
                    "reuse", default=4, min=1, max=100, extra_dict=ADVANCED,
                    tooltip="How many evaluations a matching serves, where nothing is remembered.",
                ),
                io.Boolean.Input(
                    "detail_attention", default=True, extra_dict=ADVANCED,
                    tooltip="Merge attention in the detail stage too; off merges the MLP alone, as the paper does.",
                ),
                io.Combo.Input(
                    "memory", options=list(MEMORIES), default="device", extra_dict=ADVANCED,
                    tooltip="How what is remembered is kept: 8 bit takes half of the GPU's memory or less, offload none.",
                ),
                share("start_percent", "Nothing is merged before this share of the schedule.", 0.0, 1.0, 0.0),
                share("end_percent", "Nothing is merged after this share of the schedule.", 0.0, 1.0, 1.0),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, sampling with merged tokens."),
                HighlightTrace.Output(display_name="trace", tooltip="What each evaluation did; for Highlight Mask Preview."),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # as Highlight Diffusion: its trace is its own
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, protect_blocks: str | None) -> bool | str:
        try:
            parse_blocks(protect_blocks or "")  # None where it is linked, and checked when it runs
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model: io.Model.Type, enabled: bool = True, preset: str = "balanced", r: float = PRESET, delta: float = PRESET,
        switch: float = PRESET, mcw: float = PRESET, protect_steps: int = -1, protect_blocks: str = "",
        threshold: float = SDTMConfig.threshold, window: int = SDTMConfig.window, a_s: float = SDTMConfig.a_s,
        a_d: float = SDTMConfig.a_d, proportional: bool = SDTMConfig.proportional, a_p: float = SDTMConfig.a_p,
        reuse: int = SDTMConfig.reuse, detail_attention: bool = SDTMConfig.detail_attention,
        memory: Memory = SDTMConfig.memory, start_percent: float = SDTMConfig.start_percent,
        end_percent: float = SDTMConfig.end_percent,
    ) -> io.NodeOutput:  # fmt: skip
        preferred = PRESETS[preset]

        def chosen(name: str, value: float) -> float:
            return preferred[name] if value < 0 else value

        config = SDTMConfig(
            r=chosen("r", r), delta=chosen("delta", delta), switch=chosen("switch", switch), mcw=chosen("mcw", mcw),
            protect_steps=int(chosen("protect_steps", protect_steps)), protect_blocks=parse_blocks(protect_blocks),
            threshold=threshold, window=window, a_s=a_s, a_d=a_d, proportional=proportional, a_p=a_p, reuse=reuse,
            detail_attention=detail_attention, memory=memory, start_percent=start_percent, end_percent=end_percent,
            enabled=enabled,
        )  # fmt: skip
        trace = Trace()
        node_id = str(getattr(cls.hidden, "unique_id", None) or "")
        return io.NodeOutput(attach_merging(model, config, trace, node_id), trace)
