"""Highlight Mask Preview: what the model looked at, and what was computed, evaluation by evaluation."""

import torch
from comfy_api.latest import io, ui

from ..engine.overlay import frames, picture_of_latent
from ..engine.trace import Trace
from .types import ADVANCED, CATEGORY, HighlightTrace, aliases


class HighlightMaskPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HighlightMaskPreview",
            display_name="Highlight Mask Preview",
            category=CATEGORY,
            description="Shows the heatmap and the highlight over the picture, one frame an evaluation, with a timeline "
            "below: blue dense, orange partial, grey skipped. Connect samples or images so that it runs after the sampler.",
            **aliases("heatmap", "cross attention", "visualise", "trace"),
            inputs=[
                HighlightTrace.Input("trace", tooltip="From Highlight Diffusion."),
                io.Latent.Input("samples", optional=True, tooltip="The sampled latent; shown when no images are connected."),
                io.Image.Input("images", optional=True, tooltip="The decoded picture to draw over."),
                io.Int.Input("image_index", default=0, min=0, max=4095, tooltip="Which picture of the batch to show."),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=1000,
                    extra_dict=ADVANCED,
                    tooltip="Show only every n-th evaluation; the last is always shown.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="One frame an evaluation."),
                io.Mask.Output(tooltip="The final highlight of each picture of the batch."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, trace: Trace, image_index: int, every: int, samples: dict | None = None, images: torch.Tensor | None = None
    ) -> io.NodeOutput:
        if images is None and samples is None:
            raise ValueError(
                "Highlight Mask Preview needs samples or images: connect the sampler's LATENT or the decoded IMAGE"
            )
        pictures = images if images is not None else picture_of_latent(samples["samples"], trace.last)
        if image_index >= len(pictures):
            raise ValueError(
                f"image_index is {image_index}, but the batch has {len(pictures)} pictures; the last is {len(pictures) - 1}"
            )
        picture = pictures[image_index, ..., :3].float().cpu()
        run = trace.last
        if run is None:
            text = "No sampling run in this trace yet: the sampler did not run (ComfyUI kept its result) or uses another model."
            shown, mask = picture[None], torch.zeros(len(pictures), *picture.shape[:2])
        else:
            shown, mask = frames(run, picture, image_index, every)
            text = f"{run.summary()}\n{run.highlight_reason}"
        preview = ui.PreviewImage(shown, animated=False, cls=cls).as_dict()
        runs = [run.as_dict() for run in trace.runs]
        return io.NodeOutput(shown, mask, ui={**preview, "text": (text,), "highlight_runs": runs})
