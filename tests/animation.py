"""Pictures of one size as an animated PNG (PNG specification, third edition, section 11.3.4), which browsers play as they are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PySide6.QtCore import QBuffer, QIODevice, QRect
from PySide6.QtGui import QImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def save_animation(frames: Sequence[tuple[QImage, float]], file: Path) -> None:
    """Write ``frames``, each shown for so many seconds, over and over; of each but the first only what has changed."""
    before, number = None, 0
    out = [b""]
    for index, (image, seconds) in enumerate(frames):
        room = image.rect() if before is None else _changed(before, image)
        chunks = list(_chunks(_png(image.copy(room))))
        if index == 0:
            out = [SIGNATURE, _chunk(*chunks[0]), _chunk(b"acTL", struct.pack(">II", len(frames), 0))]
        place = struct.pack(">IIIII", number, room.width(), room.height(), room.x(), room.y())
        out.append(_chunk(b"fcTL", place + struct.pack(">HHBB", round(1000 * seconds), 1000, 0, 0)))
        number += 1
        for data in (data for kind, data in chunks if kind == b"IDAT"):
            out.append(_chunk(b"IDAT", data) if index == 0 else _chunk(b"fdAT", struct.pack(">I", number) + data))
            number += index > 0
        before = image
    file.write_bytes(b"".join([*out, _chunk(b"IEND", b"")]))


def _changed(before: QImage, after: QImage) -> QRect:
    rows, columns = np.nonzero(_pixels(before) != _pixels(after))
    left, top = int(columns.min()), int(rows.min())
    return QRect(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)


def _pixels(image: QImage) -> np.ndarray:
    plain = image.convertToFormat(QImage.Format.Format_RGB32)
    return np.frombuffer(plain.constBits(), np.uint32).reshape(plain.height(), plain.width()).copy()


def _png(image: QImage) -> bytes:
    buffer = QBuffer()
    buffer.open(QIODevice.OpenModeFlag.WriteOnly)
    image.convertToFormat(QImage.Format.Format_RGB888).save(buffer, "PNG", 0)
    return bytes(buffer.data().data())


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
