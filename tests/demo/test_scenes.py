import numpy as np
import pytest
from highlight_diffusion.demo.detector import all_right, detect, objects_right
from highlight_diffusion.demo.scenes import (
    Scene,
    held_out,
    object_masks,
    parse_caption,
    render,
    resized,
    sample_scene,
    training_scenes,
    unseen_scenes,
)
from highlight_diffusion.demo.text import LENGTH, TOKENS, tokenize
from highlight_diffusion.tools.train.denoiser import draw_examples

SCENES = unseen_scenes(40, seed=3, objects=(0, 1, 2, 3))


def test_the_detector_finds_every_rendered_scene_right():
    assert all(all_right(scene, render(scene)) for scene in SCENES)


def test_the_detector_accepts_no_other_scene():
    pictures = [render(scene) for scene in SCENES]
    wrong = [all_right(scene, pictures[i - 1]) for i, scene in enumerate(SCENES)]
    assert not any(wrong)


def test_a_giant_object_is_found():
    scene = sample_scene(np.random.default_rng(1), 1, giant=True)
    assert "filling the frame" in scene.caption and all_right(scene, render(scene))


@pytest.mark.parametrize("change", ["colour", "shape", "position"])
def test_a_wrong_attribute_is_not_right(change):
    asked = parse_caption("a large red circle at the top left on a plain gray background")
    other = {"colour": "a large blue circle at the top left", "shape": "a large red square at the top left"}.get(
        change, "a large red circle at the bottom"
    )
    shown = parse_caption(f"{other} on a plain gray background")
    assert objects_right(asked, render(shown)) == 0 and len(detect(render(shown))) == 1


def test_one_object_does_not_count_twice():
    asked = parse_caption(
        "a large red circle at the top left and a small red circle at the top left on a plain gray background"
    )
    shown = Scene(asked.things[:1], "gray", "plain", 0)
    assert objects_right(asked, render(shown)) == 1


def test_captions_are_read_back():
    for scene in SCENES:
        parsed = parse_caption(scene.caption)
        assert [t.phrase for t in parsed.things] == [t.phrase for t in scene.things]
        assert (parsed.background, parsed.texture) == (scene.background, scene.texture)


def test_a_foreign_prompt_is_named():
    with pytest.raises(ValueError, match="a zebra"):
        parse_caption("a zebra on a plain gray background")


def test_committed_prompts_were_never_trained_on(pack):
    prompts = (pack / "demo" / "prompts.txt").read_text().splitlines()
    assert len(set(prompts)) == len(prompts) >= 48
    assert all(held_out(prompt) for prompt in prompts)
    assert {len(parse_caption(prompt).things) for prompt in prompts} == {1, 2, 3}


def test_every_word_of_the_scenes_is_known_and_fits():
    for scene in SCENES:
        tokens = tokenize(scene.caption)
        assert tokens.shape == (LENGTH,) and set(tokens.tolist()) <= set(TOKENS.values())


def test_an_unknown_word_is_named():
    with pytest.raises(ValueError, match="does not know the word.* zebra"):
        tokenize("a zebra")


def test_masks_are_inside_the_frame_and_apart():
    for scene in SCENES:
        masks = object_masks(scene, 128)
        assert len(masks) == len(scene.things) and masks.sum(0).max(initial=0) <= 1


@pytest.mark.parametrize("size", [(256, 256), (256, 384), (384, 256)])
def test_scenes_that_training_draws_are_found_in_frames_of_any_aspect(size):
    scenes = training_scenes(np.random.default_rng(11), 40)
    assert {len(scene.things) for scene in scenes} >= {0, 1, 2, 3, 4} and not any(held_out(scene.caption) for scene in scenes)
    assert all(all_right(scene, render(scene, size)) for scene in scenes)
    assert all(object_masks(scene, size).shape == (len(scene.things), *size) for scene in scenes)


def test_objects_that_training_draws_have_from_under_two_to_thirty_percent_of_the_frame():
    areas = [mask.mean() for scene in training_scenes(np.random.default_rng(12), 400) for mask in object_masks(scene, 64)
             if "giant" not in scene.caption]  # fmt: skip
    assert min(areas) < 0.015 and max(areas) > 0.2


def test_a_resized_scene_has_the_same_caption_and_no_object_touches_another():
    rng = np.random.default_rng(13)
    for scene in SCENES:
        other = resized(scene, rng)
        assert other.caption == scene.caption and other.texture == scene.texture and other.seed == scene.seed
        assert object_masks(other, 128).sum(0).max(initial=0) <= 1
        assert not scene.things or [t.radius for t in other.things] != [t.radius for t in scene.things]


@pytest.mark.parametrize("frame", [(32, 32), (64, 96), (96, 64)])
def test_training_examples_of_a_frame_fit_together(frame):
    examples = draw_examples(np.random.default_rng(14), frame, 3)
    assert examples.latents.shape == (3, 4, *frame) and examples.weights.shape == (3, 1, *frame)
    assert examples.tokens.shape == (3, LENGTH) and examples.layouts.shape[:2] == (3, 2)
    assert examples.layouts.shape[-2] * frame[1] == examples.layouts.shape[-1] * frame[0]
