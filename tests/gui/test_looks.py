"""The main tabs look as they did. References are small and grey: figures may change, the arrangement may not.

``python tests/gui/test_looks.py`` draws the references anew; look at them before they are committed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QImage

REFERENCES = Path(__file__).resolve().parents[1] / "data" / "looks"
SHRUNK = (250, 175)
TABS = ("footprint", "fits", "probe", "compare")
MEAN_BAR, FAR, FAR_SHARE_BAR = 4.0, 60, 0.03
"""Mean difference of greys (of 255), and the share of pixels that may differ by more than ``FAR``."""


def shrunk(window):
    image = window.grab().toImage()
    return image.scaled(*SHRUNK, Qt.AspectRatioMode.IgnoreAspectRatio, Qt.TransformationMode.SmoothTransformation).convertToFormat(
        QImage.Format.Format_Grayscale8
    )


def greys(image):
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : image.width()].astype(float)


@pytest.fixture
def settled(open_window, qtbot):
    def opened(name, scheme):
        window = open_window(size=(1000, 700), scheme=scheme)
        window.show_tab(name)
        qtbot.wait(120)
        qtbot.waitUntil(lambda: window.context.operations.idle, timeout=20_000)
        qtbot.wait(60)
        return window

    return opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", TABS)
def test_a_tab_looks_as_it_did(settled, name, scheme):
    image = shrunk(settled(name, scheme))
    file = REFERENCES / f"{name}-{scheme}.png"
    if os.environ.get("DRAW_REFERENCES"):
        REFERENCES.mkdir(parents=True, exist_ok=True)
        assert image.save(str(file))
    reference = QImage(str(file)).convertToFormat(QImage.Format.Format_Grayscale8)
    difference = np.abs(greys(image) - greys(reference))
    assert difference.mean() <= MEAN_BAR
    assert (difference > FAR).mean() <= FAR_SHARE_BAR


def test_another_look_is_noticed(settled):
    image = greys(shrunk(settled("footprint", "light")))
    moved = np.roll(image, 12, axis=0)
    assert np.abs(image - moved).mean() > MEAN_BAR


if __name__ == "__main__":
    os.environ["DRAW_REFERENCES"] = "1"
    sys.exit(pytest.main([__file__, "-q"]))
