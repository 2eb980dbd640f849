"""The layer is exactly the convolution of an image with coordinate channels appended, in every use of it."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import coordrl
from coordrl import AddCoords, CoordConv2d, CoordConvTranspose2d, convert
from coordrl.errors import CoordrlError, RequestError
from coordrl.grids import coordinate_grid, grid_patches

# Derandomised: the same examples everywhere, so that a rounding tolerance is either right or wrong.
COMMON = settings(deadline=None, derandomize=True, database=None)

# The error allowed against a float64 reference, per unit of 1 + the largest magnitude.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 6e-3, torch.bfloat16: 5e-2}


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# --- the references: written without coordrl ---------------------------------------------------------


def reference_grid(height: int, width: int, *, with_radius: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    """Make the coordinates in pure Python, (1, 2 or 3, height, width), rounded once."""

    def place(index: int, side: int) -> float:
        return 0.0 if side == 1 else 2 * index / (side - 1) - 1

    rows = [[place(y, height) for _ in range(width)] for y in range(height)]
    columns = [[place(x, width) for x in range(width)] for _ in range(height)]
    radii = [[math.hypot(place(y, height), place(x, width)) for x in range(width)] for y in range(height)]
    channels = [rows, columns, radii] if with_radius else [rows, columns]
    return torch.tensor([channels], dtype=torch.float64).to(dtype)


def concatenate(images: Tensor, grid: Tensor, groups: int = 1) -> Tensor:
    """Append the grid to the images; with groups, to the channels of each group."""
    grid = grid.to(images).expand(images.shape[0], -1, -1, -1)
    return torch.cat([part for group in images.chunk(groups, dim=1) for part in (group, grid)], dim=1)


def plain_twin(layer: CoordConv2d, dtype: torch.dtype = torch.float64) -> nn.Conv2d:
    """Return the `nn.Conv2d` over concatenated channels that has the layer's weights."""
    image = layer.image
    extra = layer.coordinates.in_channels
    conv = nn.Conv2d(
        image.in_channels + image.groups * extra,
        image.out_channels,
        image.kernel_size,
        image.stride,
        image.padding,
        image.dilation,
        image.groups,
        image.bias is not None,
        image.padding_mode,
        dtype=dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(torch.cat([image.weight, layer.coordinates.weight], dim=1))
        if image.bias is not None:
            conv.bias.copy_(image.bias)
    return conv


def plain(layer: CoordConv2d, images: Tensor) -> Tensor:
    """Compute in float64 what the layer has to compute."""
    grid = reference_grid(*images.shape[-2:], with_radius=layer.with_radius)
    return plain_twin(layer)(concatenate(images.double(), grid, layer.image.groups))


def assert_close(actual: Tensor, reference: Tensor, dtype: torch.dtype) -> None:
    """Compare with a float64 reference, allowing for the rounding of `dtype`."""
    assert actual.shape == reference.shape
    largest = reference.detach().abs().max().item()
    torch.testing.assert_close(actual.double(), reference.double(), rtol=0, atol=TOLERANCE[dtype] * (1 + largest))


# --- the coordinates ----------------------------------------------------------------------------------


def test_rows_and_columns_run_from_minus_one_to_one() -> None:
    grid = coordinate_grid(3, 5)
    assert grid.shape == (1, 2, 3, 5)
    assert grid[0, 0].tolist() == [[-1.0] * 5, [0.0] * 5, [1.0] * 5]
    assert grid[0, 1].tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0]] * 3


def test_the_row_comes_before_the_column_and_the_radius_last() -> None:
    row, column, radius = coordinate_grid(4, 7, with_radius=True)[0]
    assert (row[0] == -1).all()
    assert (row[-1] == 1).all()
    assert (column[:, 0] == -1).all()
    assert (column[:, -1] == 1).all()
    torch.testing.assert_close(radius, torch.sqrt(row**2 + column**2))


@pytest.mark.parametrize(("height", "width"), [(5, 5), (3, 9), (7, 5)])
def test_the_radius_is_zero_in_the_centre_and_the_root_of_two_in_the_corners(height: int, width: int) -> None:
    radius = coordinate_grid(height, width, with_radius=True)[0, 2]
    assert radius[height // 2, width // 2].item() == pytest.approx(0, abs=1e-6)
    for corner in (radius[0, 0], radius[0, -1], radius[-1, 0], radius[-1, -1]):
        assert corner.item() == pytest.approx(math.sqrt(2))
    torch.testing.assert_close(radius, radius.flip(0))
    torch.testing.assert_close(radius, radius.flip(1))
    assert radius[0, width // 2].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (4, 1)])
def test_a_side_of_length_one_gives_zero(height: int, width: int) -> None:
    grid = coordinate_grid(height, width, with_radius=True)
    assert torch.isfinite(grid).all()
    torch.testing.assert_close(grid, reference_grid(height, width, with_radius=True, dtype=torch.float32))
    if height == 1:
        assert (grid[0, 0] == 0).all()
    if width == 1:
        assert (grid[0, 1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", [2, 84, 301])
def test_the_coordinates_are_rounded_once_in_every_dtype(dtype: torch.dtype, side: int) -> None:
    grid = coordinate_grid(side, 3, with_radius=True, dtype=dtype)
    assert grid.dtype == dtype
    # Half of the last place of a number near sqrt(2), plus what float32 itself may lose.
    allowed = torch.finfo(dtype).eps / 2 + (1e-15 if dtype == torch.float64 else 3e-7)
    assert (grid.double() - reference_grid(side, 3, with_radius=True)).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images_cannot_hold_coordinates(dtype: torch.dtype) -> None:
    with pytest.raises(RequestError, match=r"run from -1 to 1, which torch\.\w+ cannot hold; convert the images"):
        AddCoords()(torch.zeros(1, 1, 3, 3, dtype=dtype))


def test_add_coords_appends_the_coordinates_last_and_keeps_the_images() -> None:
    images = torch.randn(2, 3, 4, 5)
    appended = AddCoords()(images)
    assert appended.shape == (2, 5, 4, 5)
    assert torch.equal(appended[:, :3], images)
    torch.testing.assert_close(appended[:, 3:], reference_grid(4, 5, dtype=torch.float32).expand(2, -1, -1, -1))
    assert AddCoords(with_radius=True)(images).shape == (2, 6, 4, 5)


def test_add_coords_takes_a_single_image() -> None:
    image = torch.randn(3, 4, 5)
    layer = AddCoords(with_radius=True)
    assert torch.equal(layer(image), layer(image[None])[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_add_coords_keeps_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    assert AddCoords()(torch.zeros(1, 1, 3, 3, dtype=dtype)).dtype == dtype


def test_add_coords_takes_an_empty_batch_and_has_no_state() -> None:
    layer = AddCoords()
    assert layer(torch.zeros(0, 3, 4, 5)).shape == (0, 5, 4, 5)
    assert not layer.state_dict()


def test_add_coords_before_a_convolution_is_the_layer() -> None:
    layer = CoordConv2d(3, 4, 3, with_radius=True, dtype=torch.float64)
    images = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    pair = nn.Sequential(AddCoords(with_radius=True), layer.to_concatenated())
    torch.testing.assert_close(pair(images), layer(images), rtol=0, atol=1e-12)


# --- the same function as a convolution ----------------------------------------------------------------


@pytest.mark.parametrize(("stride", "dilation", "with_radius"), [(1, 1, True), (2, 1, False), (1, 2, True)])
def test_the_layer_equals_explicit_loops(stride: int, dilation: int, with_radius: bool) -> None:
    layer = CoordConv2d(2, 3, (3, 2), stride, 1, dilation, with_radius=with_radius, dtype=torch.float64)
    image = torch.randn(2, 5, 6, dtype=torch.float64)
    stack = torch.cat([image, reference_grid(5, 6, with_radius=with_radius)[0]])  # (channels, 5, 6)
    weight = torch.cat([layer.image.weight, layer.coordinates.weight], dim=1).detach()
    bias = layer.image.bias
    assert bias is not None
    actual = layer(image[None])[0]
    _, height, width = actual.shape
    expected = torch.zeros_like(actual)
    for filter_ in range(3):
        for row in range(height):
            for column in range(width):
                total = bias[filter_].item()
                for channel in range(stack.shape[0]):
                    for i in range(3):
                        for j in range(2):
                            y, x = row * stride + i * dilation - 1, column * stride + j * dilation - 1  # padding 1
                            if 0 <= y < 5 and 0 <= x < 6:
                                total += weight[filter_, channel, i, j].item() * stack[channel, y, x].item()
                expected[filter_, row, column] = total
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Case:
    """A layer's arguments and an image's shape."""

    shape: tuple[int, int, int, int]
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    bias: bool
    with_radius: bool
    padding_mode: str
    dtype: torch.dtype
    channels_last: bool
    seed: int

    def layer(self) -> CoordConv2d:
        torch.manual_seed(self.seed)
        return CoordConv2d(
            self.shape[1],
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias,
            with_radius=self.with_radius,
            padding_mode=self.padding_mode,
            dtype=self.dtype,
        )

    def images(self) -> Tensor:
        images = torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed)).to(self.dtype)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a layer and an image large enough for its kernel."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, dilation = draw(pairs), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride: tuple[int, int] = draw(pairs)
    padding: tuple[int, int] | str = draw(
        st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["same", "valid"]))
    )
    if padding == "same":  # PyTorch: no stride; it warns of even kernels, which have a test of their own
        stride, kernel = (1, 1), (kernel[0] | 1, kernel[1] | 1)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]  # the kernel's extent, less one
    added = reach if padding == "same" else [0, 0] if padding == "valid" else [2 * side for side in padding]
    # One pixel of output at least; "reflect" wants a side longer than its padding, "circular" no shorter.
    least = [max(1, r + 1 - a, 1 if mode == "zeros" else a // 2 + 1) for r, a in zip(reach, added, strict=True)]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return Case(
        shape=(
            draw(st.integers(1, 3)),
            groups * draw(st.integers(1, 2)),
            draw(st.integers(least[0], least[0] + 5)),
            draw(st.integers(least[1], least[1] + 5)),
        ),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        with_radius=draw(st.booleans()),
        padding_mode=mode,
        dtype=draw(st.sampled_from(list(TOLERANCE))),
        channels_last=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


@settings(COMMON, max_examples=160)
@given(case=cases())
def test_the_layer_equals_a_convolution_of_concatenated_grids(case: Case) -> None:
    layer = case.layer()
    images = case.images().requires_grad_()
    actual = layer(images)
    assert actual.dtype == case.dtype

    twin = plain_twin(layer)
    exact_images = images.detach().double().requires_grad_()
    grid = reference_grid(*case.shape[2:], with_radius=case.with_radius)
    reference = twin(concatenate(exact_images, grid, case.groups))
    assert_close(actual, reference, case.dtype)

    # The same cotangent for both; the gradients of every parameter and of the images.
    cotangent = torch.randn(actual.shape, generator=torch.Generator().manual_seed(case.seed)).to(case.dtype)
    actual.backward(cotangent)
    reference.backward(cotangent.double())
    assert images.grad is not None
    assert exact_images.grad is not None
    assert twin.weight.grad is not None
    inside = case.shape[1] // case.groups  # the image's channels of one group
    assert_close(images.grad, exact_images.grad, case.dtype)
    assert layer.image.weight.grad is not None
    assert_close(layer.image.weight.grad, twin.weight.grad[:, :inside], case.dtype)
    assert layer.coordinates.weight.grad is not None
    assert_close(layer.coordinates.weight.grad, twin.weight.grad[:, inside:], case.dtype)
    if case.bias:
        assert layer.image.bias is not None
        assert layer.image.bias.grad is not None
        assert twin.bias is not None
        assert twin.bias.grad is not None
        assert_close(layer.image.bias.grad, twin.bias.grad, case.dtype)


def test_the_drawn_cases_include_the_corners() -> None:
    seen: list[Case] = []

    @settings(COMMON, max_examples=160)
    @given(case=cases())
    def collect(case: Case) -> None:
        seen.append(case)

    collect()
    assert {case.padding for case in seen} >= {"same", "valid", (0, 0)}
    assert {case.padding_mode for case in seen if case.padding not in ("valid", (0, 0))} >= {"reflect", "circular"}
    assert {case.groups for case in seen} == {1, 2, 3}
    assert {case.dtype for case in seen} == set(TOLERANCE)
    assert {(case.bias, case.with_radius) for case in seen} == {(a, b) for a in (True, False) for b in (True, False)}
    assert any(case.shape[2] == 1 for case in seen)
    assert any(case.shape[3] == 1 for case in seen)
    assert any(case.shape[2] != case.shape[3] for case in seen)
    assert any(case.channels_last for case in seen)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch says so of its own Conv2d
def test_same_padding_with_an_even_kernel_equals_the_convolution_too() -> None:
    layer = CoordConv2d(2, 3, (2, 4), padding="same", dtype=torch.float64)
    images = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    assert layer(images).shape == (2, 3, 5, 6)
    assert_close(layer(images), plain(layer, images), torch.float64)


def test_the_gradients_pass_gradcheck() -> None:
    layer = CoordConv2d(2, 4, (3, 2), (1, 2), 1, groups=2, with_radius=True, dtype=torch.float64)
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(images: Tensor, *parameters: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (images,))
        return result

    images = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert set(names) == {"image.weight", "image.bias", "coordinates.weight"}
    assert torch.autograd.gradcheck(function, (images, *values))


def test_with_zero_coordinate_weights_the_layer_is_the_plain_convolution_to_the_bit() -> None:
    layer = CoordConv2d(4, 8, 3, 2, 1, with_radius=True)
    nn.init.zeros_(layer.coordinates.weight)
    images = torch.randn(3, 4, 9, 11)
    expected = functional.conv2d(images, layer.image.weight, layer.image.bias, stride=2, padding=1)
    assert torch.equal(layer(images), expected)


def test_every_group_sees_the_coordinates() -> None:
    layer = CoordConv2d(4, 6, 3, groups=2, bias=False)
    nn.init.zeros_(layer.image.weight)
    planes = layer(torch.randn(1, 4, 8, 8))[0]
    assert all(plane.std() > 0 for plane in planes)


def test_the_coordinates_depend_on_the_place_and_not_on_the_sample() -> None:
    layer = CoordConv2d(2, 3, 3)
    images = torch.zeros(2, 2, 6, 7)
    first, second = layer(images)
    assert torch.equal(first, second)
    assert first.std(dim=(1, 2)).min() > 0


def test_a_single_image_without_the_batch_side_is_taken() -> None:
    layer = CoordConv2d(3, 4, 3, padding=1, with_radius=True)
    image = torch.randn(3, 5, 7)
    assert layer(image).shape == (4, 5, 7)
    torch.testing.assert_close(layer(image), layer(image[None])[0])


def test_an_empty_batch_gives_an_empty_batch() -> None:
    assert CoordConv2d(3, 4, 3)(torch.zeros(0, 3, 5, 7)).shape == (0, 4, 3, 5)


@pytest.mark.parametrize("batch", [1, 3])
def test_channels_last_images_give_channels_last_features(batch: int) -> None:
    layer = CoordConv2d(3, 4, 3)
    images = torch.randn(batch, 3, 6, 7)
    expected = layer(images)
    assert expected.is_contiguous()
    actual = layer(images.contiguous(memory_format=torch.channels_last))
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert not actual.is_contiguous()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_layer_moved_to_channels_last_computes_the_same() -> None:
    layer = CoordConv2d(3, 4, 3, with_radius=True)
    images = torch.randn(2, 3, 6, 7)
    expected = layer(images)
    moved = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_bfloat16_and_trains_float32_weights(images_dtype: torch.dtype) -> None:
    layer = CoordConv2d(4, 8, 3, padding=1, with_radius=True)
    images = torch.randn(2, 4, 9, 9).to(images_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(images)
    assert actual.dtype == torch.bfloat16
    assert_close(actual, plain(layer, images), torch.bfloat16)
    actual.float().square().mean().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0


def test_another_grid_replaces_the_coordinates() -> None:
    def ones(
        height: int,
        width: int,
        *,
        with_radius: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        return torch.ones(1, 3 if with_radius else 2, height, width, device=device, dtype=dtype)

    layer = CoordConv2d(2, 3, 3, with_radius=True, grid=ones, dtype=torch.float64)
    images = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    stack = concatenate(images, torch.ones(1, 3, 5, 6, dtype=torch.float64))
    torch.testing.assert_close(layer(images), plain_twin(layer)(stack), rtol=0, atol=1e-12)


# --- the plane of the coordinates, made in two ways -----------------------------------------------------


def hook(module: nn.Module, arguments: object) -> None:
    """Look on; its presence alone makes the layer call its coordinate half as a module."""


def gradients(layer: CoordConv2d, images: Tensor) -> list[Tensor]:
    layer.zero_grad()
    layer(images).square().sum().backward()
    return [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("geometry", [(8, 4, 0, 1), ((3, 2), (1, 2), (1, 0), (1, 2)), (1, 3, 2, 1)])
def test_the_kept_patches_give_what_the_coordinate_half_gives_as_a_convolution(
    geometry: tuple[Any, Any, Any, Any], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    layer = CoordConv2d(2, 5, *geometry, with_radius=True, dtype=dtype)
    images = torch.randn(3, 2, 13, 17, dtype=dtype).contiguous(memory_format=layout)
    kept, kept_gradients = layer(images), gradients(layer, images)
    layer.coordinates.register_forward_pre_hook(hook)
    torch.testing.assert_close(layer(images), kept, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients(layer, images), kept_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert kept.is_contiguous(memory_format=layout)


def test_a_weight_that_changes_without_notice_changes_the_plane() -> None:
    layer = CoordConv2d(1, 2, 3)
    images = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        before = layer(images)
        layer.coordinates.weight.data.mul_(2)  # as SB3's polyak_update writes: torch counts no new version
        assert not torch.allclose(layer(images), before)


def test_pruning_and_other_hooks_on_the_coordinate_half_take_effect() -> None:
    layer = CoordConv2d(1, 2, 3)
    images = torch.randn(2, 1, 6, 6)
    prune.l1_unstructured(layer.coordinates, "weight", amount=1.0)
    torch.testing.assert_close(layer(images), layer.image(images))
    layer(images).sum().backward()
    layer(images).sum().backward()  # the weight is made anew at each call


def test_a_hook_of_all_modules_and_a_replaced_method_reach_the_coordinate_half_too() -> None:
    layer = CoordConv2d(1, 2, 3)
    images = torch.randn(2, 1, 6, 6)
    with nn.modules.module.register_module_forward_hook(lambda module, given, output: output * 0):
        assert not layer(images).any()
    layer.coordinates.forward = lambda grid: torch.zeros(1, 2, 4, 4)  # type: ignore[method-assign]
    torch.testing.assert_close(layer(images), layer.image(images))


def test_a_parametrised_coordinate_half_is_used_as_it_is() -> None:
    layer = CoordConv2d(1, 2, 3)
    images = torch.randn(2, 1, 6, 6)
    expected = layer(images)
    parametrizations.weight_norm(layer.coordinates)
    torch.testing.assert_close(layer(images), expected)


def test_a_first_call_under_fake_tensors_or_a_transform_spoils_no_later_one() -> None:
    layer = CoordConv2d(1, 2, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(2, 1, 7, 9)).shape == (2, 2, 5, 7)
    images = torch.randn(3, 2, 1, 9, 11)
    mapped = torch.func.vmap(layer)(images)
    torch.testing.assert_close(mapped, torch.stack([layer(batch) for batch in images]))

    def total(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, parameters, (images,)).square().sum()
        return result

    images = torch.randn(2, 1, 10, 12)
    found = torch.func.grad(total)(dict(layer.named_parameters()), images)
    for mine, theirs in zip(gradients(layer, images), found.values(), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(layer(torch.zeros(2, 1, 7, 9)).double(), plain(layer, torch.zeros(2, 1, 7, 9)))


def test_patches_too_large_to_keep_are_not_made() -> None:
    assert grid_patches(coordinate_grid, 400, 400, False, torch.float32, ((3, 3), (1, 1), (0, 0), (1, 1))) is None
    layer = CoordConv2d(1, 2, 3)
    images = torch.randn(1, 1, 400, 400)
    assert_close(layer(images), plain(layer, images), torch.float32)


# --- living with the rest of PyTorch --------------------------------------------------------------------


def test_the_layer_has_three_parameters_and_no_buffers() -> None:
    layer = CoordConv2d(4, 32, 8, 4, with_radius=True)
    layer(torch.randn(1, 4, 20, 20))
    assert [name for name, _ in layer.named_buffers()] == []
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "image.weight": (32, 4, 8, 8),
        "image.bias": (32,),
        "coordinates.weight": (32, 3, 8, 8),
    }
    assert set(CoordConv2d(4, 32, 8, bias=False).state_dict()) == {"image.weight", "coordinates.weight"}


def test_the_image_half_is_initialised_as_a_plain_convolution() -> None:
    torch.manual_seed(7)
    plain_conv = nn.Conv2d(4, 8, 3)
    torch.manual_seed(7)
    layer = CoordConv2d(4, 8, 3)
    assert torch.equal(layer.image.weight, plain_conv.weight)
    assert layer.image.bias is not None
    assert plain_conv.bias is not None
    assert torch.equal(layer.image.bias, plain_conv.bias)
    assert layer.coordinates.weight.abs().max() > 0


def test_the_arguments_are_those_of_conv2d_in_the_same_order() -> None:
    layer = CoordConv2d(4, 6, (3, 5), (2, 1), (1, 2), (1, 2), 2, False)
    image = layer.image
    assert (image.in_channels, image.out_channels, image.kernel_size, image.stride) == (4, 6, (3, 5), (2, 1))
    assert (image.padding, image.dilation, image.groups, image.bias) == ((1, 2), (1, 2), 2, None)
    assert "with_radius=False" in repr(layer)


def test_a_state_dict_is_loaded_strictly_and_at_another_image_size() -> None:
    layer, other = CoordConv2d(3, 4, 3, padding=1), CoordConv2d(3, 4, 3, padding=1)
    layer(torch.randn(1, 3, 5, 5))  # having seen one size must not matter
    images = torch.randn(2, 3, 9, 7)
    assert not torch.equal(layer(images), other(images))
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(layer(images), other(images))
    assert_close(other(images), plain(layer, images), torch.float32)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_of_the_layer_is_equal_and_independent(how: str) -> None:
    def copied(layer: CoordConv2d) -> Any:
        if how == "deepcopy":
            return copy.deepcopy(layer)
        if how == "pickle":
            return pickle.loads(pickle.dumps(layer))  # noqa: S301 - our own bytes
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    layer = CoordConv2d(3, 4, 3, with_radius=True).eval()
    images = torch.randn(2, 3, 6, 5)
    layer(images).sum().backward()  # a layer that has been trained
    expected = layer(images)
    twin = copied(layer)
    assert isinstance(twin, CoordConv2d)
    assert not twin.training
    assert torch.equal(twin(images), expected)
    with torch.no_grad():
        twin.coordinates.weight.add_(1)
    assert torch.equal(layer(images), expected)
    assert not torch.equal(twin(images), expected)


def test_the_layer_runs_on_another_device() -> None:
    layer = CoordConv2d(3, 4, 3, device="meta")
    assert layer(torch.empty(2, 3, 6, 5, device="meta")).shape == (2, 4, 4, 3)
    assert layer(torch.empty(2, 3, 6, 5, device="meta")).device.type == "meta"


def check_compiled(backend: str) -> None:
    """Compile the layer into one graph; forward, gradients and a second image size must be the same."""
    torch._dynamo.reset()
    layer = CoordConv2d(3, 4, 3, 2, 1, with_radius=True)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend=backend)
    for shape in [(2, 3, 9, 8), (4, 3, 6, 11)]:
        images = torch.randn(shape)
        layer.zero_grad()
        compiled.zero_grad()
        expected, actual = layer(images), compiled(images)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        expected.square().sum().backward()
        actual.square().sum().backward()
        for mine, theirs in zip(compiled.parameters(), layer.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_the_layer_compiles_into_one_graph() -> None:
    check_compiled("aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # Inductor's own imports
def test_the_layer_compiles_with_inductor() -> None:
    check_compiled("inductor")


def test_the_layer_is_exported_with_a_dynamic_batch() -> None:
    layer = CoordConv2d(3, 4, 3, with_radius=True).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(layer, (torch.randn(2, 3, 6, 7),), dynamic_shapes={"images": {0: batch}})
    exported = program.module()
    for size in (1, 2, 5):
        images = torch.randn(size, 3, 6, 7)
        torch.testing.assert_close(exported(images), layer(images))
    assert set(program.state_dict) == set(layer.state_dict())


def test_an_export_survives_its_file_and_leaves_the_layer_as_it_was() -> None:
    layer = CoordConv2d(3, 4, 3).eval()
    images = torch.randn(2, 3, 6, 7)
    expected = layer(images)
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, (images,)), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(images), expected)
    assert torch.equal(layer(images), expected)
    assert torch.equal(copy.deepcopy(layer)(images), expected)


# --- transposed convolutions ----------------------------------------------------------------------------


def transposed_twin(layer: CoordConvTranspose2d) -> nn.ConvTranspose2d:
    """Return the float64 `nn.ConvTranspose2d` over (per group) concatenated channels with the same weights."""
    image = layer.image
    groups, extra = image.groups, layer.coordinates.in_channels
    conv = nn.ConvTranspose2d(
        image.in_channels + groups * extra,
        image.out_channels,
        image.kernel_size,
        image.stride,
        image.padding,
        image.output_padding,
        groups,
        image.bias is not None,
        image.dilation,
        dtype=torch.float64,
    )
    ours = image.weight.chunk(groups, dim=0)  # (in_channels / groups, out_channels / groups, kh, kw) each
    theirs = layer.coordinates.weight.chunk(groups, dim=1)  # (2 or 3, out_channels / groups, kh, kw) each
    with torch.no_grad():
        conv.weight.copy_(torch.cat([part for pair in zip(ours, theirs, strict=True) for part in pair], dim=0))
        if image.bias is not None:
            conv.bias.copy_(image.bias)
    return conv


@st.composite
def transposed_cases(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    """Draw a transposed layer's arguments and an image's shape."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride = draw(pairs), draw(pairs)
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    # PyTorch: less than the stride or the dilation; and here no padding beyond the kernel, so that pixels are left.
    output_padding = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    padding = tuple(draw(st.integers(0, d * (k - 1) // 2)) for k, d in zip(kernel, dilation, strict=True))
    groups = draw(st.integers(1, 3))
    arguments = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "bias": draw(st.booleans()),
        "dilation": dilation,
        "with_radius": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16])),
    }
    shape = (draw(st.integers(1, 2)), arguments["in_channels"], draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    return arguments, shape


@settings(COMMON, max_examples=80)
@given(case=transposed_cases())
def test_the_transposed_layer_equals_a_transposed_convolution_of_concatenated_grids(
    case: tuple[dict[str, Any], tuple[int, int, int, int]],
) -> None:
    arguments, shape = case
    torch.manual_seed(1)
    dtype, groups = arguments["dtype"], arguments["groups"]
    layer = CoordConvTranspose2d(**arguments)
    images = torch.randn(shape).to(dtype).requires_grad_()
    actual = layer(images)
    assert actual.dtype == dtype

    twin = transposed_twin(layer)
    exact_images = images.detach().double().requires_grad_()
    grid = reference_grid(*shape[2:], with_radius=arguments["with_radius"])
    reference = twin(concatenate(exact_images, grid, groups))
    assert_close(actual, reference, dtype)

    cotangent = torch.randn(actual.shape).to(dtype)
    actual.backward(cotangent)
    reference.backward(cotangent.double())
    assert images.grad is not None
    assert exact_images.grad is not None
    assert_close(images.grad, exact_images.grad, dtype)
    mine = [parameter.grad for parameter in (layer.image.weight, layer.coordinates.weight)]
    assert mine[0] is not None
    assert mine[1] is not None
    assert twin.weight.grad is not None
    extra = layer.coordinates.in_channels
    per_group = [part.split([part.shape[0] - extra, extra]) for part in twin.weight.grad.chunk(groups, dim=0)]
    assert_close(mine[0], torch.cat([image for image, _ in per_group], dim=0), dtype)
    assert_close(mine[1], torch.cat([coordinates for _, coordinates in per_group], dim=1), dtype)


@pytest.mark.parametrize("size", [[11, 12], [12, 11], [2, 4, 11, 12]])
def test_the_transposed_layer_takes_an_output_size(size: list[int]) -> None:
    layer = CoordConvTranspose2d(3, 4, 3, stride=2, padding=1, with_radius=True, dtype=torch.float64)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    actual = layer(images, output_size=size)
    assert list(actual.shape) == [2, 4, *size[-2:]]
    expected = transposed_twin(layer)(concatenate(images, reference_grid(6, 6, with_radius=True)), size)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_the_transposed_layer_takes_a_single_image() -> None:
    layer = CoordConvTranspose2d(3, 4, 3, stride=2)
    image = torch.randn(3, 5, 4)
    torch.testing.assert_close(layer(image), layer(image[None])[0])
    assert layer(image, output_size=[12, 10]).shape == (4, 12, 10)


def test_the_transposed_layer_copies_pickles_and_loads_like_any_other() -> None:
    layer, other = CoordConvTranspose2d(2, 3, 3, with_radius=True), CoordConvTranspose2d(2, 3, 3, with_radius=True)
    images = torch.randn(2, 2, 4, 5)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert set(layer.state_dict()) == {"image.weight", "image.bias", "coordinates.weight"}
    assert not list(layer.buffers())
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301 - our own bytes
        assert torch.equal(twin(images), layer(images))
    assert "with_radius=True" in repr(layer)
    channels_last = layer(images.contiguous(memory_format=torch.channels_last))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


# --- other libraries' layout ------------------------------------------------------------------------------


@pytest.mark.parametrize("with_radius", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_the_concatenated_layout_goes_there_and_back(with_radius: bool, groups: int, bias: bool) -> None:
    layer = CoordConv2d(
        4, 6, (3, 2), (1, 2), (0, 1), (2, 1), groups, bias, with_radius=with_radius, padding_mode="circular"
    ).eval()
    joined = layer.to_concatenated()
    images = torch.randn(2, 4, 7, 6)
    stack = concatenate(images, reference_grid(7, 6, with_radius=with_radius), groups)
    torch.testing.assert_close(joined(stack), layer(images), rtol=1e-5, atol=1e-6)
    assert not joined.training

    order = ("row", "column", "radius") if with_radius else ("row", "column")
    back = CoordConv2d.from_concatenated(joined, order=order)
    assert not back.training
    assert back.with_radius == with_radius
    for name, value in layer.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    assert torch.equal(back(images), layer(images))


@pytest.mark.parametrize(
    "order",
    [("column", "row"), ("row", "column"), ("column", "row", "radius"), ("radius", "column", "row")],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_third_party_weights_are_read_in_their_own_order(order: tuple[str, ...], groups: int) -> None:
    names = ("row", "column", "radius")
    grid = reference_grid(6, 9, with_radius=True)[:, [names.index(name) for name in order]]
    conv = nn.Conv2d(groups * (2 + len(order)), 6, 3, padding=1, groups=groups, dtype=torch.float64)
    images = torch.randn(2, 2 * groups, 6, 9, dtype=torch.float64)
    layer = CoordConv2d.from_concatenated(conv, order=order)
    torch.testing.assert_close(layer(images), conv(concatenate(images, grid, groups)), rtol=0, atol=1e-12)


def test_the_converted_layer_has_weights_of_its_own_in_the_same_dtype() -> None:
    conv = nn.Conv2d(5, 6, 3, padding="same", dtype=torch.bfloat16)
    layer = CoordConv2d.from_concatenated(conv)
    assert layer.image.padding == "same"
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    before = conv.weight.clone()
    with torch.no_grad():
        layer.image.weight.zero_()
    assert torch.equal(conv.weight, before)
    assert layer.to_concatenated().padding == "same"
    assert layer.to_concatenated().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("order", [("row",), ("row", "row"), ("x", "y"), ("row", "radius"), ()])
def test_an_order_that_names_other_coordinates_is_refused(order: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"order is \[.*\]; it names row and column, and radius if there is one"):
        CoordConv2d.from_concatenated(nn.Conv2d(5, 6, 3), order=order)


def test_a_convolution_with_no_channel_left_for_the_image_is_refused() -> None:
    message = r"has 4 input channels; with 2 coordinates in each of its 2 groups none is left"
    with pytest.raises(RequestError, match=message):
        CoordConv2d.from_concatenated(nn.Conv2d(4, 6, 3, groups=2))


# --- around ---------------------------------------------------------------------------------------------


def test_a_layer_around_a_convolution_takes_it_in_as_the_image_half() -> None:
    conv = nn.Conv2d(3, 4, (3, 2), (2, 1), 1, bias=False, padding_mode="reflect").eval()
    layer = CoordConv2d.around(conv, with_radius=True)
    assert layer.image is conv
    assert not layer.training
    assert not layer.coordinates.training
    assert layer.coordinates.padding_mode == "reflect"
    images = torch.randn(2, 3, 6, 5)
    assert torch.equal(layer(images), conv(images))
    other = CoordConv2d.around(conv, zero=False)
    assert other.coordinates.weight.abs().max() > 0
    assert_close(other(images), plain(other, images), torch.float32)


# --- convert ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A convolution inside a module inside a model."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = images + self.conv(self.norm(images))
        return result


class Model(nn.Module):
    """Four convolutions: plain, nested, in a list and in a dictionary; and one transposed, which is none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, padding=1)
        self.blocks = nn.ModuleList([Block(), nn.Sequential(nn.ReLU(), Block())])
        self.heads = nn.ModuleDict({"mean": nn.Conv2d(4, 2, 1)})
        self.up = nn.ConvTranspose2d(2, 2, 2, 2)
        self.empty = None

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.stem(images))
        for block in self.blocks:
            hidden = block(hidden)
        result: Tensor = self.up(self.heads["mean"](hidden))
        return result


NAMES = ["stem", "blocks.0.conv", "blocks.1.1.conv", "heads.mean"]


def coordinate_layers(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, CoordConv2d)]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("first", ["stem"]),
        ("all", NAMES),
        (["blocks.0.conv", "heads.mean"], ["blocks.0.conv", "heads.mean"]),
        (dict.fromkeys(["blocks.1.1.conv"]).keys(), ["blocks.1.1.conv"]),
        (lambda name, conv: "blocks" in name and conv.groups == 2, ["blocks.0.conv", "blocks.1.1.conv"]),
    ],
    ids=["first", "all", "names", "any iterable", "a function"],
)
@pytest.mark.parametrize("with_radius", [False, True])
def test_a_converted_model_computes_the_same_until_it_is_trained(
    which: Any, expected: list[str], with_radius: bool
) -> None:
    model = Model()
    images = torch.randn(2, 3, 8, 9)
    before = model(images)
    parameters = dict(model.named_parameters())
    converted = convert(model, which, with_radius=with_radius)
    assert converted is model
    assert coordinate_layers(model) == expected
    assert torch.equal(model(images), before)
    for name in expected:
        layer = model.get_submodule(name)
        assert isinstance(layer, CoordConv2d)
        assert layer.image.weight is parameters[f"{name}.weight"]  # the same object, not a copy
        assert layer.coordinates.weight.shape[1] == (3 if with_radius else 2)
        assert (layer.coordinates.weight == 0).all()

    model(images).square().sum().backward()
    for name in expected:
        layer = model.get_submodule(name)
        assert isinstance(layer, CoordConv2d)
        assert layer.coordinates.weight.grad is not None
        assert layer.coordinates.weight.grad.abs().max() > 0
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert not torch.allclose(model(images), before)
    assert all((model.get_submodule(f"{name}.coordinates").weight != 0).any() for name in expected)


def test_convert_is_for_the_first_layer_unless_told_otherwise() -> None:
    assert coordinate_layers(coordrl.convert(Model())) == ["stem"]


def test_a_convolution_that_two_parents_share_stays_shared() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Sequential(shared), nn.ReLU(), nn.Sequential(shared, nn.Tanh()), shared)
    images = torch.randn(2, 4, 5, 6)
    before = model(images)
    convert(model, "first")
    layers = [model.get_submodule(name) for name in ("0.0", "2.0", "3")]
    assert isinstance(layers[0], CoordConv2d)
    assert layers[0] is layers[1] is layers[2]
    assert torch.equal(model(images), before)
    assert len(list(model.parameters())) == 3


def test_a_convolution_that_one_parent_holds_twice_stays_shared() -> None:
    model = nn.Sequential()
    model.add_module("one", nn.Conv2d(4, 4, 3))
    model.add_module("two", model.one)
    convert(model, "all")
    assert isinstance(model.one, CoordConv2d)
    assert model.one is model.two


def test_a_convolution_on_its_own_comes_back_as_a_layer() -> None:
    for which in ("first", "all", [""], lambda name, conv: True):
        conv = nn.Conv2d(3, 4, 3)
        layer = convert(conv, which)
        assert isinstance(layer, CoordConv2d)
        assert layer.image is conv


def test_a_layer_that_sees_coordinates_is_not_converted_again() -> None:
    model = nn.Sequential(CoordConv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3))
    first = model[0]
    convert(model, "first")
    assert coordinate_layers(model) == ["0", "1"]
    convert(model, "all")
    assert model[0] is first
    assert coordinate_layers(model) == ["0", "1", "2"]
    assert all(type(layer.image) is nn.Conv2d for layer in model)
    with pytest.raises(RequestError, match="no Conv2d was chosen; this model has none"):
        convert(model, "all")
    with pytest.raises(RequestError, match=r'"0\.image" is no Conv2d of this model'):
        convert(model, ["0.image"])
    with pytest.raises(RequestError, match="no Conv2d was chosen"):
        convert(CoordConv2d(3, 4, 3))


def test_the_image_half_of_a_layer_stays_plain_where_it_is_used_elsewhere_too() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(CoordConv2d.around(conv), conv)
    convert(model, "all")
    assert model[0].image is conv
    assert isinstance(model[1], CoordConv2d)
    assert model[1].image is conv
    assert model(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)


def test_dtype_device_mode_hooks_and_frozen_weights_are_kept() -> None:
    conv = nn.Conv2d(3, 4, 3, dtype=torch.float64, device="meta").eval().requires_grad_(False)
    layer = convert(conv)
    assert isinstance(layer, CoordConv2d)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert not layer.training
    assert not layer.image.training
    assert not layer.coordinates.training
    assert not layer.image.weight.requires_grad
    assert layer.image.bias is not None
    assert not layer.image.bias.requires_grad
    assert layer.coordinates.weight.requires_grad

    model = Model()
    model.stem.train(False)
    calls: list[int] = []
    model.stem.register_forward_hook(lambda *_: calls.append(1))
    convert(model, "all")
    model(torch.randn(1, 3, 6, 6))
    assert calls == [1]
    assert model.training
    assert not model.stem.training
    assert model.blocks[0].conv.training


def test_the_keys_of_a_converted_state_dict_name_both_halves() -> None:
    model = Model()
    convert(model)
    keys = [key for key in model.state_dict() if key.startswith("stem")]
    assert keys == ["stem.image.weight", "stem.image.bias", "stem.coordinates.weight"]
    other = Model()
    convert(other)
    other.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(1, 3, 6, 6)
    assert torch.equal(other(images), model(images))


def test_an_unknown_name_is_refused_with_the_closest_one() -> None:
    model = Model()
    with pytest.raises(RequestError, match=r'"steam" is no Conv2d of this model; did you mean stem\?'):
        convert(model, ["blocks.0.conv", "steam"])
    with pytest.raises(RequestError, match=r'"up" is no Conv2d of this model'):  # it is there, but transposed
        convert(model, ["up"])
    assert coordinate_layers(model) == []  # nothing half done


def test_a_choice_of_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match=r"no Conv2d was chosen; this model has \['stem', 'blocks.0.conv'"):
        convert(Model(), lambda name, conv: False)
    with pytest.raises(RequestError, match="no Conv2d was chosen"):
        convert(Model(), [])
    with pytest.raises(RequestError, match="no Conv2d was chosen; this model has none"):
        convert(nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize("which", ["stem", "last", ""])
def test_a_single_name_instead_of_a_list_is_refused(which: str) -> None:
    with pytest.raises(RequestError, match=rf'which is "{which}"; it is "first", "all", a list of names'):
        convert(Model(), which)


class SamePadded(nn.Conv2d):
    """Pads by itself, as image models' layers do."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(images, (1, 1, 1, 1)))


def test_a_convolution_with_a_way_of_its_own_is_not_converted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), SamePadded(2, 2, 3))
    with pytest.raises(RequestError, match='"1" is a SamePadded, which convolves in its own way; choose others'):
        convert(model, "all")
    assert type(model[0]) is nn.Conv2d
    assert isinstance(convert(model)[0], CoordConv2d)


def test_a_lazy_convolution_has_to_be_run_before_it_is_converted() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(
        RequestError, match='"0" is a lazy convolution without a size yet; run the model once'
    ) as caught:
        convert(model)
    assert isinstance(caught.value, CoordrlError | ValueError)
    assert caught.value.exit_code == 2
    images = torch.randn(1, 3, 5, 5)
    before = model(images)
    assert torch.equal(convert(model)(images), before)
    assert isinstance(model[0], CoordConv2d)


@pytest.mark.parametrize("side", range(1, 60))
def test_coordinates_are_exactly_symmetric_and_end_at_one(side: int) -> None:
    row = coordinate_grid(side, 3)[0, 0, :, 0]
    assert torch.equal(row, -row.flip(0))
    assert row[-1] == (1.0 if side > 1 else 0.0)


@pytest.mark.parametrize("order", [("row", "column"), ("column", "row"), ("radius", "column", "row")])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_layer_exchanges_weights_with_the_concatenated_layout(order: tuple[str, ...], groups: int) -> None:
    torch.manual_seed(0)
    other = nn.ConvTranspose2d(4 + groups * len(order), 6, 3, stride=2, padding=1, output_padding=1, groups=groups)
    layer = CoordConvTranspose2d.from_concatenated(other, order=order)
    images = torch.randn(2, 4, 5, 7)
    grid = coordinate_grid(5, 7, with_radius=True)[:, [("row", "column", "radius").index(name) for name in order]]
    inputs = torch.cat([part for group in images.chunk(groups, 1) for part in (group, grid.expand(2, -1, -1, -1))], 1)
    torch.testing.assert_close(layer(images), other(inputs))
    back = CoordConvTranspose2d.from_concatenated(
        layer.to_concatenated(), order=("row", "column", "radius")[: len(order)]
    )
    assert all(torch.equal(one, two) for one, two in zip(layer.parameters(), back.parameters(), strict=True))
    with pytest.raises(RequestError, match="order is"):
        CoordConvTranspose2d.from_concatenated(other, order=("row",))


@pytest.mark.parametrize("kind", ["append", "convolution", "transposed"])
def test_an_exported_layer_takes_images_of_other_sizes(kind: str) -> None:
    layer: nn.Module = {
        "append": AddCoords(with_radius=True),
        "convolution": CoordConv2d(3, 4, 3, stride=2, with_radius=True),
        "transposed": CoordConvTranspose2d(3, 4, 3),
    }[kind].eval()
    sides = {2: torch.export.Dim("height", min=6), 3: torch.export.Dim("width", min=6)}
    exported = torch.export.export(layer, (torch.rand(2, 3, 12, 12),), dynamic_shapes=(sides,)).module()
    images = torch.rand(2, 3, 11, 17)
    torch.testing.assert_close(exported(images), layer(images))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sides are numbers of Python's in any layer's grid
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_a_traced_layer_keeps_no_patches_of_the_size_that_was_traced() -> None:
    layer = CoordConv2d(3, 4, 3, stride=2).eval()
    traced = torch.jit.trace(layer, (torch.rand(2, 3, 12, 12),))
    images = torch.rand(2, 3, 11, 11)
    torch.testing.assert_close(traced(images), layer(images))
