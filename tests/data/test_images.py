"""Guarded decoding: formats, modes, EXIF, limits before decoding, and mutated files."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from glass_fast.data.images import decode_image, list_images
from glass_fast.errors import DataError


def blocks(height: int = 24, width: int = 40) -> np.ndarray:
    """A picture of flat 8 x 8 blocks (JPEG keeps those nearly exactly), no symmetry."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(small, np.ones((8, 8, 1), np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = Image.fromarray(blocks())
GREY = RGB.convert("L")


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encode(RGB, "PNG"), 0),
        (encode(RGB, "WEBP", lossless=True), 0),
        # quality 95 without chroma subsampling keeps flat blocks within a few levels
        (encode(RGB, "JPEG", quality=95, subsampling=0), 6),
        (encode(RGB, "JPEG", quality=95, subsampling=0, progressive=True), 6),
    ],
)
def test_formats(data: bytes, tolerance: int, tmp_path: Path) -> None:
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8 and pixels.shape == (24, 40, 3) and pixels.flags.writeable
    assert np.abs(pixels.astype(int) - blocks()).max() <= tolerance
    (tmp_path / "x.dat").write_bytes(data)
    assert np.array_equal(decode_image(tmp_path / "x.dat"), pixels)
    assert np.array_equal(decode_image(str(tmp_path / "x.dat")), pixels)


def test_grey_and_bilevel() -> None:
    grey = np.asarray(GREY)
    assert np.array_equal(decode_image(encode(GREY, "PNG")), np.stack([grey] * 3, axis=2))
    jpeg = decode_image(encode(GREY, "JPEG", quality=95))
    assert jpeg.shape == (24, 40, 3) and np.abs(jpeg[..., 0].astype(int) - grey).max() <= 6
    bilevel = decode_image(encode(Image.fromarray(grey > 128), "PNG"))
    assert np.array_equal(bilevel[..., 1], np.where(grey > 128, 255, 0))


def test_sixteen_bit() -> None:
    """16-bit grey is rounded, not cut: 65535 -> 255, 128 -> 0, 129 -> 1 (129 / 257 = 0.502)."""
    wide = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    data = encode(Image.fromarray(wide), "PNG")
    assert decode_image(data)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_cmyk() -> None:
    """Pure inks, and the inverted values that Adobe programs write, both come out as the right colours."""
    inks = np.zeros((8, 40, 4), np.uint8)
    for k in range(4):
        inks[:, 8 * k : 8 * k + 8, k] = 255
    pixels = decode_image(encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=95, subsampling=0))
    found = pixels[4, 4::8].astype(int)
    expected = np.array([[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]])
    assert np.abs(found - expected).max() <= 6


def test_transparency_lies_over_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 0, 3], rgba[:, 1, 3], rgba[:, 2, 3] = 0, 51, 255
    pixels = decode_image(encode(Image.fromarray(rgba), "PNG"))
    # 51 / 255 = 0.2: 0.2 * 200 + 0.8 * 255 = 244 and 0.8 * 255 = 204
    assert pixels[0].tolist() == [[255, 255, 255], [244, 204, 204], [200, 0, 0]]
    webp = decode_image(encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True))
    assert np.array_equal(webp, pixels)
    grey = Image.fromarray(np.stack([rgba[..., 0], rgba[..., 3]], axis=2), "LA")
    assert decode_image(encode(grey, "PNG"))[0].tolist() == [[255] * 3, [244] * 3, [200] * 3]


def test_palette_with_and_without_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    plain = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert decode_image(encode(image, "PNG"))[0].tolist() == plain
    assert decode_image(encode(image, "PNG", transparency=1))[0].tolist() == [plain[0], [255] * 3, plain[2]]
    assert decode_image(encode(image, "PNG", transparency=b"\xff\xff\x00"))[0].tolist() == [
        *plain[:2],
        [255] * 3,
    ]


def test_colour_key_transparency() -> None:
    rgb = np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)
    data = encode(Image.fromarray(rgb), "PNG", transparency=(1, 2, 3))
    assert decode_image(data)[0].tolist() == [[255] * 3, [9] * 3]
    wide = Image.fromarray(np.array([[257, 65535, 0]], np.uint16))
    assert decode_image(encode(wide, "PNG", transparency=257))[0, :, 0].tolist() == [255, 255, 0]


UPRIGHT = blocks()
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}
"""How a camera stores the upright picture under each EXIF orientation (EXIF 2.3, tag 0x0112)."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_orientations(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}[kind]
    data = encode(stored, kind, exif=exif, **options)
    tolerance = 6 if kind == "JPEG" else 0
    assert np.abs(decode_image(data).astype(int) - UPRIGHT).max() <= tolerance
    as_stored = decode_image(data, apply_orientation=False)
    assert as_stored.shape == np.asarray(stored).shape
    assert np.abs(as_stored.astype(int) - np.asarray(stored)).max() <= tolerance


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
    ],
)
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    assert decode_image(encode(RGB, "JPEG", quality=95, subsampling=0, exif=exif)).shape == (24, 40, 3)


def png_header(width: int, height: int, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def bombs() -> list[bytes]:
    """Small files that claim or hold huge pictures."""
    zeros = encode(Image.new("1", (9000, 9000)), "PNG")
    jpeg = bytearray(encode(Image.new("L", (8, 8)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    lossless = bytearray(encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    place = lossless.index(b"VP8L") + 9
    lossless[place : place + 4] = b"\xff\xff\xff\x0f"
    return [zeros, png_header(60_000, 60_000), png_header(2**31 - 1, 2**31 - 1), bytes(jpeg), bytes(lossless)]


@pytest.mark.parametrize("data", bombs())
def test_bombs_are_refused_before_decoding(data: bytes) -> None:
    """Refused from the header: in under 50 ms and without memory for the pixels (the smallest would need 9
    MB)."""
    assert len(data) < 50_000
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(DataError) as caught:
        decode_image(data, max_pixels=2**24, name="bomb.png")
    seconds = time.process_time() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "GF-DATA-153" and "bomb.png" in caught.value.message
    assert seconds < 0.05 and peak < 1_000_000


def test_text_bomb() -> None:
    """A compressed text chunk that would unpack to 200 MB."""
    body = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    begin = time.process_time()
    try:
        assert decode_image(png_header(4, 4, chunk)).shape == (4, 4, 3)
    except DataError as error:
        assert error.code == "GF-DATA-154"
    assert time.process_time() - begin < 0.5  # unpacking all of it takes longer than that


def test_limits_are_inclusive(tmp_path: Path) -> None:
    data = encode(RGB, "PNG")
    assert decode_image(data, max_pixels=960, max_bytes=len(data)).shape == (24, 40, 3)
    (tmp_path / "x.png").write_bytes(data)
    for source in (data, tmp_path / "x.png"):
        with pytest.raises(DataError, match="24 pixels; at most 959"):
            decode_image(source, max_pixels=959)
        with pytest.raises(DataError) as caught:
            decode_image(source, max_bytes=len(data) - 1)
        assert caught.value.code == "GF-DATA-151"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_image(encode(RGB, kind))
    assert caught.value.code == "GF-DATA-152"


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"<svg/>"]
)
def test_stumps(data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        decode_image(data)
    assert caught.value.code in ("GF-DATA-152", "GF-DATA-154")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    data = encode(RGB, kind, save_all=True, append_images=[RGB.transpose(Image.Transpose.ROTATE_180)])
    with pytest.raises(DataError) as caught:
        decode_image(data)
    assert caught.value.code == "GF-DATA-155" and "2 pictures" in caught.value.message


def test_phone_pictures_with_a_second_image() -> None:
    """MPO (a JPEG that carries a depth or gain map): the first picture is the photo."""
    data = encode(RGB, "MPO", save_all=True, append_images=[GREY.convert("RGB")], quality=95, subsampling=0)
    assert np.abs(decode_image(data).astype(int) - blocks()).max() <= 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_files_are_refused(kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cut, also when another library has told Pillow to accept truncated files."""
    data = encode(RGB, kind, **({"quality": 90, "progressive": True} if kind == "JPEG" else {}))
    for cut in {*range(0, len(data), 7), len(data) - 1, len(data) - 2, len(data) - 12}:
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
        with pytest.raises(DataError):
            decode_image(data[:cut])


def test_trailing_bytes_are_accepted() -> None:
    """Cameras and editors append data after the end of the picture."""
    for kind in ("JPEG", "PNG"):
        data = encode(RGB, kind)
        assert np.array_equal(decode_image(data + b"trailer" * 100), decode_image(data))


def mutate(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        kind = chance.random()
        place = chance.randrange(len(damaged))
        if kind < 0.6:
            damaged[place] ^= 1 << chance.randrange(8)
        elif kind < 0.75:
            damaged[place] = chance.choice((0, 1, 127, 128, 255))
        elif kind < 0.85:
            del damaged[place : place + chance.randint(1, 40)]
        elif kind < 0.95:
            damaged[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 20)))
        else:
            damaged[place : place + 4] = struct.pack(">I", chance.choice((0, 2**31 - 1, 2**32 - 1, 65535)))
        if not damaged:
            break
    return bytes(damaged)


def _fuzz(count: int, seed: int) -> int:
    chance = random.Random(seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = RGB.convert("P")
    sources = [
        encode(RGB, "JPEG", exif=exif),
        encode(RGB, "JPEG", progressive=True),
        encode(RGB.convert("CMYK"), "JPEG"),
        encode(RGB, "PNG"),
        encode(palette, "PNG", transparency=3),
        encode(Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)), "PNG"),
        encode(RGB, "WEBP", exif=exif),
        encode(RGB.convert("RGBA"), "WEBP", lossless=True),
    ]
    refused = 0
    for number in range(count):
        data = mutate(sources[number % len(sources)], chance)
        begin = time.process_time()
        try:
            pixels = decode_image(data, max_pixels=2**20)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        except DataError as error:
            assert error.code.startswith("GF-DATA-15")
            refused += 1
        assert time.process_time() - begin < 2  # no hang
    return refused


def test_mutated_files() -> None:
    """1,600 mutated files (``make test-all``: 20,000): pixels or a DataError, nothing else, no hang."""
    assert _fuzz(1600, seed=0) > 400


@pytest.mark.slow
def test_mutated_files_in_full() -> None:
    assert _fuzz(20_000, seed=1) > 5000


def test_unreadable_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("absent.png", "pipe.png", "link.png", ".", "a\0b.png"):
        with pytest.raises(DataError) as caught:
            decode_image(str(tmp_path / name) if "\0" not in name else name)
        assert caught.value.code == "GF-DATA-150"
        assert name in caught.value.message or name == "."


def test_real_photos(real_data: Path) -> None:
    """All photos of both data sets decode; sizes as Pillow reports them."""
    paths = list_images([real_data / "coco" / "val2017", real_data / "voc"])
    assert len(paths) >= 300
    for path in paths[::6]:
        with Image.open(path) as image:
            assert decode_image(path, apply_orientation=False).shape[1::-1] == image.size


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/b/c.webp", "a.jpeg", "notes.txt", ".hidden.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    names = ["a/b/c.webp", "a/z.png", "a.jpeg", "b.JPG"]
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == names
    # a named file is taken whatever its suffix, and nothing is listed twice
    both = list_images([tmp_path / "notes.txt", tmp_path, tmp_path / "b.JPG"])
    assert [path.name for path in both] == ["notes.txt", "c.webp", "z.png", "a.jpeg", "b.JPG"]
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "empty", "no picture"),
        (tmp_path / "x", "no such file"),
        ([], "empty list"),
    ):
        with pytest.raises(DataError, match=message):
            list_images(source)
