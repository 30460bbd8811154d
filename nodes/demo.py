"""Load Highlight Demo Model: a bundled tiny text-to-image model, so that the pack shows itself without a download."""

from comfy_api.latest import io

from ..host.demo import KINDS, load_demo, load_vision
from .types import CATEGORY, aliases


class HighlightDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HighlightDemoModel",
            display_name="Load Highlight Demo Model",
            category=CATEGORY,
            description="A tiny model bundled with this pack. It draws coloured shapes on textured backgrounds, 256 to 768 "
            'pixels wide, such as "a large red circle at the top left and a small blue star at the right on a striped beige '
            'background".',
            **aliases("demo", "tiny model", "example model"),
            inputs=[
                io.Combo.Input(
                    "kind", options=list(KINDS), default="unet", optional=True,
                    tooltip="unet: SD1.5's layout, v-prediction. mmdit: SD3's layout, a rectified flow. mmdit turbo: the same "
                    "with a LoRA for 8 or 4 steps at CFG 1, scheduler simple. All are made for 256 to 768 pixels.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, for latents of 32 to 96 cells."),
                io.Clip.Output(tooltip="A tiny CLIP that knows the words of the demo scenes."),
                io.Vae.Output(tooltip="A small 8x VAE."),
                io.ClipVision.Output(tooltip="A tiny CLIP vision encoder, for the unet's image prompt with IPAdapter_plus."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, kind: str = "unet") -> io.NodeOutput:
        return io.NodeOutput(*load_demo(kind), load_vision())
