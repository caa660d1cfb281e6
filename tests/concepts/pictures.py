"""The pictures of `docs/concepts.md`, by the name of their files.

    python -m tests.concepts.pictures    # draws them anew

What they show of codes and levels is computed by the library.
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from pallas_kernels import quantize
from pallas_kernels.arithmetic.codecs import decode, get_codec
from tests.concepts.svg import WIDTH, Sheet

DOCS = pathlib.Path(__file__).parents[2] / "docs"

# A dozen elements of a block, as they might be in a momentum.
VALUES = (0.0031, -0.0012, 0.0004, -0.0062, 0.0015, 0.0, 0.0001, -0.0023, 0.0046, 0.0009)


def codes_of(values):
    """Codes and scale of a block, by the library."""
    block = jnp.zeros(256).at[: len(values)].set(jnp.array(values))
    codes, absmax = quantize(block)
    return [int(c) for c in codes[: len(values)]], float(absmax[0])


def block():
    """What a block is stored as."""
    sheet = Sheet(
        400,
        "Block-wise quantization",
        "A tensor is cut into blocks of 256 elements. A block is stored as one byte for each "
        "element and one float32 scale, the largest magnitude in the block.",
    )
    sheet.text(20, 32, "momentum, row after row", kind="bold")
    for i in range(5):
        chosen = i == 2
        color, edge = ("paleblue", "blue") if chosen else ("pale", "edge")
        sheet.rect(20 + 88 * i, 44, 88, 30, color, edge=edge)
        words = f"block {i}" if i < 4 else "..."
        sheet.text(64 + 88 * i, 64, words, "blue" if chosen else "muted", anchor="middle")
    sheet.line([(196, 74), (20, 104)], "blue", dash="4 3")
    sheet.line([(284, 74), (460, 104)], "blue", dash="4 3")
    sheet.text(20, 124, "256 elements that share a scale (10 shown)", "blue")

    codes, absmax = codes_of(VALUES)
    left, step, zero = 76, 38, 200
    largest = max(range(len(VALUES)), key=lambda i: abs(VALUES[i]))
    sheet.line([(left - 8, zero), (460, zero)], "muted", width=1)
    for i, (value, code) in enumerate(zip(VALUES, codes, strict=True)):
        size = 56 * value / absmax
        color = "orange" if i == largest else "blue"
        sheet.rect(left + step * i, zero - max(size, 0), 24, max(abs(size), 1), color)
        sheet.rect(left + step * i - 7, 286, 38, 28, "paleblue", edge="edge")
        sheet.text(left + step * i + 12, 305, str(code), anchor="middle", kind="code")
    sheet.text(20, 190, "value", "muted", kind="small")
    sheet.text(20, 305, "code", "muted", kind="small")
    x = left + step * largest + 12
    sheet.line([(x, 258), (x, 268), (61, 268), (61, 338)], "orange", arrow=True)
    sheet.text(x + 22, 272, f"largest magnitude: absmax = {absmax:g}", "orange", kind="small")
    sheet.box(20, 340, 150, 40, ["absmax, float32"], "paleorange")
    sheet.text(184, 357, "256 codes + 1 scale = 260 bytes,", kind="small")
    sheet.text(184, 375, "1.016 per element; in float32, 1024", kind="small")
    return sheet


def levels():
    """Which numbers a code can stand for."""
    sheet = Sheet(
        330,
        "Levels of the codecs",
        "Levels of the codec power lie dense around zero, for second moments even denser; those of "
        "the codec linear are evenly spaced.",
    )
    sheet.text(20, 30, "Levels of codes, in shares of absmax", kind="bold")
    rows = [
        (70, "power", True, "first moment:  sign(k) |k / 127|³", "blue"),
        (160, "power", False, "second moment:  (k / 255)⁸", "orange"),
        (250, "linear", True, "for comparison, linear:  k / 127", "muted"),
    ]
    for y, name, signed, words, color in rows:
        values = np.asarray(decode(get_codec(name, signed), jnp.arange(256, dtype=jnp.uint8)))
        sheet.text(20, y, words, color)
        low = -1 if signed else 0
        values = values[values >= low]  # one byte of a signed codec is never written
        xs = 28 + (values - low) / (1 - low) * (WIDTH - 56)
        sheet.ticks(np.sort(xs), y + 12, y + 36, color)
        for value in (-1, 0, 1) if signed else (0, 0.5, 1):
            x = 28 + (value - low) / (1 - low) * (WIDTH - 56)
            sheet.text(x, y + 54, f"{value:g}", "muted", anchor="middle", kind="small")
    return sheet


def dither():
    """How a value between two levels is rounded, step by step."""
    share, steps = 0.3, 10
    numbers = [(k * 0.6180339887 + 0.35) % 1 for k in range(steps)]
    sheet = Sheet(
        340,
        "Unbiased rounding by dither",
        "A value at 0.3 of the gap between two levels. Rounded to the nearest level it always goes "
        "down; with dither it goes up in 3 of 10 steps, so its mean is right.",
    )
    sheet.text(20, 30, "A value at 0.3 of the gap between two levels", kind="bold")
    low, high = 300, 90
    y = low - share * (low - high)
    for at, words in ((high, "upper level"), (low, "lower level")):
        sheet.line([(120, at), (460, at)], "muted", width=1)
        sheet.text(20, at + 5, words, "muted", kind="small")
    sheet.line([(120, y), (460, y)], "blue", dash="5 3")
    sheet.text(20, y + 5, "the value", "blue", kind="small")
    for i, u in enumerate(numbers):
        x = 137 + 34 * i
        up = u < share
        sheet.text(x, low + 27, f"{u:.2f}"[1:], anchor="middle", kind="code")
        if up:
            sheet.line([(x, y), (x, high + 9)], "green", width=2, arrow=True)
        else:
            sheet.line([(x, y), (x, low - 9)], "muted", width=1.5, arrow=True)
        sheet.circle(x, high if up else low, 6, "green" if up else "ink")
    sheet.text(20, low + 27, "u of the step", kind="small")
    ups = sum(u < share for u in numbers)
    sheet.text(20, 58, f"up where u < 0.3: {ups} of {steps} steps, the mean is right", "green")
    return sheet


def step():
    """What a step reads and writes, with updates and without."""
    sheet = Sheet(
        500,
        "One step, fused and not",
        "A step decodes the state, applies the rule and encodes the state again. With tx.update "
        "and apply_updates the updates are written to memory and read again; apply_fused writes "
        "parameters directly.",
    )
    sheet.text(20, 30, "apply_fused: one pass", kind="bold")
    sheet.box(20, 46, 110, 48, ["codes,", "scales"], "paleblue")
    sheet.box(20, 104, 110, 34, ["gradients"], "pale")
    sheet.box(20, 148, 110, 34, ["parameters"], "palegreen")
    sheet.rect(168, 46, 150, 136, "pale", edge="ink", radius=8)
    for y, words in ((70, "decode"), (110, "rule"), (150, "encode")):
        sheet.text(243, y + 5, words, anchor="middle", kind="bold")
    sheet.line([(243, 82), (243, 98)], arrow=True)
    sheet.line([(243, 122), (243, 138)], arrow=True)
    for y in (70, 121, 165):
        sheet.line([(130, y), (166, y)], arrow=True)
    sheet.box(356, 46, 104, 48, ["codes,", "scales"], "paleblue")
    sheet.box(356, 148, 104, 34, ["parameters"], "palegreen")
    for y in (70, 165):
        sheet.line([(318, y), (354, y)], arrow=True)
    sheet.text(20, 208, "In float32, only in registers: moments, direction, update.", "muted",
               kind="small")  # fmt: skip
    sheet.line([(20, 226), (460, 226)], "edge")

    sheet.text(20, 256, "tx.update, then optax.apply_updates: two passes", kind="bold")
    sheet.box(20, 272, 110, 48, ["codes,", "scales"], "paleblue")
    sheet.box(20, 330, 110, 34, ["gradients"], "pale")
    sheet.rect(168, 272, 150, 92, "pale", edge="ink", radius=8)
    sheet.text(243, 300, "decode, rule,", anchor="middle", kind="bold")
    sheet.text(243, 322, "encode", anchor="middle", kind="bold")
    for y in (296, 347):
        sheet.line([(130, y), (166, y)], arrow=True)
    sheet.box(356, 272, 104, 48, ["codes,", "scales"], "paleblue")
    sheet.box(356, 330, 104, 34, ["updates"], "paleorange", "orange")
    for y in (296, 347):
        sheet.line([(318, y), (354, y)], arrow=True)
    sheet.line([(408, 364), (408, 384), (243, 384), (243, 404)], "orange", arrow=True)
    sheet.text(396, 402, "written, read again", "orange", anchor="end", kind="small")
    sheet.box(20, 412, 110, 34, ["parameters"], "palegreen")
    sheet.box(168, 406, 150, 46, ["add"], "pale", kind="bold")
    sheet.line([(130, 429), (166, 429)], arrow=True)
    sheet.line([(318, 429), (354, 429)], arrow=True)
    sheet.box(356, 412, 104, 34, ["parameters"], "palegreen")
    sheet.text(20, 482, "The updates are as large as the parameters.", "muted", kind="small")
    return sheet


def pages():
    """How state in host memory passes through the device."""
    sheet = Sheet(
        330,
        "Paging",
        "The state is kept in host memory in pages. While page 3 is stepped on the device, page 4 "
        "is fetched and page 2 is stored.",
    )
    sheet.text(20, 30, "host memory: the whole state, in pages", kind="bold")
    for i in range(6):
        sheet.box(20 + 74 * i, 44, 66, 44, [str(i)], "paleblue" if i in (2, 3, 4) else "pale")
    sheet.rect(20, 160, 440, 150, "pale", edge="edge", radius=8)
    sheet.text(34, 294, "device: three pages of it, 96 MiB by default", kind="bold")
    sheet.box(110, 176, 80, 44, ["2"], "paleblue")
    sheet.box(204, 176, 80, 44, ["3"], "palegreen")
    sheet.box(298, 176, 80, 44, ["4"], "paleblue")
    sheet.line([(150, 176), (200, 90)], "orange", width=2, arrow=True)
    sheet.text(150, 136, "store", "orange", anchor="end")
    sheet.line([(348, 90), (338, 174)], "blue", width=2, arrow=True)
    sheet.text(354, 136, "fetch", "blue")
    sheet.text(244, 244, "step: decode, rule, encode", "green", anchor="middle")
    sheet.text(
        244,
        264,
        "meanwhile, other pages are fetched and stored",
        "muted",
        anchor="middle",
        kind="small",
    )
    return sheet


def shards():
    """Which shards consist of whole blocks."""
    sheet = Sheet(
        330,
        "Blocks and shards",
        "Two rows of 1024 elements have four blocks each. Divided over four devices by columns, "
        "every shard has whole blocks. Divided over eight, shards cut blocks in half.",
    )
    colors = ("paleblue", "palegreen", "paleorange", "pale")
    for top, devices, words, color in (
        (20, 4, "4 devices: shards of whole blocks", "green"),
        (172, 8, "8 devices: every shard has half a block", "orange"),
    ):
        sheet.text(20, top + 16, words, color, kind="bold")
        width = 440 / devices
        for i in range(devices):
            sheet.rect(20 + width * i, top + 28, width, 80, colors[i % 4])
            sheet.text(
                20 + width * (i + 0.5),
                top + 128,
                f"dev {i}",
                "muted",
                anchor="middle",
                kind="small",
            )
        for row in range(2):
            for block in range(4):
                sheet.rect(22 + 110 * block, top + 32 + 38 * row, 106, 34, None, edge="ink")
                sheet.text(
                    48 + 110 * block, top + 54 + 38 * row, "256", anchor="middle", kind="code"
                )
        for i in range(1, devices):
            x = 20 + width * i
            cut = i % (devices // 4)
            sheet.line(
                [(x, top + 26), (x, top + 112)], "orange" if cut else "ink", width=2.5, dash="6 3"
            )
    return sheet


PICTURES = {
    "concepts-block.svg": block,
    "concepts-levels.svg": levels,
    "concepts-dither.svg": dither,
    "concepts-step.svg": step,
    "concepts-pages.svg": pages,
    "concepts-shards.svg": shards,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw().svg(), encoding="utf-8")
