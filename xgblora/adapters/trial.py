"""Which layers an adapter acts on as a change of their weight would, found by two short texts.

A linear layer may stand in a model and never be called (a vision tower without pictures, attention to an encoder that
is not there), its weight may be read by code that never calls it (kernels that fuse several layers), or it may give
something else than its product (a router its choice of experts). An adapter there trains on noise, and its merge is not
what was trained. No documentation tells which layers these are.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xgblora.adapters.kinds.registry import kind_of
from xgblora.short_texts import MISFITS, arguments_of_short_texts, outputs_of, undisturbed

# by the name of a layer what is said of it: "is never called ..."
Faults = dict[str, str]

# of the largest output: what the order of additions does on a GPU; a weight that is read and set to zero moves more
_SAME = 1e-3


@torch.no_grad()
def faults_when_called(model: nn.Module, layers: Mapping[str, nn.Module]) -> Faults:
    """What keeps an adapter on some of `layers` from acting, by name, as far as calling them shows.

    Empty for a model that does not read token ids, or does not run by them alone.
    """
    arguments = arguments_of_short_texts(model)
    if arguments is None:
        return {}
    outputs: dict[str, list[Any]] = {name: [] for name in layers}
    try:
        with undisturbed(model), _hooked(layers, lambda name, given, gave: outputs[name].append(gave)):
            outputs_of(model, arguments)
    except MISFITS:
        return {}
    called = {_any_of_its_list(name) for name, gave in outputs.items() if gave}
    faults = {}
    for name, gave in outputs.items():
        if not gave and _any_of_its_list(name) not in called:
            faults[name] = "is never called where the model reads two short texts"
        elif not all(_is_product(output, layers[name]) for output in gave):
            faults[name] = f"gives {_described(gave[0])}, not its product alone"
    return faults


def faults_when_changed(model: nn.Module, layers: Mapping[str, nn.Module]) -> Faults:
    """What keeps an adapter on some of `layers`, which are called, from acting as a change of the weight does, by name.

    Where no gradient comes back to what a layer gives, nothing reads that. And in another forward each layer gives
    what it gave before, while its weight is zero: where what another layer is given, or the logits, change, something
    else reads the weight.
    """
    arguments = arguments_of_short_texts(model)
    if arguments is None:
        return {}
    first: dict[str, list[_Call]] = {name: [] for name in layers}
    marks: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, given: Tensor, gave: Tensor) -> Tensor:
        first[name].append(_Call(given.detach().clone(), gave.detach().clone()))
        marks[name].append(gave.new_zeros(gave.shape, requires_grad=True))
        # of its own, for a model may write into what a layer gave
        return gave + marks[name][-1]

    try:
        with undisturbed(model), torch.enable_grad(), _hooked(layers, keep):
            expected = outputs_of(model, arguments)
        if expected is None or not expected.isfinite().all():
            return {}
        doubtful = {name: layers[name] for name in _without_gradient(expected, marks)}
        unread = _unread(model, arguments, doubtful, expected.detach())
        return {**unread, **_read_elsewhere(model, arguments, layers, first, expected.detach())}
    except MISFITS:
        return {}


@dataclass(frozen=True)
class _Call:
    """What a layer was given, and what it gave."""

    given: Tensor
    gave: Tensor


def _without_gradient(output: Tensor, marks: Mapping[str, list[Tensor]]) -> list[str]:
    """The layers whose marks no gradient of `output` comes back to; none where it has no backward."""
    flat = [mark for of_one in marks.values() for mark in of_one]
    try:
        gradients = iter(torch.autograd.grad(output.float().sum(), flat, allow_unused=True))
    except MISFITS:
        return []
    reached = {name: [next(gradients) is not None for _ in of_one] for name, of_one in marks.items()}
    return [name for name, of_one in reached.items() if of_one and not any(of_one)]


@torch.no_grad()
def _unread(model: nn.Module, arguments: dict, layers: Mapping[str, nn.Module], expected: Tensor) -> Faults:
    """Which of `layers` give what nothing reads: no gradient is a hint, and some models make their own."""
    unread: list[str] = []
    for names in _alike(layers):
        noise = torch.Generator().manual_seed(0)

        def disturb(name: str, given: Tensor, gave: Tensor) -> Tensor:
            return gave + torch.randn(gave.shape, generator=noise).to(gave)  # noqa: B023 (used before the next round)

        with undisturbed(model), _hooked({name: layers[name] for name in names}, disturb):
            if torch.equal(outputs_of(model, arguments), expected):
                unread += names
    return dict.fromkeys(unread, "leads nowhere: nothing that the model gives depends on it")


@torch.no_grad()
def _read_elsewhere(
    model: nn.Module, arguments: dict, layers: Mapping[str, nn.Module], first: Mapping[str, list], expected: Tensor
) -> Faults:
    """The layers whose weights are read by more than their own forwards."""

    def is_read(names: list[str]) -> bool:
        left = {name: iter(calls) for name, calls in first.items()}
        same = []

        def replay(name: str, given: Tensor, gave: Tensor) -> Tensor:
            before = next(left[name])
            same.append(_same(given, before.given))
            return before.gave.clone()

        with undisturbed(model), _hooked(layers, replay), _without_weights([layers[name] for name in names]):
            output = outputs_of(model, arguments)
        return not (_same(output, expected) and all(same))

    if not is_read(list(layers)):
        return {}
    read = [name for names in _alike(layers) if is_read(names) for name in names]
    return dict.fromkeys(read, "has a weight that more than its own forward reads")


def _alike(layers: Mapping[str, nn.Module]) -> list[list[str]]:
    """The names of `layers`, those together that differ in their numbers alone."""
    alike: dict[str, list[str]] = {}
    for name in layers:
        alike.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return list(alike.values())


def _same(tensor: Tensor, expected: Tensor) -> bool:
    return bool((tensor - expected).abs().max() <= _SAME * expected.abs().max())


def _any_of_its_list(name: str) -> str:
    """One name for all members of a list inside a block: twelve tokens do not call each of 64 experts."""
    numbers = list(re.finditer(r"(?<=\.)\d+(?=\.)", name))
    return name if len(numbers) < 2 else f"{name[: numbers[-1].start()]}*{name[numbers[-1].end() :]}"


def _is_product(output: Any, layer: nn.Module) -> bool:
    out_features = kind_of(layer).features(layer)[1]
    return isinstance(output, Tensor) and output.ndim > 0 and output.shape[-1] == out_features


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    return f"a {type(output).__name__}"


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], see: Callable[[str, Any, Any], Any]) -> Iterator[None]:
    """Within the block `see(name, given, gave)` is asked at each call; what it returns, if anything, is given instead.

    `given` is the first argument of the layer.
    """

    def hook_of(name: str) -> Callable:
        return lambda module, args, kwargs, output: see(name, next(iter((*args, *kwargs.values())), None), output)

    hooks = [layer.register_forward_hook(hook_of(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_weights(layers: list[nn.Module]) -> Iterator[None]:
    """Within the block the dense weights of `layers` are zero; none is copied."""
    dense = [layer for layer in layers if kind_of(layer).has_dense_weight(layer)]
    weights = [getattr(layer, kind_of(layer).weight_name) for layer in dense]
    kept = [weight.data for weight in weights]
    try:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data.new_zeros(()).expand(data.shape)
        yield
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data
