"""Highlight Mask Preview: what the model looked at, and what was computed, evaluation by evaluation."""

import torch
from comfy_api.latest import io, ui

from ..engine.report.latent_rgb import picture_of_latent
from ..engine.report.masks import MASK_SIZES, MaskSize, prompt_masks, word_masks
from ..engine.report.messages import Messages, word_maps
from ..engine.report.numbers import as_line
from ..engine.report.overlay import SHOWS, Show, frames
from ..engine.trace import LatentColours, Trace
from ..host.files import save_json
from .types import ADVANCED, CATEGORY, EMPTY_TRACE, HighlightTrace, aliases

DRAWING = 1.0  # seconds; the last pictures of a run are drawn beside whatever follows it


class HighlightMaskPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HighlightMaskPreview",
            display_name="Highlight Mask Preview",
            category=CATEGORY,
            description="Shows the heatmap and the highlight over the picture, live while the sampler runs and evaluation by "
            "evaluation afterwards, with a timeline below: blue dense, orange partial, light blue shallow, grey skipped. "
            "Connect samples or images so that it runs after the sampler.",
            **aliases("heatmap", "cross attention", "visualise", "trace", "live preview"),
            inputs=[
                HighlightTrace.Input("trace", tooltip="From Highlight Diffusion or SDTM Token Merging."),
                io.Latent.Input("samples", optional=True, tooltip="The sampled latent; shown when no images are connected."),
                io.Image.Input("images", optional=True, tooltip="The decoded picture to draw over."),
                io.Int.Input("image_index", default=0, min=0, max=4095, tooltip="Which picture of the batch the outputs show."),
                io.Int.Input(
                    "every", default=1, min=1, max=1000, extra_dict=ADVANCED,
                    tooltip="Frames of only every n-th evaluation; the last always has one.",
                ),
                io.Combo.Input(
                    "show", options=list(SHOWS), default="overlay", optional=True, extra_dict=ADVANCED,
                    tooltip="What the frames show. overlay: heatmap and highlight over the picture. heatmap: it alone. "
                    "highlight: the picture, dark outside the highlight. difference: from the reference, 8 times. merged: how "
                    "much of each token was merged away.",
                ),
                io.String.Input(
                    "word", default="", optional=True, extra_dict=ADVANCED,
                    tooltip="Frames with the heatmap of this word alone. It needs Highlight Words before the sampler.",
                ),
                io.Int.Input(
                    "run", default=0, min=0, max=7, optional=True, extra_dict=ADVANCED,
                    tooltip="Which run of the trace the outputs show: 0 the last, 1 the one before, such as the first pass of "
                    "a hi-res fix.",
                ),
                io.Combo.Input(
                    "mask_size", options=list(MASK_SIZES), default="picture", optional=True, extra_dict=ADVANCED,
                    tooltip="Size of the masks: the picture's, with hard or with soft edges, or the latent's, cell by cell.",
                ),
                io.Image.Input(
                    "reference", optional=True, extra_dict=ADVANCED,
                    tooltip="The unaccelerated picture of the same seed, to show the difference from.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="One frame an evaluation, no side above 1024 pixels."),
                io.Mask.Output(tooltip="The final highlight of each picture of the batch."),
                io.Mask.Output(
                    display_name="word masks",
                    tooltip="What each word of Highlight Words looks at in the picture of image_index, one mask a word, in the "
                    "order they were given in.",
                ),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, trace: Trace, image_index: int, every: int, show: Show = "overlay", word: str = "", run: int = 0,
        mask_size: MaskSize = "picture",
        samples: dict | None = None, images: torch.Tensor | None = None, reference: torch.Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        chosen = trace.before_last(run)
        if images is not None:
            pictures = images
        elif samples is not None:
            latent = samples["samples"]
            latent = latent.unbind()[0] if latent.is_nested else latent  # of a video and its sound the video
            pictures = picture_of_latent(latent, chosen.colours if chosen else LatentColours())
        else:
            raise ValueError(
                "Highlight Mask Preview needs samples or images: connect the sampler's LATENT or the decoded IMAGE"
            )
        if image_index >= len(pictures):
            raise ValueError(
                f"image_index is {image_index}, but the batch has {len(pictures)} pictures; the last is {len(pictures) - 1}"
            )
        picture = pictures[image_index, ..., :3].float().cpu()
        if chosen is None:
            mask = torch.zeros(len(pictures), *picture.shape[:2])
            text, shown, words = EMPTY_TRACE, picture[None], mask[:1]
        else:
            other = None if reference is None else reference[min(image_index, len(reference) - 1), ..., :3].float().cpu()
            size = (picture.shape[0], picture.shape[1])
            shown = frames(chosen, picture, image_index, every, show, word.strip(), other)
            mask, words = prompt_masks(chosen, size, mask_size), word_masks(chosen, image_index, size, mask_size)
            text = f"{as_line(chosen)}\n{chosen.highlight_reason}"
        return io.NodeOutput(shown, mask, words, ui={"text": (text,), **cls._for_the_browser(trace, pictures, reference)})

    @classmethod
    def _for_the_browser(cls, trace: Trace, pictures: torch.Tensor, reference: torch.Tensor | None) -> dict:
        """What the widget of this node shows: every run of the trace, and the pictures, as files."""
        for run in trace.runs:
            run.drawn.wait(DRAWING)

        def saved(images: torch.Tensor | None) -> list:
            return [] if images is None else ui.PreviewImage(images[..., :3], cls=cls).as_dict()["images"]

        return {
            "highlight_runs": [run.as_dict() for run in trace.runs],
            "highlight_files": [save_json(run.key, Messages(run).next(done=True)) for run in trace.runs],
            "highlight_words": [save_json(f"{run.key}_words", word_maps(run)) if run.words else None for run in trace.runs],
            "highlight_pictures": saved(pictures),
            "highlight_reference": saved(reference),
        }
