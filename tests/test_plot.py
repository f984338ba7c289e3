"""The colours of maps keep their order in grey, and for people who see fewer colours."""
import matplotlib.pyplot as plt
import numpy as np
import pytest

from sdd_face.plot import COLORS

# What people with one kind of cone missing see, in linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1).
VISION = {
    "all colours": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3}


def seen(colors: str, vision: str) -> np.ndarray:
    """Give the 256 colours of a map, linear RGB, as somebody sees them."""
    shown = plt.get_cmap(COLORS[colors][0])(np.arange(256))[:, :3]
    linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    return (linear @ np.transpose(VISION[vision])).clip(0, 1)


def lightness(linear: np.ndarray) -> np.ndarray:
    """Compute CIE lightness, 0 to 100."""
    return 116 * np.cbrt((linear @ [0.2126, 0.7152, 0.0722]).clip(0.008856)) - 16


@pytest.mark.parametrize("vision", VISION)
def test_a_plain_map_grows_lighter_for_everybody(vision: str):
    light = lightness(seen("plain", vision))
    assert (np.diff(light) > -0.2).all() and light[-1] - light[0] > 70


@pytest.mark.parametrize("vision", VISION)
def test_zero_of_a_signed_map_is_the_lightest_for_everybody(vision: str):
    light = lightness(seen("signed", vision))
    assert 120 < light.argmax() < 136 and (np.diff(light[:120]) > -0.5).all() and (np.diff(light[136:]) < 0.5).all()


@pytest.mark.parametrize("vision", [name for name in VISION if name != "grey"])
def test_for_and_against_differ_for_everybody(vision: str):
    colors = seen("signed", vision)
    assert np.abs(colors[32] - colors[223]).max() > 0.2  # blue and red of the same lightness


def test_the_papers_colours_do_not_keep_their_order():
    assert (np.diff(lightness(seen("paper", "all colours"))) < -0.5).any()  # why they are not the default
