import pytest
from highlight_diffusion.engine.config import HighlightConfig, parse_interval


@pytest.mark.parametrize(("text", "value"), [("auto", None), (" Auto ", None), ("3", (3,)), ("1, 3,5", (1, 3, 5))])
def test_interval_is_read(text, value):
    assert parse_interval(text) == value


@pytest.mark.parametrize("text", ["0", "-2", "1,0,3", "two", "", "2;3", "1.5"])
def test_bad_interval_is_named(text):
    with pytest.raises(ValueError, match="interval") as error:
        parse_interval(text)
    assert "such as" in str(error.value) or "smallest" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent 0.8 is not below end_percent 0.2"),
        ({"end_percent": 1.5}, "end_percent is 1.5"),
        ({"warmup": 1}, "warmup is 1"),
        ({"halo": -1}, "halo is -1"),
        ({"forecast": "guess"}, 'forecast is "guess"'),
        ({"pace": 0.5}, "pace is 0.5"),
        ({"pace": float("nan")}, "pace is nan"),
        ({"pace": float("inf")}, "pace is inf"),
        ({"interval": (0,)}, "interval"),
        ({"interval": ()}, "interval"),
    ],
)
def test_bad_settings_name_the_value(settings, words):
    with pytest.raises(ValueError, match="(?i)" + words.replace('"', ".")):
        HighlightConfig(**settings)


def test_off_and_interval_one_are_inactive():
    assert not HighlightConfig(enabled=False).active
    assert not HighlightConfig(interval=(1,)).active
    assert not HighlightConfig(interval=(1, 1)).active
    assert HighlightConfig(interval=(1, 2)).active


@pytest.mark.parametrize(
    ("asked", "other", "named"),
    [
        ({"speed": 2.0}, {"interval": (3,)}, "speed is 2.0, but the interval says"),
        ({"fidelity": 40.0}, {"interval": "adaptive"}, "fidelity is 40.0, but the interval says"),
        ({"speed": 2.0}, {"shallow": "always"}, "speed is 2.0, but shallow is always"),
        ({"speed": 2.0}, {"predictor": "parabola"}, 'errors of the predictor "parabola" are not known'),
        ({"speed": 0.5}, {}, "speed is 0.5; it must be a finite number, 1 or more"),
        ({"fidelity": -1.0}, {}, "fidelity is -1.0; it must be a finite number of decibels"),
    ],
)
def test_a_speed_or_a_fidelity_is_refused_beside_what_contradicts_it(asked, other, named):
    with pytest.raises(ValueError, match=named):
        HighlightConfig(**asked, **other)
