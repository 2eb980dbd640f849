"""Every extractor, under every SB3 algorithm with a CnnPolicy: right network, right function, saved and loaded."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn

import coordrl
from coordrl import CoordConv2d, convert, policy_kwargs
from coordrl.errors import RequestError
from coordrl.extractors import EXTRACTORS, CoordNatureCNN, PoolCNN, constant_grid, shuffled_grid
from coordrl.grids import coordinate_grid
from coordrl.suites import EXTRACTOR_SUMMARIES

# The convolutions that see coordinates, and how many coordinates they see.
LAYERS = {
    "nature": ([], 0),
    "coord": (["cnn.0"], 2),
    "coord-r": (["cnn.0"], 3),
    "coord-all": (["cnn.0", "cnn.2", "cnn.4"], 2),
    "shuffled": (["cnn.0"], 2),
    "constant": (["cnn.0"], 2),
    "pool": ([], 0),
    "coord-pool": (["cnn.0"], 2),
}
POOLS = ("pool", "coord-pool")
WITH_COORDINATES = [name for name, (layers, _) in LAYERS.items() if layers]


@dataclass(frozen=True)
class Recipe:
    """An algorithm and hyper-parameters, none of them a default, with which 64 steps take no time."""

    algorithm: type[BaseAlgorithm]
    options: dict[str, Any]


_OFF_POLICY = {
    "buffer_size": 96,
    "learning_starts": 24,
    "batch_size": 6,
    "train_freq": 8,
    "target_update_interval": 20,
    "learning_rate": 2e-4,
    "gamma": 0.9,
}
RECIPES = {
    "A2C": Recipe(A2C, {"n_steps": 8, "learning_rate": 1e-3, "gamma": 0.9, "vf_coef": 0.25, "ent_coef": 0.01}),
    "PPO": Recipe(PPO, {"n_steps": 16, "batch_size": 8, "n_epochs": 1, "learning_rate": 1e-3, "gamma": 0.9}),
    "DQN": Recipe(DQN, _OFF_POLICY),
    "QRDQN": Recipe(QRDQN, _OFF_POLICY),
    "coordrl.A2C": Recipe(coordrl.A2C, {"n_steps": 8, "learning_rate": 1e-3, "gamma": 0.9}),
    "coordrl.DQN": Recipe(
        coordrl.DQN, {**_OFF_POLICY, "double": True, "dueling": True, "prioritized": True, "n_steps": 3, "fast": True}
    ),
}


class Pixels(gymnasium.Env[np.ndarray, int]):
    """Images of noise; reward for the action that the first pixel names. Six steps per episode."""

    def __init__(self, shape: tuple[int, int, int], dtype: type[np.generic] = np.uint8) -> None:
        self.is_bytes = dtype == np.uint8
        self.observation_space = spaces.Box(0, 255 if self.is_bytes else 1, shape, dtype)
        self.action_space = spaces.Discrete(3)

    def _look(self) -> np.ndarray:
        shape = self.observation_space.shape
        assert shape is not None
        noise = self.np_random.integers(0, 256, shape, dtype=np.uint8)
        self.image = noise if self.is_bytes else (noise / 255).astype(np.float32)
        return self.image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = 6
        return self._look(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        pixel = self.image.flat[0] / (256 if self.is_bytes else 1.01)
        reward = 1.0 if action == int(3 * pixel) else -0.5
        self.left -= 1
        return self._look(), reward, self.left == 0, False, {}


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def image_space(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def float_space(*shape: int) -> spaces.Box:
    return spaces.Box(0, 1, shape, np.float32)


def smallest_shape(extractor: str) -> tuple[int, int, int]:
    """Return the cheapest image for a test of the extractor."""
    return (4, 12, 12) if extractor in POOLS else (4, 36, 36)


def build(extractor: str, *shape: int, **options: Any) -> CoordNatureCNN | PoolCNN:
    """Build an extractor alone, as SB3 does."""
    found = EXTRACTORS[extractor]
    network = found.features_extractor_class(
        image_space(*(shape or smallest_shape(extractor))), **found.features_extractor_kwargs, **options
    )
    assert isinstance(network, CoordNatureCNN | PoolCNN)
    return network


def model_of(algorithm: str, extractor: str, **options: Any) -> BaseAlgorithm:
    """Build an SB3 model on a small environment of images."""
    recipe = RECIPES[algorithm]
    env = Pixels(smallest_shape(extractor))
    kwargs = {"policy_kwargs": policy_kwargs(extractor), "seed": 0, "device": "cpu", **recipe.options, **options}
    return recipe.algorithm("CnnPolicy", env, **kwargs)


def extractors_of(model: BaseAlgorithm) -> list[nn.Module]:
    """Return every distinct feature extractor of a policy (two where there is a target network)."""
    return [module for module in model.policy.modules() if isinstance(module, CoordNatureCNN | PoolCNN)]


def trained_extractor(model: BaseAlgorithm) -> nn.Module:
    return extractors_of(model)[0]


def coordinate_layers(module: nn.Module) -> dict[str, CoordConv2d]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, CoordConv2d)}


def first_layer(module: nn.Module) -> CoordConv2d:
    return next(iter(coordinate_layers(module).values()))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def heads(model: BaseAlgorithm, observations: np.ndarray) -> list[Tensor]:
    """Return what the policy computes from observations: action logits and values, or quantiles or Q values."""
    policy = model.policy
    policy.set_training_mode(False)
    with torch.no_grad():
        tensor, _ = policy.obs_to_tensor(observations)
        if isinstance(model, DQN):
            return [model.q_net(tensor), model.q_net_target(tensor)]
        if isinstance(model, QRDQN):
            return [model.quantile_net(tensor), model.quantile_net_target(tensor)]
        return [policy.get_distribution(tensor).distribution.logits, policy.predict_values(tensor)]


# --- the contract, over every extractor and algorithm -------------------------------------------------


def test_there_are_exactly_the_documented_extractors() -> None:
    assert list(EXTRACTORS) == list(LAYERS)
    assert {name: found.twin for name, found in EXTRACTORS.items()} == {
        name: "pool" if name in POOLS else "nature" for name in LAYERS
    }
    assert list(EXTRACTOR_SUMMARIES) == list(EXTRACTORS)  # what is known without torch is what is built


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("algorithm", RECIPES)
def test_every_algorithm_learns_with_every_extractor_and_keeps_it(
    algorithm: str, extractor: str, tmp_path: Path
) -> None:
    model = model_of(algorithm, extractor)
    observations = np.stack([model.observation_space.sample() for _ in range(5)])

    # The policy that SB3 built holds this network, and nothing between it and the heads.
    found = extractors_of(model)
    assert len(found) == (2 if "DQN" in algorithm else 1)
    layers, coordinates = LAYERS[extractor]
    for network in found:
        assert type(network) is (PoolCNN if extractor in POOLS else CoordNatureCNN)
        assert network.features_dim == 512
        assert list(coordinate_layers(network)) == layers
        for layer in coordinate_layers(network).values():
            assert layer.coordinates.in_channels == coordinates
            grid = {"shuffled": shuffled_grid, "constant": constant_grid}.get(extractor, coordinate_grid)
            assert layer.grid is grid
    assert model.policy.net_arch == []
    linear = [layer for layer in model.policy.modules() if isinstance(layer, nn.Linear)]
    # Each extractor's own and its head; or one extractor's, the actor and the critic.
    assert len(linear) == (6 if algorithm == "coordrl.DQN" else 4 if len(found) == 2 else 3)  # its heads are dueling

    before = copy.deepcopy(trained_extractor(model).state_dict())
    model.learn(64)
    assert model.num_timesteps == 64
    after = trained_extractor(model).state_dict()
    for name, value in after.items():
        assert torch.isfinite(value).all()
        assert not torch.equal(value, before[name]), f"{name} was not trained"
    for name, parameter in trained_extractor(model).named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name

    # SB3's own file keeps the function, the weights and the hyper-parameters, twice over.
    actions, _ = model.predict(observations, deterministic=True)
    assert actions.shape == (5,)
    path = tmp_path / "one.zip"
    model.save(path)
    for again in (tmp_path / "two.zip", tmp_path / "three.zip"):
        loaded = RECIPES[algorithm].algorithm.load(path, device="cpu")
        assert list(coordinate_layers(trained_extractor(loaded))) == layers
        assert (loaded.predict(observations, deterministic=True)[0] == actions).all()
        for mine, theirs in zip(heads(loaded, observations), heads(model, observations), strict=True):
            assert torch.equal(mine, theirs)
        for name, value in model.policy.state_dict().items():
            assert torch.equal(loaded.policy.state_dict()[name], value)
        assert loaded.policy_kwargs == model.policy_kwargs
        assert loaded.policy_kwargs["net_arch"] == []
        for name in RECIPES[algorithm].options:
            assert getattr(loaded, name) == getattr(model, name), name
        loaded.save(again)
        path = again


@pytest.mark.parametrize("algorithm", ["A2C", "DQN"])
@pytest.mark.parametrize("extractor", ["coord-all", "shuffled", "coord-pool"])
def test_a_policy_alone_is_saved_and_loaded_through_sb3(algorithm: str, extractor: str, tmp_path: Path) -> None:
    model = model_of(algorithm, extractor)
    observations = np.stack([model.observation_space.sample() for _ in range(4)])
    model.policy.save(str(tmp_path / "policy.pt"))
    loaded = type(model.policy).load(str(tmp_path / "policy.pt"), device="cpu")
    assert loaded.state_dict().keys() == model.policy.state_dict().keys()
    for name, value in model.policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert loaded.net_arch == []
    mine, theirs = loaded.predict(observations, deterministic=True), model.predict(observations, deterministic=True)
    assert (mine[0] == theirs[0]).all()


@pytest.mark.parametrize("algorithm", ["A2C", "PPO"])
def test_separate_extractors_for_actor_and_critic_see_coordinates_both(algorithm: str) -> None:
    kwargs = {**policy_kwargs("coord"), "share_features_extractor": False}
    model = model_of(algorithm, "coord", policy_kwargs=kwargs)
    found = extractors_of(model)
    assert len(found) == 2
    assert all(list(coordinate_layers(network)) == ["cnn.0"] for network in found)


# --- policy_kwargs ------------------------------------------------------------------------------------


def test_policy_kwargs_names_the_class_its_options_and_an_empty_net_arch() -> None:
    assert policy_kwargs() == policy_kwargs("coord") == coordrl.policy_kwargs("coord")
    assert policy_kwargs("coord-r", features_dim=64) == {
        "features_extractor_class": CoordNatureCNN,
        "features_extractor_kwargs": {"coordinates": "first", "with_radius": True, "features_dim": 64},
        "net_arch": [],
    }
    assert policy_kwargs("pool")["features_extractor_class"] is PoolCNN


def test_layers_after_the_extractor_can_be_asked_for_where_the_critic_needs_them() -> None:
    assert policy_kwargs("coord", net_arch=[256, 256])["net_arch"] == [256, 256]
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False, channel_first=True)
    env.action_space = spaces.Box(-1, 1, (1,), np.float32)
    for kind in (SAC, TD3):
        arguments: dict[str, Any] = {"policy_kwargs": policy_kwargs("coord", net_arch=[256, 256], features_dim=32)}
        model = kind("CnnPolicy", env, buffer_size=100, device="cpu", **arguments)
        own = kind(
            "CnnPolicy",
            env,
            buffer_size=100,
            device="cpu",
            policy_kwargs={"features_extractor_kwargs": {"features_dim": 32}},
        )
        layers, theirs = ([type(one) for one in of.critic.qf0] for of in (model, own))
        assert layers == theirs  # SB3's own default for NatureCNN


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_policy_kwargs_never_shares_anything_between_calls(extractor: str) -> None:
    first, untouched = policy_kwargs(extractor), copy.deepcopy(policy_kwargs(extractor))
    first["net_arch"].append(64)
    first["features_extractor_kwargs"]["normalized_image"] = True  # SB3 itself writes this into it
    first["features_extractor_kwargs"]["coordinates"] = "all"
    assert policy_kwargs(extractor) == untouched
    assert "normalized_image" not in EXTRACTORS[extractor].features_extractor_kwargs


def test_a_model_leaves_the_next_one_alone() -> None:
    space = Pixels((4, 36, 36), np.float32)
    A2C("CnnPolicy", space, policy_kwargs=policy_kwargs("coord", normalized_image=True), device="cpu")
    assert "normalized_image" not in policy_kwargs("coord")["features_extractor_kwargs"]
    assert "normalize_images" not in policy_kwargs("coord")


def test_the_number_of_features_is_an_option() -> None:
    model = model_of("A2C", "coord", policy_kwargs=policy_kwargs("coord", features_dim=48))
    assert trained_extractor(model).features_dim == 48
    assert build("coord-pool", features_dim=20)(torch.zeros(3, 4, 12, 12)).shape == (3, 20)


@pytest.mark.parametrize(("wrong", "right"), [("cord", "coord"), ("natur", "nature"), ("suffled", "shuffled")])
def test_an_unknown_extractor_is_refused_with_the_closest_name(wrong: str, right: str) -> None:
    with pytest.raises(RequestError, match=rf'there is no extractor "{wrong}"; did you mean .*\b{right}\b') as caught:
        policy_kwargs(wrong)
    assert caught.value.exit_code == 2


def test_an_extractor_that_resembles_none_is_refused_with_the_list() -> None:
    with pytest.raises(RequestError, match=r'"xyzzy"; there are nature, coord, coord-r, .*coord-pool'):
        policy_kwargs("xyzzy")


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("option", ["with_radius", "coordinates", "channels", "feature_dim", "observation_space"])
def test_an_unknown_option_is_refused_with_those_there_are(extractor: str, option: str) -> None:
    message = rf'extractor "{extractor}" has no option "{option}"; it has features_dim, normalized_image'
    with pytest.raises(RequestError, match=message):
        policy_kwargs(extractor, **{option: 1})


# --- the same network as SB3's ---------------------------------------------------------------------------


def test_nature_is_the_nature_cnn_of_sb3() -> None:
    ours, theirs = build("nature", 4, 44, 40), NatureCNN(image_space(4, 44, 40))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(3, 4, 44, 40)
    assert ours(images).std() > 1e-3
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_nature_starts_from_the_same_weights_as_sb3() -> None:
    kwargs = {"seed": 3, "device": "cpu"}
    ours = A2C("CnnPolicy", Pixels((4, 36, 36)), policy_kwargs=policy_kwargs("nature"), **kwargs)
    theirs = A2C("CnnPolicy", Pixels((4, 36, 36)), **kwargs)
    assert ours.policy.state_dict().keys() == theirs.policy.state_dict().keys()
    for name, value in theirs.policy.state_dict().items():
        assert torch.equal(ours.policy.state_dict()[name], value), name


def with_weights_of(twin: nn.Module, network: nn.Module) -> nn.Module:
    """Copy the twin's weights into a network with coordinates, and zero the coordinate weights."""
    weights = dict(twin.state_dict())
    for name in coordinate_layers(network):
        for kind in ("weight", "bias"):
            weights[f"{name}.image.{kind}"] = weights.pop(f"{name}.{kind}")
        weights[f"{name}.coordinates.weight"] = torch.zeros_like(network.get_submodule(f"{name}.coordinates").weight)
    network.load_state_dict(weights, strict=True)
    return network


@pytest.mark.parametrize("extractor", WITH_COORDINATES)
def test_with_zeroed_coordinate_weights_every_extractor_is_its_twin(extractor: str) -> None:
    twin = build(EXTRACTORS[extractor].twin)
    network = with_weights_of(twin, build(extractor))
    images = torch.rand(3, *smallest_shape(extractor))
    assert torch.equal(network(images), twin(images))
    for layer in coordinate_layers(network).values():
        nn.init.normal_(layer.coordinates.weight)
    assert not torch.allclose(network(images), twin(images))


def test_a_converted_nature_is_coord() -> None:
    nature, coord = build("nature"), build("coord")
    converted = convert(copy.deepcopy(nature), "first")
    assert converted.state_dict().keys() == coord.state_dict().keys()
    coord.load_state_dict(converted.state_dict(), strict=True)
    images = torch.rand(2, 4, 36, 36)
    assert torch.equal(coord(images), nature(images))


@pytest.mark.parametrize(
    ("extractor", "extra"),
    [
        ("nature", 0),
        ("coord", 4_096),  # 32 filters of 8x8, 2 coordinates
        ("coord-r", 6_144),  # 3 coordinates
        ("coord-all", 7_296),  # and 64 filters of 4x4, 64 of 3x3
        ("shuffled", 4_096),
        ("constant", 4_096),
    ],
)
def test_the_parameter_counts_are_the_documented_ones(extractor: str, extra: int) -> None:
    assert count(build(extractor, 4, 84, 84)) == 1_684_128 + extra


def test_coordinates_cost_the_pool_network_its_first_layer_only() -> None:
    assert count(build("coord-pool")) - count(build("pool")) == 16 * 2 * 3 * 3


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_an_extractor_is_copied_whole(extractor: str) -> None:
    network = build(extractor)
    images = torch.rand(2, *smallest_shape(extractor))
    network(images).sum().backward()
    twin = copy.deepcopy(network)
    expected = network(images)
    assert torch.equal(twin(images), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert torch.equal(network(images), expected)
    assert not torch.equal(twin(images), expected)


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_layout_of_the_images_does_not_matter(extractor: str) -> None:
    network = build(extractor)
    images = torch.rand(3, *smallest_shape(extractor))
    assert network(images).shape == (3, 512)
    torch.testing.assert_close(network(images.contiguous(memory_format=torch.channels_last)), network(images))


@pytest.mark.parametrize("shape", [(4, 36, 50), (1, 60, 36), (3, 37, 41)])
def test_the_nature_family_takes_images_that_are_not_square(shape: tuple[int, int, int]) -> None:
    for extractor in ("nature", "coord", "coord-all", "shuffled"):
        assert build(extractor, *shape)(torch.rand(2, *shape)).shape == (2, 512)


# --- initialisation -----------------------------------------------------------------------------------


def ratio_of(algorithm: str, seed: int) -> float:
    """Return RMS coordinate weight / RMS image weight in the first layer of a fresh policy."""
    model = model_of(algorithm, "coord", seed=seed)
    layer = first_layer(trained_extractor(model))

    def rms(weight: Tensor) -> float:
        return weight.detach().square().mean().sqrt().item()

    return rms(layer.coordinates.weight) / rms(layer.image.weight)


def test_coordinates_start_equally_strong_under_orthogonal_and_default_initialisation() -> None:
    seeds = range(4)
    orthogonal = float(np.mean([ratio_of("A2C", seed) for seed in seeds]))
    default = float(np.mean([ratio_of("DQN", seed) for seed in seeds]))
    # Fan-in 4x8x8 for the image and 2x8x8 for the coordinates: the square root of their ratio.
    assert orthogonal == pytest.approx(math.sqrt(2), rel=0.001)
    assert default == pytest.approx(math.sqrt(2), rel=0.03)


def test_the_image_half_starts_as_the_plain_convolution_does_under_both() -> None:
    for algorithm in ("A2C", "DQN"):
        plain = trained_extractor(model_of(algorithm, "nature")).get_submodule("cnn.0")
        layer = first_layer(trained_extractor(model_of(algorithm, "coord")))
        assert isinstance(plain, nn.Conv2d)
        assert layer.image.weight.std().item() == pytest.approx(plain.weight.std().item(), rel=0.03)


# --- the controls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_radius", [False, True])
@pytest.mark.parametrize(("height", "width"), [(36, 36), (5, 9), (1, 1), (1, 7)])
def test_shuffled_coordinates_are_the_same_values_elsewhere(height: int, width: int, with_radius: bool) -> None:
    grid = coordinate_grid(height, width, with_radius=with_radius)
    shuffled = shuffled_grid(height, width, with_radius=with_radius)
    assert shuffled.shape == grid.shape
    # Each pixel's address (its row and column together) is kept, so all channels are permuted alike.
    addresses = sorted(map(tuple, grid[0].flatten(1).T.tolist()))
    assert sorted(map(tuple, shuffled[0].flatten(1).T.tolist())) == addresses
    if height * width > 10:
        assert not torch.equal(shuffled, grid)


def test_shuffled_neighbours_do_not_have_neighbouring_addresses() -> None:
    grid, shuffled = coordinate_grid(36, 36), shuffled_grid(36, 36)

    def step(channels: Tensor) -> float:
        return (channels[..., 1:] - channels[..., :-1]).square().sum(1).mean().sqrt().item()

    # Two places drawn at random are 2 * sqrt(1/3) apart in the mean square (uniform on the square, both axes).
    assert step(grid) < 0.1
    assert step(shuffled) == pytest.approx(2 * math.sqrt(1 / 3), rel=0.1)


def test_the_permutation_is_fixed_for_ever() -> None:
    # The seed is the paper's number on arXiv, 1807.03247; NumPy promises never to change this stream.
    rows, columns = shuffled_grid(2, 3)[0].flatten(1).tolist()
    places = [int(3 * (row + 1) / 2 + column + 1) for row, column in zip(rows, columns, strict=True)]
    assert places == np.random.RandomState(1807_03247).permutation(6).tolist()
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    first = shuffled_grid(9, 8)
    torch.manual_seed(6)
    assert torch.equal(first, shuffled_grid(9, 8))
    torch.random.set_rng_state(state)
    shuffled_grid(9, 8)
    assert torch.equal(torch.random.get_rng_state(), state)  # and it draws nothing itself


def test_a_shuffled_layer_is_exported_and_still_works_afterwards() -> None:
    layer = CoordConv2d(3, 4, 3, grid=shuffled_grid).eval()
    images = torch.rand(2, 3, 11, 13)  # a size of this test alone: nothing is remembered of it yet
    exported = torch.export.export(layer, (images,)).module()
    found = exported(images)
    torch.testing.assert_close(found, layer(images))  # the same sum in another order, see CoordConv2d._plane
    assert torch.equal(exported(images), found)  # the permutation is not drawn anew
    with torch.device("meta"):
        layer(torch.empty(1, 3, 12, 13))
    assert torch.isfinite(layer(torch.rand(1, 3, 12, 13))).all()


def test_constant_channels_hold_one_half_everywhere() -> None:
    assert constant_grid(3, 5).shape == (1, 2, 3, 5)
    assert constant_grid(3, 5, with_radius=True).shape == (1, 3, 3, 5)
    assert (constant_grid(3, 5, with_radius=True) == 0.5).all()
    assert constant_grid(3, 5, dtype=torch.float64).dtype == torch.float64
    assert shuffled_grid(3, 5, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_constant_channels_act_as_a_bias() -> None:
    network = build("constant")
    layer = first_layer(network)
    planes = layer(torch.zeros(1, 4, 36, 36))[0]
    torch.testing.assert_close(planes, planes[:, :1, :1].expand_as(planes))


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (-3, 5), (6, 7)])
def test_pool_is_blind_to_position_and_coord_pool_is_not(shift: tuple[int, int]) -> None:
    images = torch.zeros(3, 4, 12, 14)
    images[:, :, 2:5, 3:6] = torch.rand(3, 4, 3, 3)
    rolled = images.roll(shift, dims=(2, 3))
    blind, seeing = build("pool", 4, 12, 14), build("coord-pool", 4, 12, 14)
    torch.testing.assert_close(blind(rolled), blind(images), rtol=0, atol=1e-5)

    # In float64 the two cannot be confused: what is rounding there, and what is sight.
    blind.double()
    seeing.double()
    images, rolled = images.double(), rolled.double()
    assert (blind(rolled) - blind(images)).abs().max() < 1e-12
    assert (seeing(rolled) - seeing(images)).abs().max() > 1e-5
    assert (blind(images[:1]) - blind(images[1:2])).abs().max() > 1e-5  # nor is it blind to what it sees


def test_pool_takes_images_of_any_size() -> None:
    for shape in [(1, 2, 2), (3, 5, 9), (4, 40, 33)]:
        for extractor in POOLS:
            assert build(extractor, *shape)(torch.rand(2, *shape)).shape == (2, 512)


# --- what the spaces may hold -----------------------------------------------------------------------------


def refusal_of(extractor: str, space: spaces.Space[Any], **options: Any) -> str:
    """Return the message with which the extractor refuses a space; it names the space and is one line."""
    found = EXTRACTORS[extractor]
    with pytest.raises(RequestError, match="the observation space is ") as caught:
        found.features_extractor_class(space, **found.features_extractor_kwargs, **options)
    message = str(caught.value)
    assert str(space) in message
    assert "\n" not in message.replace(str(space), "")
    return message


@pytest.mark.parametrize("extractor", ["nature", "coord", "coord-all"])
@pytest.mark.parametrize(("height", "width"), [(35, 84), (84, 35), (20, 20)])
def test_images_that_are_too_small_are_refused(extractor: str, height: int, width: int) -> None:
    message = refusal_of(extractor, image_space(4, height, width))
    assert f"images of {height}x{width} are too small, the convolutions need at least 36x36" in message
    assert "coord-pool" in message


def test_the_smallest_images_are_not_refused() -> None:
    assert build("coord-all", 4, 36, 36)(torch.rand(1, 4, 36, 36)).shape == (1, 512)


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (84 * 84,), np.uint8),
        spaces.Box(0, 255, (84, 84), np.uint8),
        spaces.Discrete(5),
        spaces.Dict({"image": spaces.Box(0, 255, (4, 84, 84), np.uint8)}),
    ],
    ids=["a vector", "a matrix", "a number", "a dictionary"],
)
def test_spaces_without_images_are_refused(extractor: str, space: spaces.Space[Any]) -> None:
    message = refusal_of(extractor, space)
    assert "takes images, a Box of shape (channels, height, width). For vectors use MlpPolicy" in message


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (4, 40, 40), np.float32),
        spaces.Box(0, 255, (4, 40, 40), np.float32),
        spaces.Box(0, 1, (4, 40, 40), np.uint8),
        spaces.Box(1, 255, (4, 40, 40), np.uint8),
        spaces.Box(-128, 127, (4, 40, 40), np.int8),
    ],
    ids=["float 0-1", "float 0-255", "bits", "from 1", "int8"],
)
def test_images_that_are_not_bytes_are_refused_with_the_way_out(extractor: str, space: spaces.Box) -> None:
    message = refusal_of(extractor, space)
    assert "images are uint8 from 0 to 255, which SB3 divides by 255" in message
    assert "coordrl.policy_kwargs(..., normalized_image=True)" in message
    found = EXTRACTORS[extractor]
    network = found.features_extractor_class(space, normalized_image=True, **found.features_extractor_kwargs)
    assert network(torch.rand(1, 4, 40, 40)).shape == (1, 512)


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize(
    ("space", "options"),
    [
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), {}),
        (spaces.Box(0, 255, (40, 60, 3), np.uint8), {}),
        (spaces.Box(0, 255, (12, 12, 1), np.uint8), {}),
        (spaces.Box(0, 1, (40, 40, 3), np.float32), {"normalized_image": True}),
    ],
    ids=["84x84x4", "40x60x3", "12x12x1", "float"],
)
def test_channels_last_spaces_are_refused(extractor: str, space: spaces.Box, options: dict[str, Any]) -> None:
    message = refusal_of(extractor, space, **options)
    assert "its last side is the smallest, so it looks channels-last" in message
    assert "takes (channels, height, width)" in message
    assert "SB3 transposes uint8 images by itself" in message


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_environments_work_because_sb3_transposes(channels: int) -> None:
    env = FakeImageEnv(action_dim=3, screen_height=36, screen_width=40, n_channels=channels)
    assert env.observation_space.shape == (36, 40, channels)
    model = A2C("CnnPolicy", env, policy_kwargs=policy_kwargs("coord"), n_steps=4, seed=0, device="cpu")
    layer = first_layer(trained_extractor(model))
    assert layer.image.in_channels == channels
    model.learn(16)
    action, _ = model.predict(env.observation_space.sample(), deterministic=True)
    assert action in range(3)


@pytest.mark.parametrize("algorithm", ["A2C", "DQN"])
@pytest.mark.parametrize("extractor", ["nature", "coord", "coord-pool"])
def test_float_images_are_learnt_from_with_normalized_image(algorithm: str, extractor: str, tmp_path: Path) -> None:
    recipe = RECIPES[algorithm]
    env = Pixels(smallest_shape(extractor), np.float32)
    kwargs = policy_kwargs(extractor, normalized_image=True)
    assert kwargs["normalize_images"] is False
    model = recipe.algorithm("CnnPolicy", env, policy_kwargs=kwargs, seed=0, device="cpu", **recipe.options)
    model.learn(40)
    observation = env.observation_space.sample()
    expected = heads(model, observation[None])
    model.save(tmp_path / "model.zip")
    loaded = recipe.algorithm.load(tmp_path / "model.zip", device="cpu")
    for mine, theirs in zip(heads(loaded, observation[None]), expected, strict=True):
        assert torch.equal(mine, theirs)

    # What reaches the network is the image itself, not divided by 255.
    seen: list[Tensor] = []
    trained_extractor(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.predict(observation)
    torch.testing.assert_close(seen[0][0], torch.as_tensor(observation))


def test_bytes_reach_the_network_divided_by_255() -> None:
    model = model_of("A2C", "coord")
    observation = model.observation_space.sample()
    seen: list[Tensor] = []
    trained_extractor(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.predict(observation)
    torch.testing.assert_close(seen[0][0], torch.as_tensor(observation) / 255)


def test_a_refusal_reaches_the_user_of_sb3_as_it_is() -> None:
    with pytest.raises(RequestError, match=r"Box\(0, 255, \(4, 20, 20\), uint8\): images of 20x20 are too small"):
        A2C("CnnPolicy", Pixels((4, 20, 20)), policy_kwargs=policy_kwargs("coord"), device="cpu")


def test_options_that_do_not_exist_or_would_do_nothing_are_refused() -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    with pytest.raises(RequestError, match="coordinates is 'frist'; it is one of none, first, all; did you mean first"):
        CoordNatureCNN(space, coordinates="frist")
    with pytest.raises(RequestError, match="channels is 'noise'; it is one of coordinates, shuffled, constant"):
        CoordNatureCNN(space, coordinates="first", channels="noise")
    with pytest.raises(RequestError, match="nothing for with_radius or channels to change"):
        CoordNatureCNN(space, with_radius=True)
