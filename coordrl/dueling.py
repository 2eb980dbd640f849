"""Dueling networks for SB3's DQN: a value and an advantage for each action, instead of Q values alone.

Wang et al. 2016 (arXiv 1511.06581), equation 9. There the streams part after the convolutions and have a layer of 512
units each; here they part after the extractor's linear layer, so that every extractor stays what it is, and `net_arch`
gives both the layers in between.
"""

from __future__ import annotations

from typing import Any, final

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, MultiInputPolicy, QNetwork
from torch import Tensor, nn


@final
class DuelingQNetwork(QNetwork):
    """SB3's QNetwork, whose `q_net` computes advantages, with a stream for the value beside it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.value_net = nn.Sequential(*create_mlp(self.features_dim, 1, self.net_arch, self.activation_fn))

    def forward(self, obs: PyTorchObs) -> Tensor:
        """Compute Q values, (batch, actions): the value plus each advantage above their mean."""
        features = self.extract_features(obs, self.features_extractor)
        advantages: Tensor = self.q_net(features)
        values: Tensor = self.value_net(features)
        return values + advantages - advantages.mean(dim=1, keepdim=True)


def _make(policy: DQNPolicy) -> DuelingQNetwork:
    """Make a policy's network."""
    extractor: BaseFeaturesExtractor | None = None
    return DuelingQNetwork(**policy._update_features_extractor(policy.net_args, extractor)).to(policy.device)


@final
class DuelingMlpPolicy(DQNPolicy):
    """SB3's MlpPolicy of DQN with a dueling network."""

    def make_q_net(self) -> DuelingQNetwork:
        """Make the network, or its target."""
        return _make(self)


@final
class DuelingCnnPolicy(CnnPolicy):
    """SB3's CnnPolicy of DQN with a dueling network."""

    def make_q_net(self) -> DuelingQNetwork:
        """Make the network, or its target."""
        return _make(self)


@final
class DuelingMultiInputPolicy(MultiInputPolicy):
    """SB3's MultiInputPolicy of DQN with a dueling network."""

    def make_q_net(self) -> DuelingQNetwork:
        """Make the network, or its target."""
        return _make(self)


POLICIES: dict[str, type[DQNPolicy]] = {
    "MlpPolicy": DuelingMlpPolicy,
    "CnnPolicy": DuelingCnnPolicy,
    "MultiInputPolicy": DuelingMultiInputPolicy,
}
