import numpy as np
import pytest
from highlight_diffusion.demo.detector import all_right, detect, objects_right
from highlight_diffusion.demo.scenes import Scene, held_out, object_masks, parse_caption, render, sample_scene, unseen_scenes
from highlight_diffusion.demo.text import LENGTH, TOKENS, tokenize

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
