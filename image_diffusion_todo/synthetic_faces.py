"""Synthetic faces of cats, dogs and wild animals, drawn from random numbers, for those who cannot download AFHQ."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from atomic import atomic_dir
from data_folder import SPLITS, SYNTHETIC_MARKER, check_free, is_synthetic
from face_canvas import BLACK, BROWN, PINK, WHITE, Color, Face, curve, mix, oval, ragged, tint
from progress import tqdm

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
    face, fur, w = Face(rng), tint(rng, *FURS[kind][coat]), rng.uniform(0.95, 1.3)
    shoulders = curve((-w, 3.2), (-w, 1.1), (-0.55, 0.3), (0.55, 0.3), (w, 1.1), (w, 3.2))
    face.draw(mix(fur, BLACK, 0.14), shoulders, depth=-0.6, blur=0.02)
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


def _pointed_ears(face: Face, fur: Color, inner: Color, x: float, y: float) -> None:
    ear = curve((0.1, -0.7), (x, y), (x, y), (x + 0.02, y), (0.95, -0.3), (0.5, 0))
    face.draw(fur, ear, depth=-0.2, both=True)
    face.draw(inner, ear * 0.62 + [[0.22, -0.28]], depth=-0.15, blur=0.025, both=True)


def _eyes(face: Face, x: float, y: float, r: float, iris: Color, slit: float, slant: float) -> None:
    """Rim, iris, the lid's shadow, pupil and highlight; `slit` is the width of the pupil over its height."""
    look, pupil = face.rng.normal(0, [0.1 * r, 0.04 * r]), r * face.rng.uniform(0.6, 0.78)
    face.draw(BLACK, oval(x, y, r * 1.3, r * 1.15, -slant), depth=0.35, both=True)
    ball = face.draw(iris, oval(x, y, r * 1.08, r * 0.93, -slant), depth=0.35, both=True)
    face.draw(mix(iris, BLACK, 0.5), oval(x, y - r, r, 0.6 * r), depth=0.35, blur=0.03, inside=ball, both=True)
    sides = np.array([[[x, y]], [[-x, y]]]) + look
    face.draw(BLACK, *(sides + oval(0, 0, slit * pupil, pupil)), depth=0.35, inside=ball)
    face.draw(WHITE, *(sides + oval(-0.3 * r, -0.36 * r, 0.22 * r, 0.22 * r)), depth=0.35)


def _nose_and_mouth(face: Face, y: float, size: float, nose: Color, line: Color, drop: float, smile: float) -> None:
    """A rounded triangle with a highlight, and below it a stem that parts into two arcs."""
    low = y + 0.7 * size + drop
    arc = [(smile * u, low + 0.3 * smile * np.sin(np.pi * min(1.15 * u, 1))) for u in np.linspace(0, 1, 9)]
    face.draw(line, [(0, y), (0, low), *arc], depth=0.9, width=0.04, both=True)
    triangle = curve((-1.15, -0.54), (0, -0.75), (1.15, -0.54), (0.75, 0.25), (0, 0.94), (-0.75, 0.25))
    face.draw(nose, size * triangle + [[0, y]], depth=1)
    face.draw(mix(nose, WHITE, 0.4), size * oval(-0.25, -0.29, 0.32, 0.14) + [[0, y]], depth=1, blur=0.015)


def _whiskers(face: Face, y: float, color: Color) -> None:
    ends = face.rng.normal([(1.1, -0.2), (1.15, 0), (1.1, 0.2)], 0.03)
    face.draw(color, *[[(0.3, y + 0.3 * dy), (x, y + dy)] for x, dy in ends], depth=0.7, width=0.016, both=True)


def _cat(face: Face, coat: str, fur: Color) -> None:
    rng = face.rng
    dark, pale = mix(fur, BROWN, 0.62), mix(fur, WHITE, 0.72)
    muzzle = {"tuxedo": WHITE, "siamese": dark, "solid": mix(fur, WHITE, 0.14)}.get(coat, pale)
    ear = dark if coat == "siamese" else fur
    _pointed_ears(face, ear, mix(PINK, ear, 0.3), rng.uniform(0.78, 0.95), -rng.uniform(1.4, 1.6))
    head = face.draw(fur, ragged(rng, oval(0, 0, rng.uniform(0.98, 1.08), rng.uniform(0.84, 0.92)), 0.05))
    if coat == "tabby":  # the M on the forehead, and stripes on the cheeks
        stripes = [[(a, -0.38 - 0.3 * a), (1.4 * a, -0.62), (1.9 * a, -0.95)] for a in (0, 0.11, 0.22)]
        stripes += [[(1.1, y - 0.08), (0.85, y), (0.6, y + 0.02)] for y in rng.normal([-0.02, 0.17, 0.36], 0.02)]
        face.draw(dark, *stripes, depth=0.1, blur=0.012, width=0.07, inside=head, both=True)
    elif coat == "siamese":
        face.draw(dark, oval(0, 0.15, 0.5, 0.62), depth=0.4, blur=0.17, inside=head)
    elif coat == "calico":
        for color, side in zip([(206, 132, 66), (50, 44, 44)], rng.permutation([-1, 1]), strict=True):
            patch = oval(side * rng.uniform(0.45, 0.7), -rng.uniform(0.3, 0.6), 0.52, 0.6, rng.uniform(-0.6, 0.6))
            face.draw(tint(rng, color), ragged(rng, patch, 0.2), depth=0.1, blur=0.02, inside=head)
    elif coat == "tuxedo":
        blaze = curve((0, -0.8), (0.1, -0.2), (0.62, 0.3), (0.4, 1), (-0.4, 1), (-0.62, 0.3), (-0.1, -0.2))
        face.draw(WHITE, blaze, depth=0.5, blur=0.015, inside=head)
    cheeks = oval(0.19, 0.42, 0.27, 0.21), oval(0, 0.62, 0.2, 0.16)
    face.draw(muzzle, *cheeks, depth=0.7, blur=0.04, inside=head, both=True)
    irises = (
        [(122, 168, 84), (204, 172, 62), (196, 128, 50), (110, 160, 176)] if coat != "siamese" else [(96, 152, 204)]
    )
    iris = tint(rng, *irises)
    _eyes(face, rng.uniform(0.42, 0.48), -0.08, rng.uniform(0.18, 0.23), iris, rng.uniform(0.3, 0.75), 0.25)
    nose = tint(rng, (214, 132, 132), (190, 110, 104), (70, 52, 52))
    _nose_and_mouth(face, 0.27, 0.12, nose, mix(muzzle, BLACK if muzzle.sum() > 260 else WHITE, 0.6), 0.1, 0.2)
    _whiskers(face, 0.42, WHITE if fur.sum() < 560 else mix(fur, BLACK, 0.6))


def _dog(face: Face, coat: str, fur: Color) -> None:
    rng = face.rng
    brown = tint(rng, (130, 82, 48), (54, 44, 42), (188, 130, 76))
    ear = {"solid": mix(fur, BROWN, 0.28), "patch": brown, "spots": BLACK}.get(coat, fur)
    muzzle = {"solid": mix(fur, WHITE, 0.25), "tan": np.array([186, 124, 68])}.get(coat, WHITE)
    pricked = coat == "husky" or (coat == "tan" and rng.uniform() < 0.4)
    if pricked:
        _pointed_ears(face, ear, mix(ear, PINK, 0.5), rng.uniform(0.68, 0.8), -rng.uniform(1.45, 1.65))
    head = face.draw(fur, ragged(rng, oval(0, 0.02, rng.uniform(0.8, 0.9), rng.uniform(0.96, 1.06)), 0.03))
    if coat == "husky":
        marks = oval(0.42, 0.3, 0.4, 0.6, -0.35), oval(0.3, -0.33, 0.15, 0.1, 0.4)
        face.draw(WHITE, *marks, depth=0.2, blur=0.04, inside=head, both=True)
    elif coat == "patch":
        patch = ragged(rng, oval(rng.choice([-0.4, 0.4]), -0.2, 0.36, 0.46), 0.1)
        face.draw(brown, patch, depth=0.3, blur=0.02, inside=head)
    elif coat == "spots":
        places = rng.uniform([-0.8, -0.9, 0.05, 0.05], [0.8, 0.6, 0.12, 0.12], (rng.integers(9, 16), 4))
        face.draw(BLACK, *[ragged(rng, oval(*place), 0.3) for place in places], depth=0.2, inside=head)
    elif coat == "tan":
        marks = oval(0.3, -0.36, 0.11, 0.08), oval(0.6, 0.5, 0.3, 0.3)
        face.draw(muzzle, *marks, depth=0.2, blur=0.04, inside=head, both=True)
    elif rng.uniform() < 0.35:
        blaze = curve((0, -0.9), (0.12, -0.4), (0.2, 0.2), (-0.2, 0.2), (-0.12, -0.4))
        face.draw(WHITE, blaze, depth=0.4, blur=0.03, inside=head)
    if not pricked:
        length, out = rng.uniform(0.45, 0.95), rng.uniform(0.98, 1.18)
        flap = curve((0.38, -0.98), (0.85, -0.98), (out, -0.35), (out, length), (out - 0.42, length), (0.68, -0.1))
        face.draw(mix(fur, BLACK, 0.4), flap * 0.97, blur=0.05, inside=head, both=True)  # its shadow
        face.draw(ear, flap, depth=-0.05, both=True)
    if rng.uniform() < 0.45:  # the tongue
        tongue = curve((-0.2, 0.7), (0.2, 0.7), (0.19, 1.16), (0, 1.26), (-0.19, 1.16))
        face.draw(np.array([222, 110, 120]), tongue, depth=0.9)
    w = rng.uniform(0.4, 0.48)
    snout = curve((-0.2, 0), (0.2, 0), (w + 0.1, 0.45), (w, 0.88), (0, 0.86), (-w, 0.88), (-w - 0.1, 0.45))
    face.draw(mix(muzzle, fur, 0.5), snout * 1.1, depth=0.7, blur=0.05, inside=head)
    face.draw(muzzle, snout, depth=0.75, blur=0.03)
    iris = tint(rng, (140, 186, 216) if coat == "husky" and rng.uniform() < 0.7 else (74, 48, 30), vary=8)
    _eyes(face, rng.uniform(0.32, 0.38), -0.14, rng.uniform(0.125, 0.155), iris, 0.95, 0)
    line = mix(muzzle, BLACK if muzzle.sum() > 200 else WHITE, 0.7)
    _nose_and_mouth(face, 0.3, 0.19, tint(rng, (38, 32, 34), vary=6), line, 0.2, 0.3)


def _big_cat(face: Face, species: str, fur: Color) -> None:
    rng = face.rng
    if species == "lion" and rng.uniform() < 0.8:
        face.unit *= 0.9
        mane = tint(rng, (132, 82, 40), (86, 56, 36), (176, 120, 58))
        for r, shade in [(1.42, 0.4), (1.28, 0.1), (1.15, 0.3), (1.04, 0)]:
            tufts = ragged(rng, oval(0, 0.08, r, r, rng.uniform(0, 1)), 0.22)
            face.draw(mix(mane, BLACK, shade), tufts, depth=0.5 - 0.7 * r, blur=0.01)
    face.draw(mix(fur, BLACK, 0.3), oval(0.75, -0.73, 0.27, 0.27), depth=-0.2, both=True)
    inner = WHITE if species == "tiger" else mix(fur, BLACK, 0.5)
    face.draw(inner, oval(0.75, -0.7, 0.17, 0.17), depth=-0.15, blur=0.03, both=True)
    head = face.draw(fur, ragged(rng, oval(0, 0.05, rng.uniform(0.9, 1.0), 0.97), 0.04))
    if species == "tiger":
        marks = oval(0.72, 0.42, 0.3, 0.4), oval(0.4, -0.36, 0.2, 0.13)
        face.draw(WHITE, *marks, depth=0.2, blur=0.04, inside=head, both=True)
        stripes = [[(0, y), (0.2, y - 0.05), (rng.uniform(0.32, 0.45), y - 0.16)] for y in (-0.42, -0.59, -0.76)]
        for y in rng.normal([-0.3, -0.03, 0.24, 0.51], 0.03):
            stripes.append([(1.1, y), (0.84, y + 0.06), (rng.uniform(0.56, 0.66), y)])
        face.draw(BLACK, *stripes, depth=0.15, width=0.08, inside=head, both=True)
    elif species == "leopard":
        grid = np.mgrid[-0.9:1:0.15, -0.9:1:0.15].reshape(2, -1).T
        places = rng.normal(grid[(grid[:, 1] < -0.4) | (np.abs(grid[:, 0]) > 0.62)], 0.03)
        face.draw(BLACK, *[oval(*place, *rng.uniform(0.028, 0.06, 2)) for place in places], depth=0.15, inside=head)
    muzzle = WHITE if species == "tiger" else mix(fur, WHITE, 0.7)
    cheeks = oval(0.24, 0.5, 0.33, 0.25), oval(0, 0.78, 0.27, 0.2)
    face.draw(muzzle, *cheeks, depth=0.7, blur=0.035, inside=head, both=True)
    bridge = curve((-0.14, -0.4), (0.14, -0.4), (0.2, 0.3), (-0.2, 0.3))
    face.draw(mix(muzzle, BROWN, 0.25), bridge, depth=0.7, blur=0.05, inside=head)
    iris = tint(rng, (196, 138, 52), (206, 176, 86))
    _eyes(face, rng.uniform(0.36, 0.42), -0.14, rng.uniform(0.13, 0.155), iris, rng.uniform(0.55, 0.8), 0.3)
    _nose_and_mouth(face, 0.3, 0.19, tint(rng, (176, 108, 98), (96, 66, 62), vary=8), BROWN, 0.16, 0.27)
    _whiskers(face, 0.52, WHITE)


def _canine(face: Face, species: str, fur: Color) -> None:
    rng = face.rng
    pale, top = mix(fur, WHITE, 0.85), -rng.uniform(1.4, 1.55) - 0.17 * (species == "fox")
    _pointed_ears(face, mix(fur, BLACK, 0.1), mix(fur, BLACK, 0.5), rng.uniform(0.7, 0.86), top)
    half = [(0, -0.85), (0.6, -0.82), (0.96, -0.18), (1.15, 0.37), (0.6, 0.7), (0.26, 1.0)]
    head = face.draw(fur, ragged(rng, curve(*half, *[(-x, y) for x, y in half[:0:-1]]), 0.08))
    cheek = curve((0.2, 0.2), (0.62, 0.02), (1.1, 0.32), (0.6, 0.75), (0.1, 1.05), (0.02, 0.6))
    brow = oval(0.32, -0.34, 0.13, 0.07, 0.4)
    face.draw(pale, ragged(rng, cheek, 0.08), brow, depth=0.3, blur=0.03, inside=head, both=True)
    snout = curve((-0.15, -0.3), (0.15, -0.3), (0.27, 0.35), (0.24, 0.72), (-0.24, 0.72), (-0.27, 0.35))
    face.draw(fur, snout, depth=0.7, blur=0.03)
    face.draw(pale, oval(0, 0.7, 0.25, 0.18), depth=0.8, blur=0.03, inside=head)
    iris = tint(rng, (188, 132, 50), (206, 170, 70))
    _eyes(face, rng.uniform(0.36, 0.41), -0.06, rng.uniform(0.125, 0.15), iris, rng.uniform(0.6, 0.9), 0.4)
    _nose_and_mouth(face, 0.5, 0.15, tint(rng, (34, 30, 32), vary=5), BROWN, 0.1, 0.19)
