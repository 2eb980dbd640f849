"""One rollout and one update of A2C with the fast network, in one process. SB3's algorithm, step for step.

What SB3's callbacks, logger and rollout buffer see is what SB3 would show them. SB3 draws a permutation of
the batch from NumPy's generator for each update, of which its A2C makes no use; here none is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from coordrl.fast_network import FastNetwork
from coordrl.losses import A2CLoss, a2c_loss


def sample(logits: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw an action for each row of logits, as SB3's categorical distribution draws it.

    Args:
        logits: (batch, actions).
        generator: to draw from; None for torch's own.

    Returns:
        actions: (batch,) int64.
        log_probs: (batch,), of the actions.

    Raises:
        ValueError: the logits are not finite, in the words of torch's distributions.
    """
    log_probs = logits - logits.logsumexp(dim=-1, keepdim=True)
    try:
        actions = torch.multinomial(log_probs.softmax(dim=-1), 1, replacement=True, generator=generator)
    except RuntimeError as error:  # torch's words for NaN; its distributions say ValueError
        raise ValueError(f"the policy's logits have invalid values: {error}") from error
    return actions[:, 0], log_probs.gather(1, actions)[:, 0]


def bootstrap(
    network: FastNetwork,
    gamma: float,
    rewards: NDArray[np.float32],
    dones: NDArray[np.bool_],
    infos: Sequence[dict[str, Any]],
) -> None:
    """Add to the rewards (n_envs,) of games that time has cut off what they would have gone on to earn."""
    for index in np.flatnonzero(dones):
        info = infos[int(index)]
        final = info.get("terminal_observation")
        if final is not None and info.get("TimeLimit.truncated", False):
            rewards[index] += gamma * network.predict_values(np.asarray(final)[None])[0]


def collect(
    model: A2C,
    network: FastNetwork,
    env: VecEnv,
    callback: BaseCallback,
    buffer: RolloutBuffer,
    n_steps: int,
    *,
    watch: bool = True,
) -> bool | None:
    """Play a rollout that has started and fill the buffer, which is empty, as SB3's `collect_rollouts` does.

    Returns whether to go on; None if a callback changed the weights on the way or, where it is watched, the pictures
    in the buffer, so that the activations kept are not those of the update.
    """
    network.refresh(keep=watch)
    changed = False
    observations = np.asarray(model._last_obs)
    seen = np.empty_like(buffer.observations) if watch else None
    for step in range(n_steps):
        with torch.no_grad():
            logits, kept_values = network.forward(observations, step)
            drawn, log_probs = sample(logits)
        if seen is not None:
            seen[step] = observations
        values = kept_values.clone()  # the network's own memory is written again in the next rollout
        actions: NDArray[np.int64] = drawn.numpy()
        new_obs, rewards, dones, infos = env.step(actions)
        model.num_timesteps += env.num_envs
        callback.update_locals(
            {
                "self": model,
                "env": env,
                "callback": callback,
                "rollout_buffer": buffer,
                "n_rollout_steps": n_steps,
                "n_steps": step,
                "obs_tensor": torch.from_numpy(observations),
                "actions": actions,
                "clipped_actions": actions,
                "values": values[:, None],
                "log_probs": log_probs,
                "new_obs": new_obs,
                "rewards": rewards,
                "dones": dones,
                "infos": infos,
            }
        )
        if not callback.on_step():
            return False
        if network.is_stale():
            changed = True
            network.refresh(keep=watch)
        model._update_info_buffer(infos, dones)
        bootstrap(network, model.gamma, rewards, dones, infos)
        starts = model._last_episode_starts
        assert starts is not None
        shown = np.asarray(model._last_obs)  # a callback may have put others there
        buffer.add(shown, actions[:, None], rewards, starts, values, log_probs)
        observations = model._last_obs = np.asarray(new_obs)
        model._last_episode_starts = dones
    _, last_values = network.forward(observations, n_steps)
    buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
    # `dones` and `new_obs` are those of the last step, as in SB3; the values are of what came after it.
    callback.update_locals({"n_steps": n_steps, "values": last_values.clone()[:, None]})
    callback.on_rollout_end()
    if seen is not None and not np.array_equal(buffer.observations, seen):  # augmented, for one
        changed = True
    return None if changed else True


def update(model: A2C, loss: A2CLoss) -> None:
    """Make the update whose loss and gradients were just computed, as SB3's `train` does.

    It leaves the rollout buffer as SB3's does, too: by environment, flattened.
    """
    policy, buffer = model.policy, model.rollout_buffer
    if not buffer.generator_ready:
        for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
            setattr(buffer, name, buffer.swap_and_flatten(getattr(buffer, name)))
        buffer.generator_ready = True
    policy.set_training_mode(True)
    model._update_learning_rate(policy.optimizer)
    torch.nn.utils.clip_grad_norm_(policy.parameters(), model.max_grad_norm)
    policy.optimizer.step()
    model._n_updates += 1
    record = model.logger.record
    record("train/n_updates", model._n_updates, exclude="tensorboard")
    record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
    record("train/entropy_loss", loss.entropy.item())
    record("train/policy_loss", loss.policy.item())
    record("train/value_loss", loss.value.item())


def gradients(
    network: FastNetwork,
    buffer: RolloutBuffer,
    *,
    ent_coef: float,
    vf_coef: float,
    normalize_advantage: bool,
    share: float = 1.0,
) -> A2CLoss:
    """Compute the loss of a rollout, and the network's gradients.

    Args:
        network: that has just played the rollout.
        buffer: of it.
        ent_coef: weight of the entropy.
        vf_coef: weight of the squared error.
        normalize_advantage: to mean 0 and deviation 1 over the batch.
        share: of a larger batch that this is; the gradients are weighted with it, the loss is not.
    """
    advantages = torch.from_numpy(buffer.advantages.reshape(-1))  # by step, as everything the network keeps
    if normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    logits, values = network.outputs()
    loss = a2c_loss(
        logits,
        values,
        torch.from_numpy(buffer.actions.reshape(-1)).long(),
        advantages,
        torch.from_numpy(buffer.returns.reshape(-1)),
        ent_coef=ent_coef,
        vf_coef=vf_coef,
    )
    network.backward(loss.logits * share, loss.values * share)
    return loss
