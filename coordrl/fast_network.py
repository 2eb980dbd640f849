"""The NatureCNN family without autograd: a forward pass that keeps what one batched backward pass needs.

A2C as SB3 does it runs the network twice on every observation: to act, and again for the gradients, though
the weights have not changed in between. Here acting keeps its activations. Beside that, nothing is computed
that nobody reads: no gradient to the image, and a coordinate layer's plane once for as long as its weights
stay, where it carries the bias too.

The same sums as SB3's, in another order, so that loss and gradients agree to float32's rounding: over a hundred
updates of real play the gradients differ by 2e-6 in the median, and by up to 1e-4 where value minus return nearly
cancels. In float64 they agree to 1e-9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import MlpExtractor, NatureCNN
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook

from coordrl.coordconv import CoordConv2d
from coordrl.extractors import CoordNatureCNN
from coordrl.grids import Geometry, grid_patches

_CONVOLUTIONS = (0, 2, 4)  # of NatureCNN.cnn; the others are ReLU, and Flatten at the end
# Changes through `.data` raise no version, so numbers are looked at: all of what is copied here, and some of a large
# tensor, which is used as it lies there.
_ALL, _SAMPLES = 1 << 17, 16
_SCALE = 1.0 / 255.0  # of an image's bytes, as SB3 scales them; part of the first convolution's weights here


@dataclass(frozen=True)
class ConvolutionPart:
    """The tensors of one convolution."""

    weight: Tensor  # (out_channels, in_channels, kernel, kernel)
    bias: Tensor  # (out_channels,)
    stride: tuple[int, int]
    coordinates: Tensor | None = None  # (out_channels, 2 or 3, kernel, kernel): the weights of the coordinates
    columns: NDArray[Any] | None = None  # (height' * width', 2 or 3 * kernel * kernel): their patches


@dataclass(frozen=True)
class Parts:
    """The tensors of a policy that the network is made of."""

    convolutions: tuple[ConvolutionPart, ...]
    linear: tuple[Tensor, Tensor]  # weight and bias, as of the two heads
    action: tuple[Tensor, Tensor]
    value: tuple[Tensor, Tensor]

    def tensors(self) -> list[Tensor]:
        """Return what is learnt, in one order."""
        found: list[Tensor] = []
        for part in self.convolutions:
            found += [part.weight, part.bias, *([] if part.coordinates is None else [part.coordinates])]
        return [*found, *self.linear, *self.action, *self.value]

    def is_same(self, other: Parts) -> bool:
        """Whether the other consists of the very same tensors."""
        mine, others = self.tensors(), other.tensors()
        if len(mine) != len(others) or any(one is not another for one, another in zip(mine, others, strict=True)):
            return False
        pairs = zip(self.convolutions, other.convolutions, strict=True)
        return all(one.stride == another.stride and one.columns is another.columns for one, another in pairs)


def unsuitable(policy: ActorCriticPolicy) -> str | None:
    """Say why a policy is not one whose function this module knows, or None if it is."""
    if type(policy) not in (ActorCriticCnnPolicy, ActorCriticPolicy):
        return f"the policy is a {type(policy).__name__}"
    extractor = policy.features_extractor
    if type(extractor) not in (NatureCNN, CoordNatureCNN):
        return f"the extractor is a {type(extractor).__name__}"
    if policy.device.type != "cpu":
        return f"the device is {policy.device}"
    layers = policy.mlp_extractor
    if type(layers) is not MlpExtractor:
        return f"the layers between extractor and heads are a {type(layers).__name__}"
    if not policy.share_features_extractor or len(layers.policy_net) + len(layers.value_net) > 0:
        return "there are layers between extractor and heads"
    if not isinstance(policy.action_space, spaces.Discrete) or policy.action_space.start != 0 or policy.use_sde:
        return "the actions are not numbered from 0"
    # SB3 scales what it takes for an image: binary planes, though bytes too, it feeds to the network as they are.
    if not policy.normalize_images or not is_image_space(policy.observation_space):
        return "the observations are no images of bytes from 0 to 255"
    if type(policy.action_dist) is not CategoricalDistribution:
        return f"actions are drawn from a {type(policy.action_dist).__name__}"
    known = {id(parameter) for parameter in policy.parameters()}
    if any(id(parameter) not in known for group in policy.optimizer.param_groups for parameter in group["params"]):
        return "the optimizer has parameters that are not the policy's"
    return _changed(policy, extractor)


def _changed(policy: ActorCriticPolicy, extractor: nn.Module) -> str | None:
    """Say what somebody has changed in a network, or None."""
    assert isinstance(extractor, NatureCNN)
    heads = [*policy.mlp_extractor.modules(), policy.action_net, policy.value_net]
    parts: list[nn.Module] = [policy, *extractor.modules(), *heads]
    if any(getattr(part, hooks) for part in parts for hooks in ("_forward_hooks", "_forward_pre_hooks")):
        return "a module has hooks"
    if any(part._backward_hooks or part._backward_pre_hooks for part in parts):
        return "a module has hooks"
    hooks_of_weights = ("_backward_hooks", "_post_accumulate_grad_hooks")
    if any(getattr(parameter, hooks, None) for parameter in policy.parameters() for hooks in hooks_of_weights):
        return "a weight has hooks"
    if _has_any_global_hook():  # type: ignore[no-untyped-call]  # torch has no hints here
        return "all modules have hooks"
    if any({"forward", "_conv_forward"} & vars(part).keys() for part in parts):
        return "a method was replaced"
    if any(callable(getattr(type(policy), name, None)) for name in vars(policy)):
        return "a method was replaced"
    kinds = [type(part) for part in extractor.cnn]
    convolutions = {nn.Conv2d, CoordConv2d}
    if (
        len(kinds) != 7
        or kinds[1::2] != [nn.ReLU] * 3
        or kinds[6] is not nn.Flatten
        or not {*kinds[:6:2]} <= convolutions
    ):
        return "the layers are not NatureCNN's"
    if [type(part) for part in (*extractor.linear, policy.action_net, policy.value_net)] != [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
        nn.Linear,
    ]:
        return "the layers are not NatureCNN's"
    names = {name.rpartition(".")[2] for name, _ in policy.named_parameters()}
    if names != {"weight", "bias"} or not all(
        p.requires_grad and p.dtype == torch.float32 for p in policy.parameters()
    ):
        return "some weights are frozen, or are no float32 numbers of their own"
    for place in _CONVOLUTIONS:
        layer = extractor.cnn[place]
        conv = layer.image if isinstance(layer, CoordConv2d) else layer
        assert isinstance(conv, nn.Conv2d)
        if conv.bias is None or conv.groups != 1 or conv.padding != (0, 0) or conv.dilation != (1, 1):
            return "the convolutions are not NatureCNN's"
    if any(head.bias is None for head in (extractor.linear[0], policy.action_net, policy.value_net)):
        return "a head has no bias"
    return None


def read_parts(policy: ActorCriticPolicy) -> Parts | None:
    """Find the tensors of a policy that is suitable; None if the patches of a grid are too large to be kept."""
    extractor: Any = policy.features_extractor
    _, height, width = policy.observation_space.shape or (0, 0, 0)
    convolutions: list[ConvolutionPart] = []
    for place in _CONVOLUTIONS:
        layer = extractor.cnn[place]
        image: Any = layer.image if isinstance(layer, CoordConv2d) else layer
        stride = (int(image.stride[0]), int(image.stride[1]))
        kernel = (int(image.kernel_size[0]), int(image.kernel_size[1]))
        if isinstance(layer, CoordConv2d):
            geometry: Geometry = (kernel, stride, (0, 0), (1, 1))
            kept = grid_patches(layer.grid, height, width, layer.with_radius, image.weight.dtype, geometry)
            if kept is None:
                return None
            part = ConvolutionPart(image.weight, image.bias, stride, layer.coordinates.weight, kept.columns)
        else:
            part = ConvolutionPart(image.weight, image.bias, stride)
        convolutions.append(part)
        height, width = _output_side(height, kernel[0], stride[0]), _output_side(width, kernel[1], stride[1])
    linear: Any = extractor.linear[0]
    heads: list[Any] = [linear, policy.action_net, policy.value_net]
    first, second, third = ((head.weight, head.bias) for head in heads)
    return Parts(tuple(convolutions), first, second, third)


def _output_side(side: int, kernel: int, stride: int) -> int:
    """Return the side of a convolution's output."""
    return (side - kernel) // stride + 1


class _Convolution:
    """One convolution with its ReLU: its weights as its kernels want them, and what it keeps."""

    def __init__(self, part: ConvolutionPart, height: int, width: int, samples: int, scale: float) -> None:
        self.part, self.scale, self.stride = part, scale, [*part.stride]
        out_channels, _, *kernel = part.weight.shape
        self.height = _output_side(height, kernel[0], part.stride[0])
        self.width = _output_side(width, kernel[1], part.stride[1])
        self.columns = None if part.columns is None else torch.from_numpy(part.columns)
        shape = (samples, out_channels, self.height, self.width)
        self.kept = torch.empty(shape, dtype=part.weight.dtype).to(memory_format=torch.channels_last)

    def refresh(self) -> None:
        """Read the weights anew."""
        self.weight = (self.part.weight * self.scale).contiguous(memory_format=torch.channels_last)
        if self.part.coordinates is not None and self.columns is not None:
            plane = torch.addmm(self.part.bias, self.columns, self.part.coordinates.flatten(1).t())
            self.plane = plane.view(1, self.height, self.width, -1).permute(0, 3, 1, 2)

    def forward(self, images: Tensor, kept: Tensor) -> Tensor:
        """Convolve (batch, channels, height, width), and write the result after its ReLU to `kept`."""
        if self.part.coordinates is None:
            found = functional.conv2d(images, self.weight, self.part.bias, self.stride)
            return torch.clamp_min(found, 0.0, out=kept)
        torch.add(functional.conv2d(images, self.weight, None, self.stride), self.plane, out=kept)
        return kept.clamp_min_(0.0)

    def backward(
        self, gradient: Tensor, images: Tensor, with_images: bool
    ) -> tuple[Tensor | None, dict[Tensor, Tensor]]:
        """Return the gradients to the images, if wanted, and to each weight.

        Args:
            gradient: of the output before the ReLU, (batch, out_channels, height', width'), channels_last.
            images: what `forward` was given, of all rows.
            with_images: whether the first is wanted.
        """
        bias, has_plane = self.part.bias, self.part.coordinates is not None
        mask = [with_images, True, not has_plane]
        ones, none = [1, 1], [0, 0]
        to_images, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient, images, self.weight, [len(bias)], self.stride, none, ones, False, none, 1, mask
        )
        found = {self.part.weight: to_weight.mul_(self.scale) if self.scale != 1.0 else to_weight}
        if self.part.coordinates is not None and self.columns is not None:
            to_plane = gradient.permute(0, 2, 3, 1).reshape(len(gradient), -1).sum(dim=0).view(-1, len(bias))
            found[self.part.coordinates] = (to_plane.t() @ self.columns).view_as(self.part.coordinates)
            to_bias = to_plane.sum(dim=0)
        found[bias] = to_bias
        return to_images if with_images else None, found


@final
class FastNetwork:
    """Extractor and heads of a policy, for the forward passes of one rollout and its one backward pass.

    Args:
        parts: the tensors; they are read here.
        image: shape of an observation, (channels, height, width).
        n_envs: observations in a forward pass.
        n_steps: forward passes whose activations are kept; one more has a place, for the last values.
        gradients: where those of `parts.tensors()` are written to; by default new memory for each backward pass, since
            those of the one before may be kept by somebody, and are the parameters' own until the update.
    """

    def __init__(
        self,
        parts: Parts,
        image: tuple[int, int, int],
        n_envs: int,
        n_steps: int,
        gradients: Sequence[Tensor] | None = None,
    ) -> None:
        self.parts, self.n_envs, self.n_steps = parts, n_envs, n_steps
        channels, height, width = image
        samples = n_envs * (n_steps + 1)
        dtype = parts.linear[0].dtype
        images = torch.empty((samples, channels, height, width), dtype=dtype)
        self._images = images.to(memory_format=torch.channels_last)
        self._convolutions: list[_Convolution] = []
        for number, part in enumerate(parts.convolutions):
            conv = _Convolution(part, height, width, samples, _SCALE if number == 0 else 1.0)
            self._convolutions.append(conv)
            height, width = conv.height, conv.width
        self._flat = torch.empty((samples, parts.linear[0].shape[1]), dtype=dtype)
        self._hidden = torch.empty((samples, len(parts.linear[1])), dtype=dtype)
        self._outputs = torch.empty((samples, len(parts.action[1]) + 1), dtype=dtype)
        self._tensors = parts.tensors()
        self._renews = gradients is None
        found = gradients or [torch.empty_like(tensor.data) for tensor in self._tensors]
        self.gradients: dict[Tensor, Tensor] = dict(zip(self._tensors, found, strict=True))
        self._read: list[tuple[int, int]] = []
        self._whole: list[Tensor] = []

    def belongs_to(self, policy: ActorCriticPolicy) -> bool:
        """Whether this is the network of a policy as it is now; what can change its function is looked at anew."""
        if unsuitable(policy) is not None:
            return False
        parts = read_parts(policy)
        return parts is not None and self.parts.is_same(parts)

    def is_stale(self, *, thorough: bool = False) -> bool:
        """Whether the weights have changed since the last `refresh`; `thorough` sees every number, if it kept them."""
        if self._read != [(parameter._version, parameter.data_ptr()) for parameter in self._tensors]:
            return True
        if thorough and self._whole:
            return not all(torch.equal(kept, tensor) for kept, tensor in zip(self._whole, self._tensors, strict=True))
        return not torch.equal(self._sampled, self._sample())

    def _sample(self) -> Tensor:
        """Return some numbers of each tensor."""
        return torch.cat(self._views)

    @torch.no_grad()
    def refresh(self, *, keep: bool = False) -> None:
        """Read the weights anew, after an update; `keep` a copy of all of them, where somebody may change some unseen."""
        self._whole = [tensor.detach().clone() for tensor in self._tensors] if keep else []
        for conv in self._convolutions:
            conv.refresh()
        self._head = torch.cat([self.parts.action[0], self.parts.value[0]])
        self._head_bias = torch.cat([self.parts.action[1], self.parts.value[1]])
        self._read = [(parameter._version, parameter.data_ptr()) for parameter in self._tensors]
        self._views = [_some(parameter.detach()) for parameter in self._tensors]
        self._sampled = self._sample()

    @torch.no_grad()
    def forward(self, observations: NDArray[np.uint8], step: int) -> tuple[Tensor, Tensor]:
        """Compute logits (n_envs, actions) and values (n_envs,), and keep all activations.

        Args:
            observations: (n_envs, channels, height, width) uint8.
            step: of the rollout, from 0; n_steps for the observations after the last one.
        """
        rows = slice(step * self.n_envs, (step + 1) * self.n_envs)
        # In two steps: a copy that changes type and layout at once takes half as long again.
        images = self._images[rows].copy_(torch.from_numpy(observations).to(self._images.dtype))
        for conv in self._convolutions:
            images = conv.forward(images, conv.kept[rows])
        flat, hidden, outputs = self._flat[rows], self._hidden[rows], self._outputs[rows]
        flat.view(images.shape).copy_(images)  # NatureCNN flattens channels first
        weight, bias = self.parts.linear
        torch.addmm(bias, flat, weight.t(), out=hidden).clamp_min_(0.0)
        torch.addmm(self._head_bias, hidden, self._head.t(), out=outputs)
        return outputs[:, :-1], outputs[:, -1]

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Return logits (n_steps * n_envs, actions) and values (n_steps * n_envs,) of the rollout, by step."""
        outputs = self._outputs[: self.n_steps * self.n_envs]
        return outputs[:, :-1], outputs[:, -1]

    @torch.no_grad()
    def backward(self, d_logits: Tensor, d_values: Tensor) -> None:
        """Compute `gradients` from those of the outputs of a rollout.

        Args:
            d_logits: (n_steps * n_envs, actions), by step.
            d_values: (n_steps * n_envs,).
        """
        samples = self.n_steps * self.n_envs
        if self._renews:
            self.gradients = {tensor: torch.empty_like(tensor.data) for tensor in self._tensors}
        hidden, flat = self._hidden[:samples], self._flat[:samples]
        d_outputs = torch.cat([d_logits, d_values[:, None]], dim=1)
        found: dict[Tensor, Tensor] = {}
        to_head, to_head_bias = d_outputs.t() @ hidden, d_outputs.sum(dim=0)
        for (weight, bias), rows in ((self.parts.action, slice(-1)), (self.parts.value, slice(-1, None))):
            found[weight], found[bias] = to_head[rows], to_head_bias[rows]
        d_hidden = _through_relu(d_outputs @ self._head, hidden)
        weight, bias = self.parts.linear
        torch.mm(d_hidden.t(), flat, out=self.gradients[weight])
        found[bias] = d_hidden.sum(dim=0)
        last = self._convolutions[-1].kept[:samples]
        gradient = _through_relu(d_hidden @ weight, flat)  # (samples, features)
        gradient = gradient.view(last.shape).contiguous(memory_format=torch.channels_last)
        below = [self._images, *(conv.kept for conv in self._convolutions[:-1])]
        for number in (2, 1, 0):
            images = below[number][:samples]
            to_images, weights = self._convolutions[number].backward(gradient, images, with_images=number > 0)
            found |= weights
            if to_images is not None:
                gradient = _through_relu(to_images, images)
        for parameter, value in found.items():
            self.gradients[parameter].copy_(value)

    @torch.no_grad()
    def predict_values(self, observations: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the values of any number of observations (batch, channels, height, width), (batch,)."""
        images = torch.from_numpy(np.ascontiguousarray(observations)).to(self._images.dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        for conv in self._convolutions:
            shape = (len(images), *conv.kept.shape[1:])
            kept = torch.empty(shape, dtype=images.dtype).to(memory_format=torch.channels_last)
            images = conv.forward(images, kept)
        hidden = functional.linear(images.flatten(1), *self.parts.linear).clamp_min_(0.0)
        values: NDArray[np.float32] = functional.linear(hidden, *self.parts.value).numpy()[:, 0]
        return values


def make_network(policy: ActorCriticPolicy, n_envs: int, n_steps: int) -> FastNetwork | str:
    """Make the fast network of a policy, or say why there is none."""
    reason = unsuitable(policy)
    if reason is not None:
        return reason
    parts = read_parts(policy)
    if parts is None:
        return "the images are large"
    channels, height, width = policy.observation_space.shape or (0, 0, 0)
    return FastNetwork(parts, (channels, height, width), n_envs, n_steps)


def _some(tensor: Tensor) -> Tensor:
    """Return a view of a dense tensor's numbers, (some,), in whatever layout it is: of some, if it is large."""
    step = 1 if tensor.numel() <= _ALL else tensor.numel() // _SAMPLES
    return tensor.as_strided((len(range(0, tensor.numel(), step)),), (step,))


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """Return the gradient before a ReLU, from that after it and its output."""
    through: Tensor = torch.ops.aten.threshold_backward(gradient, output, 0.0)
    return through
