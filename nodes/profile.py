"""Profile a Model: measures how a model's predictions bend along the schedule."""

from typing import Any

from comfy_api.latest import io

from ..host.profiling import Pictures, default_sigmas, downscale_of, euler, profile_model
from .types import ADVANCED, CATEGORY, aliases


class HighlightProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HighlightProfile",
            display_name="Profile a Model",
            category=CATEGORY,
            description="Samples a few pictures as they are and keeps how this model's predictions bend along the schedule, so "
            "that Highlight Diffusion knows where to compute. Once for each model is enough; further runs add up.",
            **aliases("calibrate", "measure", "speed", "fidelity"),
            inputs=[
                io.Model.Input("model", tooltip="The model as it will be used."),
                io.Conditioning.Input("positive", tooltip="A prompt of the kind that will be used."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size that will be used; the first is sampled."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Of the first picture's noise; each further one has the next.",
                ),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="As it will be used."),
                io.Int.Input("pictures", default=4, min=1, max=16, tooltip="How many pictures to sample. Four are enough."),
                io.Int.Input(
                    "steps", default=30, min=4, max=100, extra_dict=ADVANCED,
                    tooltip="30 serve any other number of steps too.",
                ),
                io.Sampler.Input(
                    "sampler", optional=True, extra_dict=ADVANCED,
                    tooltip="euler without one, which serves all samplers that add no noise.",
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True, extra_dict=ADVANCED,
                    tooltip="Instead of steps; without any the model's usual ones, which serve all schedulers.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model as it came in; every Highlight node finds its profile."),
                io.String.Output(display_name="report", tooltip="Where the profile is kept, and what is expected of speeds."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: io.Model.Type, positive: Any, negative: Any, latent_image: dict, seed: int, cfg: float, pictures: int,
        steps: int, sampler: Any = None, sigmas: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        schedule = default_sigmas(model, steps) if sigmas is None else sigmas
        sampled = Pictures(
            positive, negative, latent_image["samples"], seed, cfg, sampler or euler(), schedule, pictures,
            downscale_of(latent_image),
        )  # fmt: skip
        told = profile_model(model, sampled)
        return io.NodeOutput(model, told, ui={"text": (told,)})
