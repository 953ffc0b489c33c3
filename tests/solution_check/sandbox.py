"""Where a student's code runs: bare imports from its folder, known random draws, no GPU needed."""

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# What the lab's files import beside PyTorch and NumPy. None of it matters here, so it need not be installed.
EXTRAS = {"dotmap", "pytorch_lightning", "lightning", "jupyter", "IPython", "ipywidgets", "jaxtyping", "matplotlib"}
EXTRAS |= {"PIL", "sklearn", "scipy", "pandas", "torchvision", "torchmetrics", "tqdm", "wandb", "einops", "cv2"}


class Placeholder:
    """Takes the place of any class or function of a library that is not installed; passes iterables through."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._first = args[0] if args else ()

    def __iter__(self) -> Iterator:
        return iter(self._first)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else self  # also a decorator

    def __getattr__(self, name: str) -> Any:
        return _placeholder(name)()


def _placeholder(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Placeholder,), {"__class_getitem__": classmethod(lambda cls, _: cls)})


class PlaceholderFinder:
    """Import machinery for those of `EXTRAS` that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in EXTRAS else None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _placeholder
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def bare_imports(folder: Path) -> Iterator[None]:
    """Let `import network` mean the one in `folder`; afterwards the folder's modules are forgotten."""
    finder, path, modules = PlaceholderFinder(), sys.path.copy(), dict(sys.modules)
    own = {file.stem for file in folder.glob("*.py")} | {file.name for file in folder.iterdir() if file.is_dir()}
    hidden = {name: sys.modules.pop(name) for name in modules if name.split(".")[0] in own - sys.stdlib_module_names}
    sys.path.insert(0, str(folder))
    sys.meta_path.append(finder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            is_own = (getattr(module, "__file__", None) or "").startswith(str(folder))
            if is_own or getattr(module, "__loader__", None) is finder:
                del sys.modules[name]
        sys.modules.update(hidden)


class Network(nn.Module):
    """The network of all checks: returns `out(x)`, or where that has another shape 0.1 x; notes its calls."""

    image_resolution = 4
    use_cfg = False
    num_classes = None

    def __init__(self, out: Callable[[torch.Tensor], torch.Tensor] = lambda x: 0.1 * x):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.out = out
        self.calls: list[tuple[torch.Tensor, Any]] = []

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        x, t, *_ = [*args, *kwargs.values(), None]
        self.calls.append((x, t))
        out = self.out(x)
        return (out.to(x) if out.shape == x.shape else 0.1 * x) + self.weight


NORMAL = {torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_}
UNIFORM = {torch.rand, torch.rand_like, torch.Tensor.uniform_}
INTEGERS = {torch.randint, torch.randint_like, torch.Tensor.random_}
DRAWN = NORMAL | UNIFORM | INTEGERS
MOVES = {torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.type, torch.Tensor.copy_}


class Draws(TorchFunctionMode):
    """Replaces random draws by known values, and GPUs by the CPU, within a `with` block.

    It also watches Gaussian noise that is drawn on the CPU whatever the data's device is: `clashed` tells whether such
    noise met other tensors before it was moved, which fails on a GPU.

    Args:
        z: what Gaussian draws of this shape give, in units of their standard deviation; others stay random.
        more_z: what the second, third, ... of these draws in a `with` block give; those behind stay random.
        uniform: likewise for a uniform draw.
        integers: what a draw of as many integers gives (timesteps).
    """

    def __init__(self, z=None, uniform=None, integers=None, more_z=None):
        super().__init__()
        self.z, self.uniform, self.integers, self.more_z = z, uniform, integers, more_z
        self.shapes: set[tuple[int, ...]] = set()  # of Gaussian draws
        self.on_cpu: dict[int, torch.Tensor] = {}  # by id
        self.clashed = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = [_off_gpu(a) for a in args], {name: _off_gpu(value) for name, value in (kwargs or {}).items()}
        if function is torch.Tensor.cuda:
            return args[0]
        result = function(*args, **kwargs)
        if function in DRAWN:
            result = self._decide(function, result, args, kwargs)
        if self.on_cpu or function in DRAWN:
            self._watch(function, result, [*args, *kwargs.values()], kwargs.get("device"))
        return result

    def _decide(self, function, drawn, args, kwargs):
        """What was drawn, or the known values in its place."""
        if function in INTEGERS and self.integers is not None and drawn.numel() == len(self.integers):
            return drawn.copy_(self.integers.reshape(drawn.shape))
        if function in UNIFORM and self.uniform is not None and drawn.shape == self.uniform.shape:
            return drawn.copy_(self.uniform)
        if function in NORMAL:
            self.shapes.add(tuple(drawn.shape))
            if (z := self._next(drawn.shape)) is not None:
                if function in (torch.randn, torch.randn_like):
                    return drawn.copy_(z)
                mean, std = [*args[function is torch.Tensor.normal_ :], *[None] * 2][:2]
                mean, std = kwargs.get("mean", 0.0 if mean is None else mean), kwargs.get("std", std)
                return drawn.copy_(mean + (1.0 if std is None else std) * z)
        return drawn

    def _next(self, shape):
        """What the next Gaussian draw of this shape gives, None where it stays random."""
        if self.z is None or tuple(shape) != tuple(self.z.shape):
            return None
        if self.more_z is None:
            return self.z
        self.count += 1
        return [self.z, *self.more_z, *[None] * self.count][self.count - 1]

    def _watch(self, function, result, values, device):
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if function in (torch.randn, torch.normal) and not tensors and device in (None, "cpu"):
            self.on_cpu[id(result)] = result
        elif function in MOVES:
            self.on_cpu.pop(id(values[0]), None)
        elif any(id(tensor) in self.on_cpu for tensor in tensors):
            if any(tensor.ndim and id(tensor) not in self.on_cpu for tensor in tensors):
                self.clashed = True
            elif isinstance(result, torch.Tensor):
                self.on_cpu[id(result)] = result

    def __enter__(self):
        self.count = 0  # of the draws of z's shape, where there is more_z
        names = "randn", "normal", "standard_normal", "choice", "randint"
        known = {name: partial(self._from_numpy, name, getattr(np.random, name)) for name in names}
        self._numpy = mock.patch.multiple(np.random, **known)
        self._numpy.start()
        return super().__enter__()

    def __exit__(self, *error):
        self._numpy.stop()
        return super().__exit__(*error)

    def _from_numpy(self, name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        drawn = original(*args, **kwargs)
        if name in ("choice", "randint"):
            if self.integers is None or np.size(drawn) != len(self.integers):
                return drawn
            return self.integers.numpy().reshape(np.shape(drawn))
        if (z := self._next(np.shape(drawn))) is None:
            return drawn
        loc, scale = [*args[:2], *[0.0, 1.0][len(args) :]] if name == "normal" else (0.0, 1.0)
        return kwargs.get("loc", loc) + kwargs.get("scale", scale) * z.numpy().astype(np.float64)


def _off_gpu(value: Any) -> Any:
    is_gpu = isinstance(value, str | torch.device) and str(value).split(":")[0] in ("cuda", "mps")
    return torch.device("cpu") if is_gpu else value
