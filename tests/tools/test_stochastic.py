"""How the bench of samplers that add noise compares what the detector finds."""

from highlight_diffusion.bench.stochastic import new_objects, report, right_objects
from highlight_diffusion.demo.detector import Found
from highlight_diffusion.demo.scenes import parse_caption

STAR = Found("green", "star", (0.8, 0.5), 0.9)


def test_an_object_is_new_where_none_of_its_colour_and_shape_was_near():
    moved, elsewhere = Found("green", "star", (0.85, 0.45), 0.9), Found("green", "star", (0.2, 0.5), 0.9)
    assert new_objects([STAR], [STAR, moved]) == []
    assert new_objects([STAR], [STAR, elsewhere]) == [elsewhere]
    assert new_objects([], [STAR]) == [STAR] and new_objects([STAR], []) == []


def test_another_shape_is_another_object_only_where_both_are_clear():
    square, blurred = Found("green", "square", (0.8, 0.5), 0.9), Found("green", "square", (0.8, 0.5), 0.5)
    assert new_objects([STAR], [square]) == [square] and new_objects([STAR], [blurred]) == []
    assert new_objects([STAR], [Found("red", "star", (0.8, 0.5), 0.9)]) != []


def test_every_found_object_serves_once():
    scene = parse_caption("a small green star at the bottom on a plain gray background")
    assert right_objects(scene, [STAR, STAR]) == 1 and right_objects(scene, []) == 0


def test_the_report_sums_the_objects_of_a_row_and_names_the_worst_picture(tmp_path):
    names = "model,sampler,scheduler,steps,method,prompt,psnr,new,right,dense_right,wanted,saved,kinds"
    rows = ["unet,lcm,normal,8,fast,0,40,1,2,2,2,0.25,DsDD", "unet,lcm,normal,8,fast,1,30,0,1,2,2,0.25,DsDD"]
    path = tmp_path / "stochastic.csv"
    path.write_text("\n".join([names, *rows]) + "\n")
    line = next(line for line in report(path) if line.startswith("| lcm, normal, 8"))
    assert line == "| lcm, normal, 8 | 25%, 35.0 / 30.0, 1, 3/4 | - |"
