"""Highlight Words: say which words of the prompt the highlight is to follow."""

from comfy_api.latest import io

from ..host.words import WORDS, token_weights
from .types import CATEGORY, aliases


class HighlightWords(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HighlightWords",
            display_name="Highlight Words",
            category=CATEGORY,
            description="Says which words of the prompt to follow. The conditioning is passed on as it is.",
            **aliases("token", "word", "cross attention", "subject"),
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The positive conditioning, from any text encoder."),
                io.Clip.Input("clip", tooltip="The CLIP it was encoded with."),
                io.String.Input("prompt", multiline=True, tooltip="The prompt it was encoded from, the very same."),
                io.String.Input(
                    "words", default="",
                    tooltip="Words to follow, a comma between; they must stand in the prompt. Empty: all of it but padding.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the sampler's positive input.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, conditioning: io.Conditioning.Type, clip: io.Clip.Type, prompt: str, words: str) -> io.NodeOutput:
        named = [word.strip() for word in words.split(",") if word.strip()]
        return io.NodeOutput([
            [tensor, {**extra, WORDS: token_weights(clip, prompt, named, tensor.shape[1])}] for tensor, extra in conditioning
        ])  # fmt: skip
