from highlight_diffusion.bench.report import Data


def row(method: str, setting: str, prompt: int, psnr: float = 40.0) -> dict[str, str]:
    given = {"method": method, "setting": setting, "prompt": prompt, "kind": "one object", "share": 0.1, "psnr": psnr}
    return {name: str(value) for name, value in (given | {"dense_macs": 100, "macs": 50}).items()}


def test_bug_strengths_of_an_interrupted_run_are_left_out():
    """They used to end in an IndexError, since curves of different prompts were compared."""
    whole = [row(method, "1", prompt) for method in ("dense", "a", "b") for prompt in range(3)]
    data = Data([*whole, row("b", "2", 0), row("c", "1", 0)], [])
    assert data.methods == ["a", "b"]
    assert data.points("b").settings == ("1",)


def test_bug_prompts_that_few_strengths_have_do_not_drop_the_others():
    whole = [row(method, "1", prompt) for method in ("dense", "a", "b") for prompt in range(3)]
    data = Data([*whole, row("a", "1", 3)], [])
    assert data.methods == ["a", "b"]
    assert data.points("a").ratio.shape == data.points("b").ratio.shape == (1, 3)
