"""Synthetic faces of cats, dogs and wild animals, drawn from random numbers, for those who cannot download AFHQ.

A face is a stack of polygons and lines in its own coordinates: the head is about the unit circle around (0, 0), x to
the right and y down. A pose puts them on a canvas of four times the final size; light and fur grain are added before
it is scaled down.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from atomic import atomic_dir
from data_folder import SPLITS, SYNTHETIC_MARKER, check_free, is_synthetic
from progress import tqdm

CANVAS = 256  # pixels; polygons are drawn without antialiasing, scaling down adds it
Color = np.ndarray  # [3], 0..255
Points = np.ndarray  # [N, 2], the corners of a polygon

BLACK, WHITE, BROWN, PINK = np.array([(22, 20, 22), (248, 245, 240), (60, 42, 34), (226, 150, 150)])
BACKGROUNDS = [  # top and bottom
    [(188, 205, 222), (110, 140, 84)],  # sky over grass
    [(74, 104, 60), (128, 146, 88)],  # leaves
    [(190, 170, 145), (128, 98, 74)],  # a room with a wooden floor
    [(210, 208, 204), (158, 158, 162)],  # a wall
    [(48, 50, 58), (30, 30, 34)],  # the dark
    [(196, 178, 130), (160, 134, 90)],  # dry grass
    [(150, 178, 196), (232, 236, 240)],  # snow
    [(150, 84, 80), (92, 64, 70)],  # a sofa
]
FURS = {
    "cat": {
        "tabby": [(150, 128, 104), (128, 124, 120), (204, 138, 78), (178, 156, 126)],
        "solid": [(42, 40, 44), (238, 232, 224), (112, 118, 130), (206, 146, 86)],
        "tuxedo": [(38, 36, 40), (96, 98, 106), (200, 134, 76)],
        "siamese": [(228, 212, 190), (236, 226, 212)],
        "calico": [(244, 240, 232)],
    },
    "dog": {
        "solid": [(208, 168, 108), (110, 70, 44), (40, 36, 36), (236, 224, 206), (172, 112, 62)],
        "patch": [(244, 240, 234)],
        "tan": [(40, 34, 34), (74, 50, 38)],
        "husky": [(86, 88, 96), (58, 56, 60), (150, 104, 72)],
        "spots": [(242, 240, 238)],
    },
    "wild": {
        "lion": [(210, 164, 98)],
        "tiger": [(222, 134, 54), (222, 134, 54), (232, 226, 216)],
        "leopard": [(214, 172, 104), (222, 190, 132), (196, 192, 184)],
        "fox": [(212, 112, 50), (196, 98, 44), (226, 226, 228)],
        "wolf": [(122, 118, 116), (92, 86, 84), (150, 132, 112), (64, 62, 66)],
    },
}
KINDS = tuple(FURS)


def synthetic_face(kind: str, split: str, index: int, seed: int = 0) -> Image.Image:
    """RGB image `index` of a synthetic data set, 64x64; it depends on these four values alone."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), KINDS.index(kind), index])
    coat = rng.choice(list(FURS[kind]))
    face, fur, w = _Face(rng), _color(rng, *FURS[kind][coat]), rng.uniform(0.95, 1.3)
    shoulders = _curve((-w, 3.2), (-w, 1.1), (-0.55, 0.3), (0.55, 0.3), (w, 1.1), (w, 3.2))
    face.draw(_mix(fur, BLACK, 0.14), shoulders, depth=-0.6, blur=0.02)
    draw_head = {"cat": _cat, "dog": _dog, "wild": _canine if coat in ("fox", "wolf") else _big_cat}[kind]
    draw_head(face, coat, fur)
    return face.finish().resize((64, 64), Image.Resampling.BICUBIC)


def write_synthetic_set(root: str | os.PathLike, num_images: int, seed: int = 0) -> None:
    """Write `num_images` 64x64 PNGs per class in the layout of AFHQ, and a tenth as many images for validation.

    Does nothing if the same set exists already; raises a UserError if something else is at `root`.
    """
    root = Path(root).resolve()
    counts = {"train": num_images, "val": max(1, round(num_images / 10))}
    text = (
        f"The {counts['train']} training and {counts['val']} validation images per class in this folder are no "
        f"photographs: synthetic_faces.py drew them from seed {seed}.\n"
    )
    targets = [(kind, split, i) for split, count in counts.items() for kind in KINDS for i in range(count)]
    places = [Path(split, kind, f"{kind}_{i:05}.png") for kind, split, i in targets]
    is_same = is_synthetic(root) and (root / SYNTHETIC_MARKER).read_text() == text
    if is_same and all((root / place).is_file() for place in places):
        return
    check_free(root)
    with atomic_dir(root) as partial:
        (partial / SYNTHETIC_MARKER).write_text(text)
        for target, place in tqdm(zip(targets, places, strict=True), "drawing faces", len(places), unit="image"):
            (partial / place).parent.mkdir(parents=True, exist_ok=True)
            synthetic_face(*target, seed).save(partial / place)
        check_free(root)


class _Face:
    """A canvas with a background, and the pose in which everything is drawn."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.center = CANVAS / 2 + rng.normal(0, 0.025, 2) * CANVAS + [0, 0.05 * CANVAS]
        self.unit = rng.uniform(0.29, 0.345) * CANVAS  # length of 1 on the canvas
        tilt = rng.normal(0, 0.11)
        self.rotation = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self.turn = rng.normal(0, [0.07, 0.03])  # where the nose points
        top, bottom = (_color(rng, color) for color in BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
        share = (np.arange(CANVAS) / CANVAS + rng.normal(0, 0.12)).clip(0, 1) ** rng.uniform(0.6, 2.5)
        column = (top + share[:, None] * (bottom - top)).clip(0, 255).astype(np.uint8)
        self.image = Image.fromarray(column[:, None].repeat(CANVAS, 1))
        for _ in range(rng.integers(2, 9)):  # spots of light, out of focus
            (x, y), r, color = rng.uniform(0, CANVAS, 2), rng.uniform(8, 40), _color(rng, top, bottom, vary=22)
            ImageDraw.Draw(self.image).ellipse([x - r, y - r, x + r, y + r], fill=tuple(color.tolist()))
        self.image = self.image.filter(ImageFilter.BoxBlur(9))
        self.animal = Image.new("L", self.image.size)  # mask of everything drawn so far

    def draw(
        self, color: Color, *shapes: Points, depth: float = 0, blur: float = 0, width: float = 0, both: bool = False,
        inside: Image.Image | None = None,
    ) -> Image.Image:  # fmt: skip
        """Fill polygons, or with a `width` draw lines, and return the mask of what was drawn.

        `depth` is the distance in front of the head: 1 is the tip of a nose, which moves most when the head turns.
        `both` draws mirror images too, `blur` softens the edges, and the mask `inside` clips.
        """
        mask = Image.new("L", self.image.size)
        for points in [*shapes, *(np.multiply(points, [-1, 1]) for points in shapes if both)]:
            corners = ((points + depth * self.turn) @ self.rotation * self.unit + self.center).ravel().tolist()
            if width:
                ImageDraw.Draw(mask).line(corners, fill=255, width=round(width * self.unit), joint="curve")
            else:
                ImageDraw.Draw(mask).polygon(corners, fill=255)
        if blur:
            mask = mask.filter(ImageFilter.BoxBlur(blur * self.unit))
        if inside:
            mask = ImageChops.multiply(mask, inside)
        self.image.paste(tuple(color.tolist()), mask=mask)
        self.animal.paste(255, mask=mask)
        return mask

    def finish(self) -> Image.Image:
        """The canvas with light from above and fur grain."""
        y, x = np.mgrid[-1 : 1 : CANVAS * 1j, -1 : 1 : CANVAS * 1j]
        angle = self.rng.uniform(-np.pi, 0)
        light = 1 + self.rng.uniform(0.06, 0.22) * (np.cos(angle) * x + np.sin(angle) * y)
        grain = self.rng.normal(0, 0.045, (CANVAS // 4, CANVAS // 2)).repeat(4, 0).repeat(2, 1)
        light += grain * (np.asarray(self.animal) / 255)
        pixels = np.asarray(self.image) * light[..., None] * (1 + self.rng.normal(0, 0.02, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _color(rng: np.random.Generator, *choices: Color, vary: float = 12) -> Color:
    """One of the colours, somewhat lighter or darker, and a little off in hue."""
    color = np.array(choices[rng.integers(len(choices))]) + rng.normal(0, vary) + rng.normal(0, vary / 4, 3)
    return color.clip(8, 250).astype(int)


def _mix(a: Color, b: Color, share: float) -> Color:
    """`a` with a share of `b`."""
    return (a + share * (b - a)).astype(int)


def _oval(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Points:
    """An ellipse around (x, y), turned by `angle`."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    dx, dy = rx * np.cos(t), ry * np.sin(t)
    return np.stack([x + np.cos(angle) * dx - np.sin(angle) * dy, y + np.sin(angle) * dx + np.cos(angle) * dy], axis=1)


def _curve(*corners: tuple[float, float]) -> Points:
    """A smooth closed curve near the corners: quadratic splines through the middles of the edges."""
    corner = np.array(corners, dtype=float)
    start, end = (np.roll(corner, 1, 0) + corner) / 2, (corner + np.roll(corner, -1, 0)) / 2
    u = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    return ((1 - u) ** 2 * start[:, None] + 2 * u * (1 - u) * corner[:, None] + u**2 * end[:, None]).reshape(-1, 2)


def _ragged(rng: np.random.Generator, points: Points, by: float) -> Points:
    """The outline with tufts: every other point is pulled outwards at random."""
    pull = 1 + by * rng.uniform(0, 1, len(points)) * (np.arange(len(points)) % 2)
    return points.mean(0) + (points - points.mean(0)) * pull[:, None]


def _pointed_ears(face: _Face, fur: Color, inner: Color, x: float, y: float) -> None:
    ear = _curve((0.1, -0.7), (x, y), (x, y), (x + 0.02, y), (0.95, -0.3), (0.5, 0))
    face.draw(fur, ear, depth=-0.2, both=True)
    face.draw(inner, ear * 0.62 + [[0.22, -0.28]], depth=-0.15, blur=0.025, both=True)


def _eyes(face: _Face, x: float, y: float, r: float, iris: Color, slit: float, slant: float) -> None:
    """Rim, iris, the lid's shadow, pupil and highlight; `slit` is the width of the pupil over its height."""
    look, pupil = face.rng.normal(0, [0.1 * r, 0.04 * r]), r * face.rng.uniform(0.6, 0.78)
    face.draw(BLACK, _oval(x, y, r * 1.3, r * 1.15, -slant), depth=0.35, both=True)
    ball = face.draw(iris, _oval(x, y, r * 1.08, r * 0.93, -slant), depth=0.35, both=True)
    face.draw(_mix(iris, BLACK, 0.5), _oval(x, y - r, r, 0.6 * r), depth=0.35, blur=0.03, inside=ball, both=True)
    sides = np.array([[[x, y]], [[-x, y]]]) + look
    face.draw(BLACK, *(sides + _oval(0, 0, slit * pupil, pupil)), depth=0.35, inside=ball)
    face.draw(WHITE, *(sides + _oval(-0.3 * r, -0.36 * r, 0.22 * r, 0.22 * r)), depth=0.35)


def _nose_and_mouth(face: _Face, y: float, size: float, nose: Color, line: Color, drop: float, smile: float) -> None:
    """A rounded triangle with a highlight, and below it a stem that parts into two arcs."""
    low = y + 0.7 * size + drop
    arc = [(smile * u, low + 0.3 * smile * np.sin(np.pi * min(1.15 * u, 1))) for u in np.linspace(0, 1, 9)]
    face.draw(line, [(0, y), (0, low), *arc], depth=0.9, width=0.04, both=True)
    triangle = _curve((-1.15, -0.54), (0, -0.75), (1.15, -0.54), (0.75, 0.25), (0, 0.94), (-0.75, 0.25))
    face.draw(nose, size * triangle + [[0, y]], depth=1)
    face.draw(_mix(nose, WHITE, 0.4), size * _oval(-0.25, -0.29, 0.32, 0.14) + [[0, y]], depth=1, blur=0.015)


def _whiskers(face: _Face, y: float, color: Color) -> None:
    ends = face.rng.normal([(1.1, -0.2), (1.15, 0), (1.1, 0.2)], 0.03)
    face.draw(color, *[[(0.3, y + 0.3 * dy), (x, y + dy)] for x, dy in ends], depth=0.7, width=0.016, both=True)


def _cat(face: _Face, coat: str, fur: Color) -> None:
    rng = face.rng
    dark, pale = _mix(fur, BROWN, 0.62), _mix(fur, WHITE, 0.72)
    muzzle = {"tuxedo": WHITE, "siamese": dark, "solid": _mix(fur, WHITE, 0.14)}.get(coat, pale)
    ear = dark if coat == "siamese" else fur
    _pointed_ears(face, ear, _mix(PINK, ear, 0.3), rng.uniform(0.78, 0.95), -rng.uniform(1.4, 1.6))
    head = face.draw(fur, _ragged(rng, _oval(0, 0, rng.uniform(0.98, 1.08), rng.uniform(0.84, 0.92)), 0.05))
    if coat == "tabby":  # the M on the forehead, and stripes on the cheeks
        stripes = [[(a, -0.38 - 0.3 * a), (1.4 * a, -0.62), (1.9 * a, -0.95)] for a in (0, 0.11, 0.22)]
        stripes += [[(1.1, y - 0.08), (0.85, y), (0.6, y + 0.02)] for y in rng.normal([-0.02, 0.17, 0.36], 0.02)]
        face.draw(dark, *stripes, depth=0.1, blur=0.012, width=0.07, inside=head, both=True)
    elif coat == "siamese":
        face.draw(dark, _oval(0, 0.15, 0.5, 0.62), depth=0.4, blur=0.17, inside=head)
    elif coat == "calico":
        for color, side in zip([(206, 132, 66), (50, 44, 44)], rng.permutation([-1, 1]), strict=True):
            patch = _oval(side * rng.uniform(0.45, 0.7), -rng.uniform(0.3, 0.6), 0.52, 0.6, rng.uniform(-0.6, 0.6))
            face.draw(_color(rng, color), _ragged(rng, patch, 0.2), depth=0.1, blur=0.02, inside=head)
    elif coat == "tuxedo":
        blaze = _curve((0, -0.8), (0.1, -0.2), (0.62, 0.3), (0.4, 1), (-0.4, 1), (-0.62, 0.3), (-0.1, -0.2))
        face.draw(WHITE, blaze, depth=0.5, blur=0.015, inside=head)
    cheeks = _oval(0.19, 0.42, 0.27, 0.21), _oval(0, 0.62, 0.2, 0.16)
    face.draw(muzzle, *cheeks, depth=0.7, blur=0.04, inside=head, both=True)
    irises = (
        [(122, 168, 84), (204, 172, 62), (196, 128, 50), (110, 160, 176)] if coat != "siamese" else [(96, 152, 204)]
    )
    iris = _color(rng, *irises)
    _eyes(face, rng.uniform(0.42, 0.48), -0.08, rng.uniform(0.18, 0.23), iris, rng.uniform(0.3, 0.75), 0.25)
    nose = _color(rng, (214, 132, 132), (190, 110, 104), (70, 52, 52))
    _nose_and_mouth(face, 0.27, 0.12, nose, _mix(muzzle, BLACK if muzzle.sum() > 260 else WHITE, 0.6), 0.1, 0.2)
    _whiskers(face, 0.42, WHITE if fur.sum() < 560 else _mix(fur, BLACK, 0.6))


def _dog(face: _Face, coat: str, fur: Color) -> None:
    rng = face.rng
    brown = _color(rng, (130, 82, 48), (54, 44, 42), (188, 130, 76))
    ear = {"solid": _mix(fur, BROWN, 0.28), "patch": brown, "spots": BLACK}.get(coat, fur)
    muzzle = {"solid": _mix(fur, WHITE, 0.25), "tan": np.array([186, 124, 68])}.get(coat, WHITE)
    pricked = coat == "husky" or (coat == "tan" and rng.uniform() < 0.4)
    if pricked:
        _pointed_ears(face, ear, _mix(ear, PINK, 0.5), rng.uniform(0.68, 0.8), -rng.uniform(1.45, 1.65))
    head = face.draw(fur, _ragged(rng, _oval(0, 0.02, rng.uniform(0.8, 0.9), rng.uniform(0.96, 1.06)), 0.03))
    if coat == "husky":
        marks = _oval(0.42, 0.3, 0.4, 0.6, -0.35), _oval(0.3, -0.33, 0.15, 0.1, 0.4)
        face.draw(WHITE, *marks, depth=0.2, blur=0.04, inside=head, both=True)
    elif coat == "patch":
        patch = _ragged(rng, _oval(rng.choice([-0.4, 0.4]), -0.2, 0.36, 0.46), 0.1)
        face.draw(brown, patch, depth=0.3, blur=0.02, inside=head)
    elif coat == "spots":
        places = rng.uniform([-0.8, -0.9, 0.05, 0.05], [0.8, 0.6, 0.12, 0.12], (rng.integers(9, 16), 4))
        face.draw(BLACK, *[_ragged(rng, _oval(*place), 0.3) for place in places], depth=0.2, inside=head)
    elif coat == "tan":
        marks = _oval(0.3, -0.36, 0.11, 0.08), _oval(0.6, 0.5, 0.3, 0.3)
        face.draw(muzzle, *marks, depth=0.2, blur=0.04, inside=head, both=True)
    elif rng.uniform() < 0.35:
        blaze = _curve((0, -0.9), (0.12, -0.4), (0.2, 0.2), (-0.2, 0.2), (-0.12, -0.4))
        face.draw(WHITE, blaze, depth=0.4, blur=0.03, inside=head)
    if not pricked:
        length, out = rng.uniform(0.45, 0.95), rng.uniform(0.98, 1.18)
        flap = _curve((0.38, -0.98), (0.85, -0.98), (out, -0.35), (out, length), (out - 0.42, length), (0.68, -0.1))
        face.draw(_mix(fur, BLACK, 0.4), flap * 0.97, blur=0.05, inside=head, both=True)  # its shadow
        face.draw(ear, flap, depth=-0.05, both=True)
    if rng.uniform() < 0.45:  # the tongue
        tongue = _curve((-0.2, 0.7), (0.2, 0.7), (0.19, 1.16), (0, 1.26), (-0.19, 1.16))
        face.draw(np.array([222, 110, 120]), tongue, depth=0.9)
    w = rng.uniform(0.4, 0.48)
    snout = _curve((-0.2, 0), (0.2, 0), (w + 0.1, 0.45), (w, 0.88), (0, 0.86), (-w, 0.88), (-w - 0.1, 0.45))
    face.draw(_mix(muzzle, fur, 0.5), snout * 1.1, depth=0.7, blur=0.05, inside=head)
    face.draw(muzzle, snout, depth=0.75, blur=0.03)
    iris = _color(rng, (140, 186, 216) if coat == "husky" and rng.uniform() < 0.7 else (74, 48, 30), vary=8)
    _eyes(face, rng.uniform(0.32, 0.38), -0.14, rng.uniform(0.125, 0.155), iris, 0.95, 0)
    line = _mix(muzzle, BLACK if muzzle.sum() > 200 else WHITE, 0.7)
    _nose_and_mouth(face, 0.3, 0.19, _color(rng, (38, 32, 34), vary=6), line, 0.2, 0.3)


def _big_cat(face: _Face, species: str, fur: Color) -> None:
    rng = face.rng
    if species == "lion" and rng.uniform() < 0.8:
        face.unit *= 0.9
        mane = _color(rng, (132, 82, 40), (86, 56, 36), (176, 120, 58))
        for r, shade in [(1.42, 0.4), (1.28, 0.1), (1.15, 0.3), (1.04, 0)]:
            tufts = _ragged(rng, _oval(0, 0.08, r, r, rng.uniform(0, 1)), 0.22)
            face.draw(_mix(mane, BLACK, shade), tufts, depth=0.5 - 0.7 * r, blur=0.01)
    face.draw(_mix(fur, BLACK, 0.3), _oval(0.75, -0.73, 0.27, 0.27), depth=-0.2, both=True)
    inner = WHITE if species == "tiger" else _mix(fur, BLACK, 0.5)
    face.draw(inner, _oval(0.75, -0.7, 0.17, 0.17), depth=-0.15, blur=0.03, both=True)
    head = face.draw(fur, _ragged(rng, _oval(0, 0.05, rng.uniform(0.9, 1.0), 0.97), 0.04))
    if species == "tiger":
        marks = _oval(0.72, 0.42, 0.3, 0.4), _oval(0.4, -0.36, 0.2, 0.13)
        face.draw(WHITE, *marks, depth=0.2, blur=0.04, inside=head, both=True)
        stripes = [[(0, y), (0.2, y - 0.05), (rng.uniform(0.32, 0.45), y - 0.16)] for y in (-0.42, -0.59, -0.76)]
        for y in rng.normal([-0.3, -0.03, 0.24, 0.51], 0.03):
            stripes.append([(1.1, y), (0.84, y + 0.06), (rng.uniform(0.56, 0.66), y)])
        face.draw(BLACK, *stripes, depth=0.15, width=0.08, inside=head, both=True)
    elif species == "leopard":
        grid = np.mgrid[-0.9:1:0.15, -0.9:1:0.15].reshape(2, -1).T
        places = rng.normal(grid[(grid[:, 1] < -0.4) | (np.abs(grid[:, 0]) > 0.62)], 0.03)
        face.draw(BLACK, *[_oval(*place, *rng.uniform(0.028, 0.06, 2)) for place in places], depth=0.15, inside=head)
    muzzle = WHITE if species == "tiger" else _mix(fur, WHITE, 0.7)
    cheeks = _oval(0.24, 0.5, 0.33, 0.25), _oval(0, 0.78, 0.27, 0.2)
    face.draw(muzzle, *cheeks, depth=0.7, blur=0.035, inside=head, both=True)
    bridge = _curve((-0.14, -0.4), (0.14, -0.4), (0.2, 0.3), (-0.2, 0.3))
    face.draw(_mix(muzzle, BROWN, 0.25), bridge, depth=0.7, blur=0.05, inside=head)
    iris = _color(rng, (196, 138, 52), (206, 176, 86))
    _eyes(face, rng.uniform(0.36, 0.42), -0.14, rng.uniform(0.13, 0.155), iris, rng.uniform(0.55, 0.8), 0.3)
    _nose_and_mouth(face, 0.3, 0.19, _color(rng, (176, 108, 98), (96, 66, 62), vary=8), BROWN, 0.16, 0.27)
    _whiskers(face, 0.52, WHITE)


def _canine(face: _Face, species: str, fur: Color) -> None:
    rng = face.rng
    pale, top = _mix(fur, WHITE, 0.85), -rng.uniform(1.4, 1.55) - 0.17 * (species == "fox")
    _pointed_ears(face, _mix(fur, BLACK, 0.1), _mix(fur, BLACK, 0.5), rng.uniform(0.7, 0.86), top)
    half = [(0, -0.85), (0.6, -0.82), (0.96, -0.18), (1.15, 0.37), (0.6, 0.7), (0.26, 1.0)]
    head = face.draw(fur, _ragged(rng, _curve(*half, *[(-x, y) for x, y in half[:0:-1]]), 0.08))
    cheek = _curve((0.2, 0.2), (0.62, 0.02), (1.1, 0.32), (0.6, 0.75), (0.1, 1.05), (0.02, 0.6))
    brow = _oval(0.32, -0.34, 0.13, 0.07, 0.4)
    face.draw(pale, _ragged(rng, cheek, 0.08), brow, depth=0.3, blur=0.03, inside=head, both=True)
    snout = _curve((-0.15, -0.3), (0.15, -0.3), (0.27, 0.35), (0.24, 0.72), (-0.24, 0.72), (-0.27, 0.35))
    face.draw(fur, snout, depth=0.7, blur=0.03)
    face.draw(pale, _oval(0, 0.7, 0.25, 0.18), depth=0.8, blur=0.03, inside=head)
    iris = _color(rng, (188, 132, 50), (206, 170, 70))
    _eyes(face, rng.uniform(0.36, 0.41), -0.06, rng.uniform(0.125, 0.15), iris, rng.uniform(0.6, 0.9), 0.4)
    _nose_and_mouth(face, 0.5, 0.15, _color(rng, (34, 30, 32), vary=5), BROWN, 0.1, 0.19)
