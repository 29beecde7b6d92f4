"""Files that hold weights, of the kinds of `signatures`, read without running what is in them."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy._core import multiarray, numeric
from safetensors import safe_open
from torch import Tensor

from backbones.signatures import damaged, kind_of
from mae_bench.errors import UserError


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        kind: "torch", "safetensors", "npz" or "pickle".
        tree: the file's top level; its arrays are tensors on the CPU.
        header: safetensors' metadata, else empty.
    """

    kind: str
    tree: Mapping[str, Any]
    header: Mapping[str, str] = field(default_factory=dict)


def read_contents(path: Path) -> Contents:
    """Read a file of any kind above.

    Raises:
        UserError: no such file, no weights, damaged, or one that wants code to be run.
    """
    kind = kind_of(path)
    try:
        tree, header = READERS[kind](path)
    except UserError:
        raise
    except Exception as error:  # a damaged stream makes a pickle machine raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise damaged(path, kind, reason) from None
    if not isinstance(tree, Mapping) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path} holds a {type(tree).__name__}; a dict of named tensors is needed")
    return Contents(kind, tree, header)


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _read_npz(path: Path) -> tuple[Any, dict[str, str]]:
    with np.load(path, allow_pickle=False) as arrays:
        try:
            return {name: _tensor(arrays[name]) for name in arrays.files}, {}
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise _wants_code(path, "pickled objects in an array") from None


def _refuse_program(path: Path) -> tuple[Any, dict[str, str]]:
    raise _wants_code(path, "TorchScript")


class _Inert:
    """Stands in for what mmengine's training state is made of, whose values nobody reads here."""

    def __init__(self, *arguments: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


# Published files hold their arguments (MAE, DINO), NumPy scalars, or mmengine's training state.
# None of these can run code; everything else than tensors and plain values is refused.
ALLOWED: tuple[Any, ...] = (
    argparse.Namespace,
    (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_Inert, "builtins.getattr"),
    (_Inert, "__builtin__.getattr"),
    np.ndarray,
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *(
        (getattr(multiarray, name), f"{module}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for module in ("numpy.core", "numpy._core")
    ),
)


def _read_torch(path: Path) -> tuple[Any, dict[str, str]]:
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        # torch says of any other fault that it may be the reason, too; the names are what counts.
        wants = re.search(r"GLOBAL ([\w.]+)|unrecognized function (\S+)|but got (.+)", str(error))
        if not wants:
            raise
        raise _wants_code(path, next(filter(None, wants.groups()))) from None


def _wants_code(path: Path, name: str) -> UserError:
    return UserError(
        f"{path} is refused: reading it would run code of its own ({name}). "
        "Save its weights alone, as a dict of tensors, where the file is trusted"
    )


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for `codecs.encode`: Python 2 and protocol 2 pickle bytes as text."""
    return text.encode("latin1")


# All that arrays need; a name outside of it ends the reading before anything is called.
ARRAY_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"{package}.{module.__name__.rpartition('.')[2]}", name): getattr(module, name)
        for package in ("numpy.core", "numpy._core")
        for module, name in (
            (multiarray, "_reconstruct"),
            (multiarray, "scalar"),
            (numeric, "_frombuffer"),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays and plain values, and nothing that could run code."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_GLOBALS:
            raise _wants_code(self._path, f"{module}.{name}")
        return ARRAY_GLOBALS[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise _wants_code(self._path, f"persistent object {pid!r}"[:80])


def _read_pickle(path: Path) -> tuple[Any, dict[str, str]]:
    with path.open("rb") as file:
        return _tensors(_ArrayUnpickler(file, path).load()), {}


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    return _tensor(value) if isinstance(value, np.ndarray) else value


def _tensor(array: np.ndarray) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise UserError(f"an array of type {array.dtype} is no weight ({error})") from None


READERS: dict[str, Callable[[Path], tuple[Any, dict[str, str]]]] = {
    "safetensors": _read_safetensors,
    "npz": _read_npz,
    "TorchScript": _refuse_program,
    "torch": _read_torch,
    "pickle": _read_pickle,
}


class State(NamedTuple):
    """The weights of a file, out of their container.

    Attributes:
        container: entry that they were under, "" for none.
        tensors: the file's own names.
        rest: entry of the file -> why it holds no weights of a model.
        header: what MAE-bench wrote about the file, else empty.
    """

    container: str
    tensors: dict[str, Tensor]
    rest: dict[str, str]
    header: dict[str, str]


MARK = "mae_bench"
CONTAINERS = ("model", "state_dict", "module", "teacher")
# Entries with tensors in them that are no weights to start from.
TRAINING_STATE = {
    "optimizer": "state of the optimizer",
    "lr_scheduler": "state of the schedule",
    "scheduler": "state of the schedule",
    "scaler": "state of the loss scaler",
    "model_ema": "averaged weights, not used: the trained ones are",
    "ema_state_dict": "averaged weights, not used: the trained ones are",
    "dino_loss": "state of the loss",
    "message_hub": "training log",
    "trainer": "state of the trainer",
}


def unwrap(tree: Mapping[str, Any], where: str) -> State:
    """Find the weights among a file's entries.

    Args:
        where: the file, for messages.

    Raises:
        UserError: no weights, weights in two places, or tensors nobody knows the meaning of.
    """
    found = [name for name in CONTAINERS if isinstance(tree.get(name), Mapping)]
    if len(found) > 1:
        raise UserError(f"{where} has weights under {' and under '.join(found)}; keep one of them")
    header = _mark(tree)
    if not found:
        tensors = {name: value for name, value in tree.items() if isinstance(value, Tensor)}
        rest = dict.fromkeys(tree.keys() - tensors.keys() - {MARK}, "no tensor")
        inner = [name for name in rest if _holds_tensors(tree[name])]
        if inner or not tensors:
            raise UserError(
                f"{where} has no weights under {', '.join(CONTAINERS)} or on its top level; it has "
                f"{', '.join([*tree][:5]) or 'nothing'}"
            )
        return State("", tensors, rest, header)
    container = found[0]
    state = dict(tree[container])
    if container == "teacher":
        state = {f"teacher.{name}": value for name, value in state.items()}
        student = tree.get("student", {})
        state |= {f"student.{name}": value for name, value in student.items()}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    rest = dict.fromkeys(state.keys() - tensors.keys(), "no tensor")
    for name in tree:
        if name in {container, "student", MARK}:
            continue
        if name not in TRAINING_STATE and _holds_tensors(tree[name]):
            raise UserError(f"{where} has tensors under {name!r}, beside {container!r}: unknown")
        rest[name] = TRAINING_STATE.get(name, "about the training, no weights")
    return State(container, tensors, rest, header or _mark(tree[container]))


def _mark(tree: Mapping[str, Any]) -> dict[str, str]:
    """What `backbones.convert` wrote about its file, where the kind of file has a place for it."""
    hidden = getattr(tree, "_metadata", None) or {}
    mark = tree.get(MARK) or hidden.get(MARK) or {}
    return {str(key): str(value) for key, value in mark.items()}


def _holds_tensors(value: object) -> bool:
    """Whether there are arrays in it; single numbers are counts and scores."""
    if isinstance(value, Tensor):
        return value.ndim > 0
    inner = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | list | tuple) and any(map(_holds_tensors, inner))
