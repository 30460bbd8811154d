"""How the bench of samplers that add noise compares what the detector finds."""

from dataclasses import fields, replace

from highlight_diffusion.bench import stochastic
from highlight_diffusion.bench.stochastic import Row, new_objects, publish, published, report, right_objects, summed
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
    rows = [
        "unet,lcm,normal,8,fast,0,40,1,2,2,2,0.25,DsDD", "unet,lcm,normal,8,fast,1,30,0,1,2,2,0.25,DsDD",
        "unet,lcm,normal,8,fast: fewer steps,0,20,0,2,2,2,0.25,DDD",
        "unet,lcm,normal,8,fast: fewer steps,1,20,2,1,2,2,0.25,DDD",
    ]  # fmt: skip
    path = tmp_path / "stochastic.csv"
    path.write_text("\n".join([names, *rows]) + "\n")
    line = next(line for line in report(summed(path, "float32")) if line.startswith("| lcm, normal, 8"))
    assert line == "| lcm, normal, 8 | 2, float32 | - | - | 25%, 35.0 / 30.0, 1, 3/4 (20.0 / 20.0, 2, 3/4) |"


def test_publishing_replaces_what_measures_the_same_and_keeps_all_else(tmp_path, monkeypatch):
    page, table = tmp_path / "page.md", tmp_path / "table.csv"
    page.write_text(f"Before.\n{stochastic.START}\nold\n{stochastic.END}\nAfter.\n")
    row = Row("unet", "lcm", "normal", 8, 3, "float32", "fast", 0.25, 35.0, 30.0, 1, 3, 4)
    table.write_text(",".join(field.name for field in fields(Row)) + "\n")
    monkeypatch.setattr(stochastic, "PAGE", page)
    monkeypatch.setattr(stochastic, "MEASURED", table)
    publish([row, replace(row, sampler="ddpm")])
    publish([replace(row, worst=31.0)])
    assert published() == [replace(row, sampler="ddpm"), replace(row, worst=31.0)]
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n") and "old" not in text
    assert "| ddpm, normal, 8 |" in text and "35.0 / 31.0" in text and "35.0 / 30.0, 1, 3/4 |\n| lcm" in text


def test_the_page_has_the_rows_of_the_committed_table():
    text = stochastic.PAGE.read_text(encoding="utf-8")
    assert "\n".join(report(published())) in text
