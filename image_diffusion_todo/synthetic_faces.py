"""Faces of cats, dogs and wild animals, drawn from random numbers: a data set for where there is no other.

A face is a stack of soft-edged shapes in its own coordinates: the head is about the unit circle around (0, 0), x to
the right and y down. A pose (shift, size, tilt, and a turn that moves near features further than far ones) puts them on
a canvas of four times the wanted size; light and fur grain go on top, and the canvas is scaled down.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from tqdm import tqdm

from data_folder import SPLITS, SYNTHETIC_MARK, check_free, commit_dir, is_synthetic, new_partial
from images import list_images

KINDS = ("cat", "dog", "wild")
CANVAS = 256  # pixels; shapes are drawn without antialiasing, scaling down gives it

Color = tuple[int, int, int]
Points = np.ndarray  # [N, 2]

BLACK, WHITE, PINK = (22, 20, 22), (248, 245, 240), (226, 150, 150)


def draw_face(kind: str, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """Draw one face.

    Args:
        kind: "cat", "dog" or "wild" (lion, tiger, leopard, fox or wolf).
        rng: decides about everything else.
        size: height and width of the picture in pixels.

    Returns:
        RGB image.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    face = _Face(rng)
    {"cat": _cat, "dog": _dog, "wild": _wild}[kind](face, rng)
    return face.finished().resize((size, size), Image.Resampling.BICUBIC)


def drawing_of(kind: str, split: str, index: int, seed: int = 0) -> Image.Image:
    """Image number `index` of a drawn set; it depends on these four values and on nothing else."""
    return draw_face(kind, np.random.default_rng([seed, SPLITS.index(split), KINDS.index(kind), index]))


def write_synthetic_set(root: str | os.PathLike, num_images: int, seed: int = 0) -> None:
    """Write a data set of 64x64 PNGs in the layout of AFHQ, and a tenth as many images for validation.

    Where the same set lies already, nothing happens; another drawn set is replaced.

    Args:
        root: the data root to be.
        num_images: training images of each kind.
        seed: of all images.

    Raises:
        ValueError: when something that was not drawn is at `root`.
    """
    root = Path(root).resolve()
    counts = {"train": num_images, "val": max(1, round(num_images / 10))}
    mark = (
        f"The {counts['train']} training and {counts['val']} validation images of each kind in this folder are no "
        f"photographs: synthetic_faces.py drew them from seed {seed}.\n"
    )
    targets = [(kind, split, i) for split, count in counts.items() for kind in KINDS for i in range(count)]
    if is_synthetic(root) and (root / SYNTHETIC_MARK).read_text() == mark:
        present = sum(len(list_images(root / split)) for split in counts)
        if present == len(targets):
            return
    check_free(root)
    partial = new_partial(root)
    (partial / SYNTHETIC_MARK).write_text(mark)
    for kind, split, i in tqdm(targets, desc="drawing faces", unit="image"):
        path = partial / split / kind / f"{kind}_{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing_of(kind, split, i, seed).save(path)
    commit_dir(partial, root)


class _Face:
    """A canvas with a background, and a pose through which everything is drawn."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.center = CANVAS / 2 + rng.normal(0, 0.025, 2) * CANVAS + [0, 0.05 * CANVAS]
        self.unit = rng.uniform(0.29, 0.345) * CANVAS  # length of 1 on the canvas
        tilt = rng.normal(0, 0.11)
        self.rotation = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self.turn = np.array([rng.normal(0, 0.07), rng.normal(0, 0.03)])  # where the nose points
        self.image = _background(rng)
        self.fur = Image.new("L", self.image.size)  # where the grain goes

    def shape(
        self,
        points: Points,
        color: Color,
        depth: float = 0.0,
        blur: float = 0.0,
        inside: Image.Image | None = None,
        opacity: float = 1.0,
        fur: bool = False,
    ) -> Image.Image:
        """Fill a polygon.

        Args:
            points: corners in the coordinates of the face.
            color: to fill it with.
            depth: how far in front of the head; 1 is the tip of a nose and moves most when the head turns.
            blur: softness of the edge, in the coordinates of the face.
            inside: a mask from an earlier call that clips this one.
            opacity: 1 hides what is below.
            fur: whether it gets grain.

        Returns:
            The mask of what was filled.
        """
        corners = (points + depth * self.turn) @ self.rotation * self.unit + self.center
        # Only the part of the canvas that the shape touches is worked on.
        low = (corners.min(0) - 2 * blur * self.unit - 1).clip(0, CANVAS - 1).astype(int)
        high = (corners.max(0) + 2 * blur * self.unit + 2).clip(1, CANVAS).astype(int)
        box = (*low.tolist(), *high.tolist())
        mask = Image.new("L", tuple((high - low).tolist()))
        ImageDraw.Draw(mask).polygon([tuple(corner) for corner in (corners - low).tolist()], fill=round(255 * opacity))
        if blur:
            mask = mask.filter(ImageFilter.BoxBlur(blur * self.unit))
        if inside is not None:
            mask = ImageChops.multiply(mask, inside.crop(box))
        self.image.paste(color, box, mask)
        if fur:
            self.fur.paste(255, box, mask)
        whole = Image.new("L", self.image.size)
        whole.paste(mask, box)
        return whole

    def finished(self) -> Image.Image:
        """The canvas with fur grain and light."""
        y, x = np.mgrid[-1 : 1 : CANVAS * 1j, -1 : 1 : CANVAS * 1j].astype(np.float32)
        angle = self.rng.uniform(-np.pi, 0)  # light comes from above
        slope = self.rng.uniform(0.06, 0.22)
        light = 1 + slope * (np.cos(angle) * x + np.sin(angle) * y)
        grain = self.rng.normal(0, 0.045, (CANVAS // 4, CANVAS // 2)).astype(np.float32).repeat(4, 0).repeat(2, 1)
        light += grain * (np.asarray(self.fur, dtype=np.float32) / 255)
        warmth = 1 + self.rng.normal(0, 0.02, 3).astype(np.float32)
        pixels = np.asarray(self.image, dtype=np.float32) * light[..., None] * warmth
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


# Shapes and colours.


def _oval(x: float, y: float, rx: float, ry: float, angle: float = 0.0, power: float = 2.0) -> Points:
    """An ellipse around (x, y), turned by `angle`; a `power` above 2 makes it squarer."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    c, s = np.cos(t), np.sin(t)
    dx, dy = rx * np.sign(c) * np.abs(c) ** (2 / power), ry * np.sign(s) * np.abs(s) ** (2 / power)
    return np.stack([x + np.cos(angle) * dx - np.sin(angle) * dy, y + np.sin(angle) * dx + np.cos(angle) * dy], axis=1)


def _curve(*corners: tuple[float, float]) -> Points:
    """A closed curve near the corners: quadratic splines through the middles of the edges."""
    corner = np.array(corners, dtype=float)
    start, end = (np.roll(corner, 1, 0) + corner) / 2, (corner + np.roll(corner, -1, 0)) / 2
    u = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    return ((1 - u) ** 2 * start[:, None] + 2 * u * (1 - u) * corner[:, None] + u**2 * end[:, None]).reshape(-1, 2)


def _ragged(points: Points, rng: np.random.Generator, by: float) -> Points:
    """The same outline with tufts: every other point pulled outwards at random."""
    middle = points.mean(0)
    pull = 1 + by * rng.uniform(0, 1, len(points)) * (np.arange(len(points)) % 2)
    return middle + (points - middle) * pull[:, None]


def _stroke(points: Sequence[tuple[float, float]], width: float) -> Points:
    """A line through the points as a polygon that gets thinner towards its end."""
    line = np.array(points, dtype=float)
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = np.linspace(width, 0.35 * width, len(line))[:, None] / 2
    return np.concatenate([line + half * normal, (line - half * normal)[::-1]])


def _mirrored(points: Points, side: int) -> Points:
    return points * [side, 1]


def _mix(a: Color, b: Color, share: float) -> Color:
    """`a` with a share of `b`."""
    return tuple(round((1 - share) * p + share * q) for p, q in zip(a, b, strict=True))


def _varied(color: Color, rng: np.random.Generator, by: float = 12) -> Color:
    """A colour like it: somewhat lighter or darker, and a little off in hue."""
    shift = rng.normal(0, by) + rng.normal(0, by / 4, 3)
    return tuple(int(np.clip(round(c + s), 8, 250)) for c, s in zip(color, shift, strict=True))


def _pick(rng: np.random.Generator, choices: Sequence) -> object:
    return choices[rng.integers(len(choices))]


def _background(rng: np.random.Generator) -> Image.Image:
    """Two colours, one above the other, and blurred spots of light: a place out of focus."""
    places = [
        ((188, 205, 222), (110, 140, 84)),  # sky over grass
        ((74, 104, 60), (128, 146, 88)),  # leaves
        ((190, 170, 145), (128, 98, 74)),  # a room with a wooden floor
        ((210, 208, 204), (158, 158, 162)),  # a wall
        ((48, 50, 58), (30, 30, 34)),  # the dark
        ((196, 178, 130), (160, 134, 90)),  # dry grass
        ((150, 178, 196), (232, 236, 240)),  # snow
        ((150, 84, 80), (92, 64, 70)),  # a sofa
    ]
    top, bottom = (_varied(color, rng, 14) for color in _pick(rng, places))
    share = (np.arange(CANVAS) / CANVAS + rng.normal(0, 0.12)).clip(0, 1) ** rng.uniform(0.6, 2.5)
    column = np.array(top) + share[:, None] * (np.array(bottom) - np.array(top))
    image = Image.fromarray(column.round().astype(np.uint8)[:, None].repeat(CANVAS, 1))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 9)):
        (x, y), r = rng.uniform(0, CANVAS, 2), rng.uniform(8, 40)
        color = _varied(_mix(top, bottom, rng.uniform()), rng, 22)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=color)
    return image.filter(ImageFilter.BoxBlur(9))


# Parts that the animals share.


def _body(face: _Face, color: Color, width: float) -> None:
    """Neck and shoulders below the head."""
    shoulders = _curve((-width, 3.2), (-width, 1.1), (-0.55, 0.3), (0.55, 0.3), (width, 1.1), (width, 3.2))
    face.shape(shoulders, _mix(color, BLACK, 0.14), depth=-0.6, fur=True, blur=0.02)


def _eyes(
    face: _Face,
    x: float,
    y: float,
    rx: float,
    ry: float,
    iris: Color,
    slit: float,
    rim: Color = BLACK,
    slant: float = 0.0,
) -> None:
    """Two eyes with rim, iris, pupil and a highlight; `slit` is the width of the pupil over its height."""
    look = face.rng.normal(0, 0.1 * rx, 2) * [1, 0.4]
    pupil = ry * face.rng.uniform(0.6, 0.78)
    for side in (-1, 1):
        rimmed = _mirrored(_oval(x, y, rx * 1.2, ry * 1.24, -slant), side)
        face.shape(rimmed, rim, depth=0.35)
        ball = face.shape(_mirrored(_oval(x, y, rx, ry, -slant), side), iris, depth=0.35)
        # The lid's shadow on the upper half.
        face.shape(
            _oval(side * x, y - 0.75 * ry, 1.3 * rx, 0.7 * ry), BLACK, 0.35, blur=0.03, inside=ball, opacity=0.45
        )
        face.shape(_oval(side * x + look[0], y + look[1], slit * pupil, pupil), BLACK, depth=0.35, inside=ball)
        face.shape(_oval(side * x + look[0] - 0.3 * rx, y - 0.36 * ry, 0.22 * ry, 0.22 * ry), WHITE, depth=0.35)


def _nose(face: _Face, y: float, width: float, height: float, color: Color) -> None:
    """A rounded triangle, point down, with a little light on it."""
    corners = [(-1.15, -0.75), (0, -1.05), (1.15, -0.75), (0.75, 0.35), (0, 1.3), (-0.75, 0.35)]
    face.shape(_curve(*[(width * u, y + height * v) for u, v in corners]), color, depth=1.0)
    shine = _oval(-0.25 * width, y - 0.4 * height, 0.32 * width, 0.2 * height)
    face.shape(shine, _mix(color, WHITE, 0.6), depth=1.0, blur=0.015, opacity=0.7)


def _mouth(face: _Face, y: float, width: float, drop: float, color: Color, line: float = 0.045) -> None:
    """A stem below the nose that parts into two arcs."""
    face.shape(_stroke([(0, y - drop), (0, y - drop / 2), (0, y)], line), color, depth=0.9)
    for side in (-1, 1):
        arc = [(side * width * u, y + 0.32 * width * np.sin(np.pi * min(u * 1.15, 1))) for u in np.linspace(0, 1, 9)]
        face.shape(_stroke(arc, line), color, depth=0.9)


def _whiskers(face: _Face, y: float, color: Color) -> None:
    for side in (-1, 1):
        for k in range(3):
            rise = -0.16 + 0.14 * k + face.rng.normal(0, 0.03)
            length = face.rng.uniform(0.75, 0.95)
            hair = [
                (side * (0.3 + length * u), y + 0.06 * (k - 1) + rise * u + 0.08 * u * u) for u in np.linspace(0, 1, 6)
            ]
            face.shape(_stroke(hair, 0.028), color, depth=0.7, opacity=0.85)


def _pointed_ears(
    face: _Face,
    fur: Color,
    inner: Color,
    tip: tuple[float, float],
    base: tuple[float, float],
    tip_color: Color | None = None,
) -> None:
    """Triangles; `base` holds the angles from the vertical, in radians, between which an ear grows out of the head."""
    (x, y), (near, far) = tip, base
    a, b = (0.8 * np.sin(near), -0.75 * np.cos(near)), (0.95 * np.sin(far), -0.85 * np.cos(far))
    outer = np.array(_edge(a, tip, -0.05) + _edge(tip, b, 0.06))
    middle = np.array([(a[0] + b[0]) / 2, (a[1] + b[1]) / 2])
    for side in (-1, 1):
        ear = face.shape(_mirrored(outer, side), fur, depth=-0.2, fur=True)
        if tip_color:
            face.shape(_oval(side * x, y, 0.3, 0.32), tip_color, depth=-0.2, blur=0.04, inside=ear)
        shell = middle + 0.66 * (outer - middle) + [0, 0.06]
        face.shape(_mirrored(shell, side), inner, depth=-0.15, blur=0.025, opacity=0.9)


def _edge(a: tuple[float, float], b: tuple[float, float], bulge: float) -> list[tuple[float, float]]:
    """Points from a to b along an arc."""
    (ax, ay), (bx, by) = a, b
    return [
        (
            ax + u * (bx - ax) + 4 * bulge * u * (1 - u) * (ay - by),
            ay + u * (by - ay) + 4 * bulge * u * (1 - u) * (bx - ax),
        )
        for u in np.linspace(0, 1, 7)
    ]


def _round_ears(face: _Face, fur: Color, inner: Color, x: float, y: float, r: float) -> None:
    for side in (-1, 1):
        face.shape(_oval(side * x, y, r, r), fur, depth=-0.2, fur=True)
        face.shape(_oval(side * x, y + 0.1 * r, 0.62 * r, 0.64 * r), inner, depth=-0.15, blur=0.03)


# The animals.


def _cat(face: _Face, rng: np.random.Generator) -> None:
    coat = _pick(rng, ["tabby", "tabby", "solid", "tuxedo", "pointed", "calico"])
    colors = {
        "tabby": [(150, 128, 104), (128, 124, 120), (204, 138, 78), (178, 156, 126)],
        "solid": [(42, 40, 44), (238, 232, 224), (112, 118, 130), (206, 146, 86)],
        "tuxedo": [(38, 36, 40), (96, 98, 106), (200, 134, 76)],
        "pointed": [(228, 212, 190), (236, 226, 212)],
        "calico": [(244, 240, 232)],
    }
    fur = _varied(_pick(rng, colors[coat]), rng)
    dark = _mix(fur, (52, 36, 28), 0.62)
    pale = _mix(fur, WHITE, 0.72)
    ear = dark if coat == "pointed" else fur
    eye = _varied(_pick(rng, [(122, 168, 84), (204, 172, 62), (196, 128, 50), (110, 160, 176)]), rng)
    if coat == "pointed":
        eye = _varied((96, 152, 204), rng)

    wide, tall = rng.uniform(0.95, 1.06), rng.uniform(0.8, 0.88)
    _body(face, fur, rng.uniform(1.0, 1.3))
    _pointed_ears(face, ear, _mix(PINK, ear, 0.3), (rng.uniform(0.74, 0.92), -rng.uniform(1.25, 1.45)), (0.12, 1.08))
    outline = _ragged(_oval(0, 0, wide, tall, power=2.3), rng, 0.05)
    head = face.shape(outline, fur, fur=True)

    if coat == "tabby":
        for k in (-2, -1, 0, 1, 2):  # the M on the forehead
            stripe = [(0.11 * k, -0.38 - 0.03 * abs(k)), (0.15 * k, -0.62), (0.21 * k, -0.95)]
            face.shape(_stroke(stripe, rng.uniform(0.07, 0.1)), dark, depth=0.2, blur=0.012, inside=head, opacity=0.85)
        for side in (-1, 1):
            for k in range(3):
                y = -0.02 + 0.19 * k + rng.normal(0, 0.02)
                stripe = [(side * 1.1, y - 0.08), (side * 0.85, y), (side * 0.6, y + 0.02)]
                face.shape(_stroke(stripe, 0.1), dark, blur=0.012, inside=head, opacity=0.8)
    elif coat == "pointed":
        face.shape(_oval(0, 0.15, 0.5, 0.62), dark, depth=0.4, blur=0.17, inside=head)
    elif coat == "calico":
        for color, side in zip([(206, 132, 66), (50, 44, 44)], rng.permutation([-1, 1]), strict=True):
            patch = _oval(side * rng.uniform(0.45, 0.7), -rng.uniform(0.3, 0.6), 0.52, 0.6, rng.uniform(-0.6, 0.6))
            face.shape(_ragged(patch, rng, 0.2), _varied(color, rng), depth=0.1, blur=0.02, inside=head)
    elif coat == "tuxedo":
        blaze = _curve(
            (0, -0.75),
            (0.1, -0.25),
            (0.3, 0.1),
            (0.62, 0.4),
            (0.4, 1),
            (-0.4, 1),
            (-0.62, 0.4),
            (-0.3, 0.1),
            (-0.1, -0.25),
        )
        face.shape(blaze, WHITE, depth=0.5, blur=0.015, inside=head)

    muzzle = (
        WHITE
        if coat == "tuxedo"
        else dark
        if coat == "pointed"
        else pale
        if coat != "solid"
        else _mix(fur, WHITE, 0.14)
    )
    for side in (-1, 1):
        face.shape(_oval(side * 0.19, 0.42, 0.27, 0.21), muzzle, depth=0.75, blur=0.04, inside=head)
    face.shape(_oval(0, 0.62, 0.2, 0.16), muzzle, depth=0.6, blur=0.04, inside=head)
    size = rng.uniform(0.2, 0.25)
    _eyes(
        face,
        rng.uniform(0.42, 0.48),
        -0.08,
        size,
        size * rng.uniform(0.86, 1.0),
        eye,
        rng.uniform(0.3, 0.75),
        slant=0.25,
    )
    nose = _pick(rng, [(214, 132, 132), (190, 110, 104), (70, 52, 52)])
    _nose(face, 0.27, 0.12, 0.085, _varied(nose, rng))
    bright = sum(muzzle) > 260
    _mouth(face, 0.46, 0.2, 0.1, _mix(muzzle, BLACK, 0.7) if bright else _mix(muzzle, WHITE, 0.35))
    _whiskers(face, 0.42, WHITE if sum(fur) < 560 else (120, 112, 108))


def _dog(face: _Face, rng: np.random.Generator) -> None:
    coat = _pick(rng, ["solid", "solid", "patch", "tan", "husky", "spots"])
    colors = {
        "solid": [(208, 168, 108), (110, 70, 44), (40, 36, 36), (236, 224, 206), (172, 112, 62)],
        "patch": [(244, 240, 234)],
        "tan": [(40, 34, 34), (74, 50, 38)],
        "husky": [(86, 88, 96), (58, 56, 60), (150, 104, 72)],
        "spots": [(242, 240, 238)],
    }
    fur = _varied(_pick(rng, colors[coat]), rng)
    brown = _varied(_pick(rng, [(130, 82, 48), (54, 44, 42), (188, 130, 76)]), rng)
    ear = {"solid": _mix(fur, (60, 36, 20), 0.28), "patch": brown, "spots": BLACK}.get(coat, fur)
    muzzle = {"solid": _mix(fur, WHITE, 0.25), "tan": (186, 124, 68)}.get(coat, WHITE)
    wide, tall = rng.uniform(0.76, 0.86), rng.uniform(0.92, 1.02)

    _body(face, fur, rng.uniform(0.95, 1.25))
    pricked = coat == "husky" or (coat == "tan" and rng.uniform() < 0.4)
    if pricked:
        tip = (rng.uniform(0.66, 0.8), -rng.uniform(1.35, 1.5))
        _pointed_ears(face, ear, _mix(ear, (210, 170, 150), 0.55), tip, (0.2, 1.05))
    head = face.shape(_ragged(_oval(0, 0.02, wide, tall, power=2.4), rng, 0.03), fur, fur=True)

    if coat == "husky":
        for side in (-1, 1):
            face.shape(_oval(side * 0.42, 0.3, 0.4, 0.6, -0.35 * side), WHITE, depth=0.2, blur=0.05, inside=head)
            face.shape(_oval(side * 0.3, -0.33, 0.15, 0.1, 0.4 * side), WHITE, depth=0.3, blur=0.03, inside=head)
    elif coat == "patch":
        side = _pick(rng, [-1, 1])
        face.shape(_ragged(_oval(side * 0.4, -0.2, 0.36, 0.46), rng, 0.1), brown, depth=0.3, blur=0.02, inside=head)
    elif coat == "spots":
        for _ in range(rng.integers(9, 16)):
            x, y = rng.uniform(-0.8, 0.8), rng.uniform(-0.9, 0.6)
            face.shape(_ragged(_oval(x, y, *rng.uniform(0.05, 0.12, 2)), rng, 0.3), BLACK, depth=0.2, inside=head)
    elif coat == "tan":
        for side in (-1, 1):
            face.shape(_oval(side * 0.3, -0.36, 0.11, 0.08), muzzle, depth=0.3, blur=0.02, inside=head)
            face.shape(_oval(side * 0.6, 0.5, 0.3, 0.3), muzzle, depth=0.1, blur=0.08, inside=head)
    elif rng.uniform() < 0.35:
        blaze = _curve((0, -0.9), (0.12, -0.4), (0.2, 0.2), (-0.2, 0.2), (-0.12, -0.4))
        face.shape(blaze, WHITE, depth=0.4, blur=0.03, inside=head)

    if not pricked:
        length, out = rng.uniform(0.45, 0.95), rng.uniform(0.98, 1.18)
        flap = _curve((0.38, -0.98), (0.85, -0.98), (out, -0.35), (out, length), (out - 0.42, length), (0.68, -0.1))
        for side in (-1, 1):
            shadow = _mirrored(flap, side) * [0.96, 1] + [0, 0.05]
            face.shape(shadow, BLACK, depth=-0.05, blur=0.05, inside=head, opacity=0.45)
            face.shape(_mirrored(flap, side), ear, depth=-0.05, fur=True)

    tongue = rng.uniform() < 0.45
    if tongue:
        face.shape(_curve((-0.2, 0.7), (0.2, 0.7), (0.19, 1.16), (0, 1.26), (-0.19, 1.16)), (222, 110, 120), depth=0.9)
        face.shape(_stroke([(0, 0.72), (0, 0.9), (0, 1.08)], 0.04), (176, 76, 88), depth=0.9)
    width = rng.uniform(0.4, 0.48)
    face.shape(_oval(0, 0.5, width + 0.02, 0.4), _mix(muzzle, BLACK, 0.35), depth=0.7, blur=0.05, opacity=0.5)
    snout = _curve(
        (-0.2, 0.02), (0.2, 0.02), (width + 0.1, 0.45), (width, 0.88), (0, 0.86), (-width, 0.88), (-width - 0.1, 0.45)
    )
    face.shape(snout, muzzle, depth=0.75, blur=0.03, fur=True)
    iris = _varied((74, 48, 30), rng, 6)
    if coat == "husky" and rng.uniform() < 0.7:
        iris = _varied((140, 186, 216), rng)
    size = rng.uniform(0.125, 0.155)
    _eyes(face, rng.uniform(0.32, 0.38), -0.14, size * 1.08, size, iris, 0.95)
    _nose(face, 0.3, 0.19, 0.15, _varied((38, 32, 34), rng, 6))
    _mouth(face, 0.64, 0.3, 0.2, _mix(muzzle, BLACK, 0.75) if sum(muzzle) > 200 else (96, 78, 74))


def _wild(face: _Face, rng: np.random.Generator) -> None:
    _pick(rng, [_lion, _tiger, _leopard, _fox, _wolf])(face, rng)


def _big_cat_face(face: _Face, rng: np.random.Generator, head: Image.Image, muzzle: Color, iris: Color) -> None:
    """Long nose, heavy muzzle, small eyes: what lion, tiger and leopard have in common."""
    for side in (-1, 1):
        face.shape(_oval(side * 0.24, 0.5, 0.33, 0.25), muzzle, depth=0.75, blur=0.035, inside=head)
    face.shape(_oval(0, 0.78, 0.27, 0.2), muzzle, depth=0.6, blur=0.04, inside=head)
    bridge = _curve((-0.14, -0.4), (0.14, -0.4), (0.2, 0.3), (-0.2, 0.3))
    face.shape(bridge, _mix(muzzle, (190, 130, 70), 0.6), depth=0.7, blur=0.05, inside=head, opacity=0.6)
    size = rng.uniform(0.13, 0.155)
    _eyes(face, rng.uniform(0.36, 0.42), -0.14, size * 1.15, size, iris, rng.uniform(0.55, 0.8), slant=0.3)
    _nose(face, 0.3, 0.19, 0.11, _varied(_pick(rng, [(176, 108, 98), (96, 66, 62)]), rng, 8))
    _mouth(face, 0.56, 0.27, 0.16, (64, 48, 44), line=0.055)
    for side in (-1, 1):
        for k in range(4):  # where the whiskers grow
            face.shape(
                _oval(side * (0.2 + 0.09 * (k % 2)), 0.46 + 0.035 * k, 0.018, 0.018), BLACK, depth=0.8, opacity=0.7
            )
    _whiskers(face, 0.52, WHITE)


def _lion(face: _Face, rng: np.random.Generator) -> None:
    fur = _varied((210, 164, 98), rng)
    mane = _varied(_pick(rng, [(132, 82, 40), (86, 56, 36), (176, 120, 58)]), rng)
    face.unit *= 0.9
    _body(face, fur, 1.3)
    maned = rng.uniform() < 0.75
    if maned:
        face.shape(
            _ragged(_oval(0, 0.1, 1.38, 1.42), rng, 0.2), _mix(mane, BLACK, 0.25), depth=-0.5, blur=0.02, fur=True
        )
        for turn in rng.uniform(0, 2 * np.pi, 34):  # strands
            ray = [(r * np.sin(turn), 0.1 + r * np.cos(turn)) for r in (0.7, 1.0, rng.uniform(1.25, 1.5))]
            face.shape(_stroke(ray, 0.2), _varied(mane, rng, 14), depth=-0.4, fur=True)
    _round_ears(face, fur, _mix(fur, BLACK, 0.45), 0.78, -0.72, 0.27)
    head = face.shape(_ragged(_oval(0, 0.05, 0.86, 0.95, power=2.3), rng, 0.03), fur, fur=True)
    if maned:  # a fringe over the forehead
        for x in np.linspace(-0.6, 0.6, 9):
            tuft = [(1.25 * x, -1.12), (1.1 * x, -0.9), (x, -0.66 - 0.1 * rng.uniform())]
            face.shape(_stroke(tuft, 0.22), _varied(mane, rng, 12), depth=0.1, fur=True)
    for side in (-1, 1):
        face.shape(_oval(side * 0.36, 0.08, 0.2, 0.09), _mix(fur, WHITE, 0.6), depth=0.3, blur=0.04, inside=head)
    _big_cat_face(face, rng, head, _mix(fur, WHITE, 0.7), _varied((196, 138, 52), rng))


def _tiger(face: _Face, rng: np.random.Generator) -> None:
    fur = _varied(_pick(rng, [(222, 134, 54), (222, 134, 54), (232, 226, 216)]), rng)
    _body(face, fur, 1.25)
    _round_ears(face, _mix(fur, BLACK, 0.55), WHITE, 0.74, -0.74, 0.28)
    head = face.shape(_ragged(_oval(0, 0.05, rng.uniform(0.94, 1.02), 0.95, power=2.3), rng, 0.05), fur, fur=True)
    for side in (-1, 1):
        face.shape(_oval(side * 0.72, 0.42, 0.3, 0.4), WHITE, depth=0.1, blur=0.05, inside=head)
        face.shape(_oval(side * 0.4, -0.36, 0.2, 0.13), WHITE, depth=0.3, blur=0.03, inside=head)
        for k in range(3):  # forehead
            y = -0.42 - 0.17 * k
            stripe = [(side * 0.03, y), (side * 0.2, y - 0.05), (side * rng.uniform(0.32, 0.45), y - 0.16)]
            face.shape(_stroke(stripe, 0.1), BLACK, depth=0.25, inside=head)
        for k in range(4):  # cheeks
            y = -0.3 + 0.27 * k + rng.normal(0, 0.03)
            stripe = [(side * 1.1, y + 0.02), (side * 0.84, y + 0.06), (side * rng.uniform(0.56, 0.66), y)]
            face.shape(_stroke(stripe, 0.13), BLACK, inside=head)
    _big_cat_face(face, rng, head, WHITE, _varied((206, 176, 86), rng))


def _leopard(face: _Face, rng: np.random.Generator) -> None:
    fur = _varied(_pick(rng, [(214, 172, 104), (222, 190, 132), (196, 192, 184)]), rng)
    _body(face, fur, 1.15)
    _round_ears(face, _mix(fur, BLACK, 0.35), _mix(fur, BLACK, 0.6), 0.7, -0.72, 0.25)
    head = face.shape(_ragged(_oval(0, 0.04, 0.88, 0.94, power=2.3), rng, 0.03), fur, fur=True)
    cheetah = rng.uniform() < 0.4
    for ring in np.linspace(0.5, 1.0, 5):
        for angle in np.arange(0, 2 * np.pi, 0.22 / ring) + rng.uniform(0, 1):
            x, y = ring * 0.86 * np.sin(angle), 0.04 - ring * 0.92 * np.cos(angle)
            if y < -0.42 or abs(x) > 0.62:
                spot = _oval(x + rng.normal(0, 0.015), y + rng.normal(0, 0.015), *rng.uniform(0.028, 0.055, 2))
                face.shape(spot, BLACK, depth=0.15, inside=head)
    if cheetah:  # the tear marks
        for side in (-1, 1):
            tear = [(side * 0.24, -0.08), (side * 0.24, 0.15), (side * 0.36, 0.42), (side * 0.42, 0.6)]
            face.shape(_stroke(tear, 0.09), BLACK, depth=0.6, inside=head)
    _big_cat_face(face, rng, head, _mix(fur, WHITE, 0.75), _varied((190, 164, 78), rng))


def _fox(face: _Face, rng: np.random.Generator) -> None:
    fur = _varied(_pick(rng, [(212, 112, 50), (196, 98, 44), (226, 226, 228)]), rng)
    _body(face, fur, 1.0)
    arctic = min(fur) > 180
    tip = (rng.uniform(0.72, 0.86), -rng.uniform(1.42, 1.6))
    _pointed_ears(face, fur, _mix(fur, BLACK, 0.5), tip, (0.2, 1.1), tip_color=None if arctic else BLACK)
    outline = _curve(
        (0, -0.82), (0.6, -0.8), (0.95, -0.15), (1.18, 0.35), (0.55, 0.62), (0.22, 0.98),
        (-0.22, 0.98), (-0.55, 0.62), (-1.18, 0.35), (-0.95, -0.15), (-0.6, -0.8),
    )  # fmt: skip
    _canine_mask(face, rng, outline, fur, _varied((188, 132, 50), rng))


def _wolf(face: _Face, rng: np.random.Generator) -> None:
    fur = _varied(_pick(rng, [(122, 118, 116), (92, 86, 84), (150, 132, 112), (64, 62, 66)]), rng)
    _body(face, fur, 1.3)
    tip = (rng.uniform(0.66, 0.78), -rng.uniform(1.3, 1.42))
    _pointed_ears(face, _mix(fur, BLACK, 0.25), _mix(fur, (190, 160, 140), 0.5), tip, (0.25, 1.0))
    outline = _curve(
        (0, -0.9), (0.62, -0.85), (0.98, -0.2), (1.12, 0.4), (0.66, 0.78), (0.3, 1.02),
        (-0.3, 1.02), (-0.66, 0.78), (-1.12, 0.4), (-0.98, -0.2), (-0.62, -0.85),
    )  # fmt: skip
    _canine_mask(face, rng, outline, fur, _varied((206, 170, 70), rng))


def _canine_mask(face: _Face, rng: np.random.Generator, outline: Points, fur: Color, iris: Color) -> None:
    """Head, pale cheeks, narrow snout: what fox and wolf have in common."""
    head = face.shape(_ragged(outline, rng, 0.08), fur, fur=True)
    pale = _mix(fur, WHITE, 0.85)
    for side in (-1, 1):
        cheek = _curve((0.2, 0.2), (0.62, 0.02), (1.1, 0.32), (0.6, 0.75), (0.1, 1.05), (0.02, 0.6))
        face.shape(_ragged(_mirrored(cheek, side), rng, 0.08), pale, depth=0.3, blur=0.03, inside=head)
        face.shape(
            _oval(side * 0.32, -0.34, 0.13, 0.07, 0.4 * side), pale, depth=0.3, blur=0.03, inside=head, opacity=0.7
        )
    snout = _curve((-0.15, -0.3), (0.15, -0.3), (0.27, 0.35), (0.24, 0.72), (-0.24, 0.72), (-0.27, 0.35))
    face.shape(snout, fur, depth=0.7, blur=0.03, fur=True)
    face.shape(_oval(0, 0.7, 0.25, 0.18), pale, depth=0.8, blur=0.03, inside=head)
    size = rng.uniform(0.115, 0.135)
    _eyes(face, rng.uniform(0.36, 0.41), -0.06, size * 1.25, size, iris, rng.uniform(0.6, 0.9), slant=0.4)
    _nose(face, 0.5, 0.15, 0.115, _varied((34, 30, 32), rng, 5))
    _mouth(face, 0.72, 0.19, 0.1, (70, 58, 56))
