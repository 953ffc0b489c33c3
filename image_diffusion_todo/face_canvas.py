"""The canvas of a synthetic face, and the shapes and colours that are drawn on it.

A face is a stack of polygons and lines in its own coordinates: the head is about the unit circle around (0, 0), x to
the right and y down. A pose puts them on a canvas of four times the final size; light and fur grain are added before
it is scaled down.
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

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


class Face:
    """A canvas with a background, and the pose in which everything is drawn."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.center = CANVAS / 2 + rng.normal(0, 0.025, 2) * CANVAS + [0, 0.05 * CANVAS]
        self.unit = rng.uniform(0.29, 0.345) * CANVAS  # length of 1 on the canvas
        tilt = rng.normal(0, 0.11)
        self.rotation = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self.turn = rng.normal(0, [0.07, 0.03])  # where the nose points
        top, bottom = (tint(rng, color) for color in BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
        share = (np.arange(CANVAS) / CANVAS + rng.normal(0, 0.12)).clip(0, 1) ** rng.uniform(0.6, 2.5)
        column = (top + share[:, None] * (bottom - top)).clip(0, 255).astype(np.uint8)
        self.image = Image.fromarray(column[:, None].repeat(CANVAS, 1))
        for _ in range(rng.integers(2, 9)):  # spots of light, out of focus
            (x, y), r, color = rng.uniform(0, CANVAS, 2), rng.uniform(8, 40), tint(rng, top, bottom, vary=22)
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


def tint(rng: np.random.Generator, *choices: Color, vary: float = 12) -> Color:
    """One of the colours, somewhat lighter or darker, and a little off in hue."""
    color = np.array(choices[rng.integers(len(choices))]) + rng.normal(0, vary) + rng.normal(0, vary / 4, 3)
    return color.clip(8, 250).astype(int)


def mix(a: Color, b: Color, share: float) -> Color:
    """`a` with a share of `b`."""
    return (a + share * (b - a)).astype(int)


def oval(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Points:
    """An ellipse around (x, y), turned by `angle`."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    dx, dy = rx * np.cos(t), ry * np.sin(t)
    return np.stack([x + np.cos(angle) * dx - np.sin(angle) * dy, y + np.sin(angle) * dx + np.cos(angle) * dy], axis=1)


def curve(*corners: tuple[float, float]) -> Points:
    """A smooth closed curve near the corners: quadratic splines through the middles of the edges."""
    corner = np.array(corners, dtype=float)
    start, end = (np.roll(corner, 1, 0) + corner) / 2, (corner + np.roll(corner, -1, 0)) / 2
    u = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    return ((1 - u) ** 2 * start[:, None] + 2 * u * (1 - u) * corner[:, None] + u**2 * end[:, None]).reshape(-1, 2)


def ragged(rng: np.random.Generator, points: Points, by: float) -> Points:
    """The outline with tufts: every other point is pulled outwards at random."""
    pull = 1 + by * rng.uniform(0, 1, len(points)) * (np.arange(len(points)) % 2)
    return points.mean(0) + (points - points.mean(0)) * pull[:, None]
