"""CoordConv layers: convolutions that see where they are (Liu et al. 2018, arXiv 1807.03247, section 3).

A CoordConv layer is the convolution of an image to which coordinate channels have been appended:
row and column, each running from -1 to 1 over its side (a side of length 1 gives 0), and optionally
the radius sqrt(row^2 + column^2), measured from the centre.

Here it is computed in *split form*: conv([x; c]) = conv(x; W_x) + conv(c; W_c). The second term does
not depend on the sample, so it is computed once per call at batch 1 and added by broadcasting. The
two halves are ordinary convolutions of their own, `image` and `coordinates`: a library that
initialises an `nn.Conv2d` treats the image half exactly as it would treat a plain convolution
(concatenation would change its fan-in).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from coordrl.errors import RequestError, suggest
from coordrl.grids import Grid, coordinate_grid, grid_patches

Size = int | tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Which = Literal["first", "all"] | Iterable[str] | Callable[[str, nn.Conv2d], bool]

COORDINATES = ("row", "column", "radius")  # the order in which the channels are appended


@final
class AddCoords(nn.Module):
    """Append coordinate channels to images: (batch, channels, height, width) -> two or three channels more.

    Channels are appended last, in the order row, column(, radius), in the images' dtype.
    """

    def __init__(self, *, with_radius: bool = False) -> None:
        super().__init__()
        self.with_radius = with_radius

    def forward(self, images: Tensor) -> Tensor:
        """Append the channels; a single image (channels, height, width) is taken too."""
        height, width = images.shape[-2:]
        grid = coordinate_grid(height, width, with_radius=self.with_radius, device=images.device, dtype=images.dtype)
        return torch.cat([images, grid[0] if images.dim() == 3 else grid.expand(images.shape[0], -1, -1, -1)], dim=-3)

    def extra_repr(self) -> str:
        """Show the one option."""
        return f"with_radius={self.with_radius}"


@final
class CoordConv2d(nn.Module):
    """A 2-D convolution that sees coordinates: (batch, in_channels, height, width) -> (batch, out_channels, ...).

    Exactly `nn.Conv2d` applied to `cat([images, row, column(, radius)], dim=1)`, in split form. With
    groups, every group sees the coordinates. The arguments are those of `nn.Conv2d`; `in_channels`
    counts the image's channels alone.

    Attributes:
        image: the convolution of the image, weight (out_channels, in_channels / groups, kh, kw).
        coordinates: the convolution of the grid, weight (out_channels, 2 or 3, kh, kw), no bias.

    Args:
        with_radius: append the radius as a third coordinate.
        padding_mode: as in `nn.Conv2d`; the coordinates are padded in the same way.
        grid: what makes the coordinate channels; another function gives a control experiment.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        with_radius: bool = False,
        padding_mode: PaddingMode = "zeros",
        grid: Grid = coordinate_grid,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.with_radius = with_radius
        self.grid = grid
        self.image = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self.coordinates = _coordinates_beside(self.image, with_radius)

    @classmethod
    def around(
        cls, image: nn.Conv2d, *, with_radius: bool = False, grid: Grid = coordinate_grid, zero: bool = True
    ) -> CoordConv2d:
        """Wrap an existing convolution, which becomes the image half (the same object, same parameters).

        With `zero` the coordinate weights are 0, so that the layer computes what `image` computes until
        it is trained; otherwise they have PyTorch's default initialisation.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.with_radius = with_radius
        layer.grid = grid
        layer.image = image
        layer.coordinates = _coordinates_beside(image, with_radius)
        if zero:
            nn.init.zeros_(layer.coordinates.weight)
        return layer.train(image.training)

    @classmethod
    def from_concatenated(cls, conv: nn.Conv2d, *, order: Sequence[str] = ("row", "column")) -> CoordConv2d:
        """Split a convolution over concatenated channels, as other libraries store it, into this layer.

        Args:
            conv: takes cat([images, coordinates]), coordinates last (with groups: last in each group).
            order: the names of its coordinate channels in its own order, from "row", "column", "radius". Layers that
                others have published differ: many append the column, which they call x, before the row, so
                ("column", "row"). Some take the radius from another point than the centre; theirs is not this
                layer's, which then computes another function. Compare both on an image.

        Raises:
            RequestError: `order` is not row and column, with or without radius.
        """
        in_channels = _image_channels(conv, order)
        layer = cls(
            in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
            _pair(conv.dilation),
            conv.groups,
            conv.bias is not None,
            with_radius=len(order) == 3,
            padding_mode=conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        places = [order.index(name) for name in COORDINATES[: len(order)]]
        with torch.no_grad():
            image_weight, coordinate_weight = torch.split(conv.weight, [in_channels // conv.groups, len(order)], dim=1)
            layer.image.weight.copy_(image_weight)
            layer.coordinates.weight.copy_(coordinate_weight[:, places])
            if conv.bias is not None and layer.image.bias is not None:
                layer.image.bias.copy_(conv.bias)
        return layer.train(conv.training)

    def to_concatenated(self) -> nn.Conv2d:
        """Join both halves into one `nn.Conv2d` over cat([images, row, column(, radius)], dim=1).

        With groups, the coordinates are expected at the end of each group's channels; with a `grid` of
        your own, they are that grid's.
        """
        image = self.image
        conv = nn.Conv2d(
            image.in_channels + image.groups * self.coordinates.in_channels,
            image.out_channels,
            _pair(image.kernel_size),
            _pair(image.stride),
            image.padding if isinstance(image.padding, str) else _pair(image.padding),
            _pair(image.dilation),
            image.groups,
            image.bias is not None,
            image.padding_mode,
            device=image.weight.device,
            dtype=image.weight.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(torch.cat([image.weight, self.coordinates.weight], dim=1))
            if image.bias is not None and conv.bias is not None:
                conv.bias.copy_(image.bias)
        return conv.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Convolve images (batch, in_channels, height, width), or one image without the batch side."""
        return _add_plane(self.image(images), self._plane(images))

    def _plane(self, images: Tensor) -> Tensor:
        """Convolve the grid of the images' size: (1, out_channels, height', width')."""
        height, width = images.shape[-2:]
        conv, radius, padding = self.coordinates, self.with_radius, self.coordinates.padding
        if isinstance(self.grid, FunctionType) and not isinstance(padding, str) and _is_plain(conv, images):
            geometry = (_pair(conv.kernel_size), _pair(conv.stride), _pair(padding), _pair(conv.dilation))
            kept = grid_patches(self.grid, height, width, radius, conv.weight.dtype, geometry)
            if kept is not None:
                columns = torch.from_numpy(kept.columns) @ conv.weight.flatten(1).t()
                return columns.view(1, *kept.shape, -1).permute(0, 3, 1, 2)
        plane: Tensor = conv(
            self.grid(height, width, with_radius=radius, device=images.device, dtype=conv.weight.dtype)
        )
        return plane

    def extra_repr(self) -> str:
        """Show the one option that the two halves do not."""
        return f"with_radius={self.with_radius}"


@final
class CoordConvTranspose2d(nn.Module):
    """A transposed 2-D convolution that sees coordinates, in split form.

    Exactly `nn.ConvTranspose2d` applied to `cat([images, row, column(, radius)], dim=1)`; with groups,
    every group sees the coordinates. The arguments are those of `nn.ConvTranspose2d`.

    Attributes:
        image: the image half, weight (in_channels, out_channels / groups, kh, kw).
        coordinates: the grid's half, weight (2 or 3, out_channels, kh, kw), no bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        with_radius: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.with_radius = with_radius
        self.image = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            device=device,
            dtype=dtype,
        )
        self.coordinates = nn.ConvTranspose2d(
            3 if with_radius else 2,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups=1,
            bias=False,
            dilation=dilation,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_concatenated(
        cls, conv: nn.ConvTranspose2d, *, order: Sequence[str] = ("row", "column")
    ) -> CoordConvTranspose2d:
        """Split a transposed convolution over concatenated channels; see CoordConv2d.from_concatenated."""
        in_channels = _image_channels(conv, order)
        layer = cls(
            in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            _pair(conv.padding),  # type: ignore[arg-type]  # only convolutions that are not transposed take words
            _pair(conv.output_padding),
            conv.groups,
            conv.bias is not None,
            _pair(conv.dilation),
            with_radius=len(order) == 3,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        places = [order.index(name) for name in COORDINATES[: len(order)]]
        each = in_channels // conv.groups
        groups = conv.weight.chunk(conv.groups, dim=0)  # of one group's inputs and its share of the outputs each
        with torch.no_grad():
            layer.image.weight.copy_(torch.cat([group[:each] for group in groups], dim=0))
            layer.coordinates.weight.copy_(torch.cat([group[each:][places] for group in groups], dim=1))
            if conv.bias is not None and layer.image.bias is not None:
                layer.image.bias.copy_(conv.bias)
        return layer.train(conv.training)

    def to_concatenated(self) -> nn.ConvTranspose2d:
        """Join both halves into one `nn.ConvTranspose2d`; see CoordConv2d.to_concatenated."""
        image = self.image
        conv = nn.ConvTranspose2d(
            image.in_channels + image.groups * self.coordinates.in_channels,
            image.out_channels,
            _pair(image.kernel_size),
            _pair(image.stride),
            _pair(image.padding),  # type: ignore[arg-type]  # only convolutions that are not transposed take words
            _pair(image.output_padding),
            image.groups,
            image.bias is not None,
            _pair(image.dilation),
            device=image.weight.device,
            dtype=image.weight.dtype,
        )
        halves = zip(
            image.weight.chunk(image.groups, dim=0), self.coordinates.weight.chunk(image.groups, dim=1), strict=True
        )
        with torch.no_grad():
            conv.weight.copy_(torch.cat([half for group in halves for half in group], dim=0))
            if image.bias is not None and conv.bias is not None:
                conv.bias.copy_(image.bias)
        return conv.train(self.training)

    def forward(self, images: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve images (batch, in_channels, height, width); `output_size` as in `nn.ConvTranspose2d`."""
        height, width = images.shape[-2:]
        weight = self.coordinates.weight
        grid = coordinate_grid(height, width, with_radius=self.with_radius, device=images.device, dtype=weight.dtype)
        size = None if output_size is None else list(output_size)[-2:]
        plane: Tensor = self.coordinates(grid, size)  # (1, out_channels, height', width')
        return _add_plane(self.image(images, size), plane)

    def extra_repr(self) -> str:
        """Show the one option that the two halves do not."""
        return f"with_radius={self.with_radius}"


def convert(module: nn.Module, which: Which = "first", *, with_radius: bool = False) -> nn.Module:
    """Turn chosen `nn.Conv2d` layers of any model into `CoordConv2d` layers, in place.

    The model computes the same function until it is trained: coordinate weights start at zero. The
    convolutions themselves become the image halves, so their parameters, hooks, devices and dtypes stay;
    only an optimiser that should train the coordinates has to be made, or told of them, afterwards. The
    keys of its state_dict change: "conv.weight" becomes "conv.image.weight".

    Args:
        module: the model; if it is an `nn.Conv2d` itself, use the returned layer.
        which: "first" (in registration order), "all", names as in `module.named_modules()`, or a
            function (name, convolution) -> bool.
        with_radius: append the radius as a third coordinate.

    Returns:
        The model, or the new layer if `module` is a convolution itself.

    Raises:
        RequestError: nothing was chosen, a name is no convolution of the model, or a convolution is a subclass with a
            way to convolve of its own, under which the coordinates would not lie.
    """
    convolutions = dict(_convolutions("", module))
    chosen = _choose(convolutions, which)
    new = {id(convolutions[name]): convolutions[name] for name in chosen}
    layers = {key: CoordConv2d.around(conv, with_radius=with_radius) for key, conv in new.items()}
    if id(module) in layers:
        return layers[id(module)]
    for parent in list(module.modules()):  # a layer that two parents share stays shared
        if isinstance(parent, CoordConv2d):
            continue
        for name, child in list(parent._modules.items()):
            if id(child) in layers:
                parent._modules[name] = layers[id(child)]
    return module


def _convolutions(prefix: str, module: nn.Module) -> Iterable[tuple[str, nn.Conv2d]]:
    """Yield the name of each convolution, not looking into layers that see coordinates already."""
    if isinstance(module, nn.Conv2d):
        yield prefix, module
    if isinstance(module, CoordConv2d):
        return
    for name, child in module.named_children():
        yield from _convolutions(f"{prefix}.{name}" if prefix else name, child)


def _choose(convolutions: dict[str, nn.Conv2d], which: Which) -> list[str]:
    """Return the chosen names, or raise the RequestError that says why there are none."""
    names = list(convolutions)
    if which == "first":
        chosen = names[:1]
    elif which == "all":
        chosen = names
    elif isinstance(which, str):
        raise RequestError(f'which is "{which}"; it is "first", "all", a list of names, or a function')
    elif callable(which):
        chosen = [name for name in names if which(name, convolutions[name])]
    else:
        chosen = list(which)
        for name in chosen:
            if name not in convolutions:
                raise RequestError(f'"{name}" is no Conv2d of this model{suggest(name, names)}')
    if not chosen:
        raise RequestError(f"no Conv2d was chosen; this model has {names or 'none'}")
    for name in chosen:
        if not _convolves_plainly(convolutions[name]):
            raise RequestError(
                f'"{name}" is a {type(convolutions[name]).__name__}, which convolves in its own way; choose others, by their'
                " names"
            )
        if isinstance(convolutions[name].weight, nn.UninitializedParameter):
            raise RequestError(
                f'"{name}" is a lazy convolution without a size yet; run the model once, then convert it'
            )
    return chosen


def _convolves_plainly(conv: nn.Conv2d) -> bool:
    """Whether a layer computes what nn.Conv2d computes, and does not pad by itself, for example."""
    kind = type(conv)
    ways = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return ways and not {"forward", "_conv_forward"} & vars(conv).keys()


def _image_channels(conv: nn.Conv2d | nn.ConvTranspose2d, order: Sequence[str]) -> int:
    """Return how many input channels of a convolution over concatenated channels are the image's."""
    if sorted(order) not in (["column", "row"], ["column", "radius", "row"]):
        raise RequestError(f"order is {list(order)}; it names row and column, and radius if there is one, each once")
    in_channels = conv.in_channels - conv.groups * len(order)
    if in_channels <= 0:
        raise RequestError(
            f"the convolution has {conv.in_channels} input channels; with {len(order)} coordinates in each of its"
            f" {conv.groups} groups none is left for the image"
        )
    return in_channels


def _coordinates_beside(image: nn.Conv2d, with_radius: bool) -> nn.Conv2d:
    """Make the coordinate half that fits an image half: same geometry, 2 or 3 inputs, no groups, no bias."""
    return nn.Conv2d(
        3 if with_radius else 2,
        image.out_channels,
        _pair(image.kernel_size),
        _pair(image.stride),
        image.padding if isinstance(image.padding, str) else _pair(image.padding),
        _pair(image.dilation),
        groups=1,
        bias=False,
        padding_mode=image.padding_mode,
        device=image.weight.device,
        dtype=image.weight.dtype,
    )


def _is_plain(conv: nn.Conv2d, images: Tensor) -> bool:
    """Say whether a grid's convolution may be taken as one product with patches kept from call to call.

    That is the same sum, and on CPUs twice as fast forwards and more backwards. Not where something else
    has to see the convolution itself: a compiler, a tracer, a hook (pruning computes the weight in one), a tensor
    subclass, a parametrisation.
    """
    weight = conv.weight
    return (
        not torch.compiler.is_compiling()
        and not torch._C._is_tracing()  # torch.jit's: it would keep the patches of the one size that it sees
        and type(conv) is nn.Conv2d
        and type(images) is Tensor
        and weight.device.type == images.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and conv.padding_mode == "zeros"
        and not (conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks)
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]  # torch has no hints here
        and not {"forward", "_conv_forward"} & vars(conv).keys()
    )


def _add_plane(convolved: Tensor, plane: Tensor) -> Tensor:
    """Add a plane (1, channels, height, width) to every sample (batch, channels, height, width), or to a single one.

    The gradient of the plane is the sum over the batch. torch takes it five times as fast over the rows of
    a matrix as over the batch of four channels_last sides, so both are added as matrices in the layout they
    have. A compiler sees the plain sum, which it fuses by itself.
    """
    if convolved.dim() == 3:
        return convolved + plane[0]
    if torch.compiler.is_compiling():
        return convolved + plane
    if convolved.stride(1) == 1:  # channels_last; is_contiguous cannot be asked inside of vmap
        last = convolved.permute(0, 2, 3, 1)
        added = last.flatten(1) + plane.permute(0, 2, 3, 1).flatten(1)
        return added.view(last.shape).permute(0, 3, 1, 2)
    return (convolved.flatten(1) + plane.flatten(1)).view(convolved.shape)


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    """Narrow the type of a Conv2d's own (height, width)."""
    height, width = size
    return height, width
