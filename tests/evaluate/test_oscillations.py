"""The picture of oscillating weights, layer by layer."""

from __future__ import annotations

from xml.etree import ElementTree

from evaluate.oscillations import oscillations


def test_layers_are_ordered_by_the_numbers_in_their_names() -> None:
    shares = {"conv_dw_10": 1.0, "2.conv": 2.0, "conv_dw_2": 3.0, "conv_dw_1": 4.0, "10.conv": 5.0, "fc": 6.0}
    picture = ElementTree.fromstring(oscillations({"plain": shares, "tqt": {"conv_dw_11": 1.0}}, "toy"))
    said = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}text")]
    named = [text for text in said if text in {*shares, "conv_dw_11"}]
    assert named == ["2.conv", "10.conv", "conv_dw_1", "conv_dw_2", "conv_dw_10", "conv_dw_11", "fc"]
