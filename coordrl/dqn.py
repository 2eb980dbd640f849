"""DQN as stable-baselines3 has it, and its extensions, each behind a switch of its own."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple, final

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn
from torch.nn import functional

from coordrl.dueling import POLICIES, DuelingQNetwork
from coordrl.errors import DivergedError, RequestError
from coordrl.replay import Draw, FrameReplayBuffer
from coordrl.signatures import extends
from coordrl.stacking import find_stack

_TOGETHER = 512  # transitions whose targets are computed in one pass, at most


class Acting(NamedTuple):
    """What the network said of a row of transitions while acting, (n_envs,) each."""

    taken: NDArray[np.float64]  # the Q value of the action that was taken
    best: NDArray[np.float64]  # the largest Q value


@final
class DQN(stable_baselines3.DQN):
    """SB3's DQN (Mnih et al. 2015), with the same constructor, callbacks, logger, `learn`, `save` and `load`.

    With every switch off and one environment it is SB3's, bit for bit, from the same seed. With several environments
    it differs where SB3 surprises:

    - Each environment explores by itself: SB3 draws one number for all of them.
    - `gradient_steps` gradient steps are made per `train_freq` *transitions*, however many environments they come
      from; SB3 counts steps of the vector. With 8 environments, train_freq=4 and gradient_steps=1 (Mnih et al.), two
      gradient steps follow each step of the vector; what a step leaves over is made up for later.

    Where observations are stacks of pictures (an `AtariVecEnv`, SB3's VecFrameStack), transitions are kept in a
    `FrameReplayBuffer`, which gives the same batches as SB3's in an eighth of the memory. Above other wrappers, and for
    stacks that a single environment makes (gymnasium's FrameStackObservation), it is there on request:
    `replay_buffer_class=FrameReplayBuffer`.

    Args:
        policy: as SB3's.
        env: as SB3's.
        *args: as SB3's.
        double: the next action is chosen by the network and valued by the target (van Hasselt et al. 2016).
        dueling: a value and advantages instead of Q values (Wang et al. 2016); see coordrl.dueling.
        prioritized: transitions are drawn in proportion to their last TD error (Schaul et al. 2016).
        priority_exponent: alpha, how much; 0 draws all alike.
        importance_exponent: beta at the beginning; it rises to 1 over the training.
        epsilon_ladder: environment i of N explores with base^(1 + exponent i / (N - 1)) all the time, instead of the
            one schedule for all (Horgan et al. 2018, section 4.1); (base, exponent).
        actor_priorities: a new transition gets the TD error of its n steps, by the Q values that it was acted with,
            as soon as they are over, and is not drawn before (Horgan et al. 2018, section 3). False gives it the
            largest priority so far at once.
        fast: compute in the channels_last layout, with a fused Adam, and the targets of all batches between two steps
            in one pass. The same updates up to float32's rounding.
        **kwargs: as SB3's; `n_steps` is one of them.

    Attributes:
        path: how updates are computed, in words.
        owed: transitions times gradient steps that no update was made for yet.
        acting: what the network said of the newest rows, which have no priorities yet.
        ladder_place: the ladder's step of the first environment and the number of all steps, where others explore on
            the other steps; None: the environments here are all there are.

    Raises:
        RequestError: switches that do not fit each other, the policy or the observations.
    """

    @extends(stable_baselines3.DQN.__init__)
    def __init__(
        self,
        policy: str | type[DQNPolicy],
        env: Any,
        *args: Any,
        double: bool = False,
        dueling: bool = False,
        prioritized: bool = False,
        priority_exponent: float = 0.6,
        importance_exponent: float = 0.4,
        epsilon_ladder: tuple[float, float] | None = None,
        actor_priorities: bool = False,
        fast: bool = False,
        **kwargs: Any,
    ) -> None:
        self.double, self.dueling, self.prioritized, self.fast = double, dueling, prioritized, fast
        self.priority_exponent, self.importance_exponent = priority_exponent, importance_exponent
        self.epsilon_ladder, self.actor_priorities = epsilon_ladder, actor_priorities
        self.acting: deque[Acting] = deque()
        self._keeps = False  # `_q_values`, for the priorities of what is being acted
        self._q_values: Tensor | None = None  # of the step under way, (n_envs, actions)
        self.ladder_place: tuple[int, int] | None = None
        self.n_stack: int | None = None  # pictures of an observation, where it is known to be a stack
        self.last_batch: ReplayBufferSamples | None = None  # of the last gradient step
        self._collected: int | None = None  # transitions that the next update is for, in `learn`
        self._chose_memory = False  # nobody asked for the class of the replay memory
        self.owed = 0
        if dueling:
            policy = _dueling(policy)
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        """Make the replay memory and the networks; also of a model that is loaded, whose switches may be given anew."""
        self._check_switches()
        asked = self.replay_buffer_class
        if self.prioritized and asked not in (None, FrameReplayBuffer):
            raise RequestError(
                f"prioritized needs coordrl's FrameReplayBuffer, not {getattr(asked, '__name__', asked)}"
            )
        if self.env is not None:  # a model that was loaded without one knows it by itself
            self.n_stack = find_stack(self.env, self.observation_space)
        n_stack = self.n_stack
        # Who asks SB3's memory to keep nothing twice gets SB3's memory.
        stacked = n_stack is not None and not self.optimize_memory_usage
        wanted = asked is FrameReplayBuffer or (asked is None and (stacked or self.prioritized))
        if self.replay_buffer is None and wanted:
            # Pictures that are not known to be stacked are kept whole, unless the user says that they are stacks.
            self.replay_buffer = self._make_memory(n_stack or (None if asked is FrameReplayBuffer else 1))
            self.replay_buffer_class = None  # SB3 would warn that it cannot know about n_steps
        given = self.policy_kwargs, self.replay_buffer_kwargs
        if self.fast:
            self.policy_kwargs = _fuse(self.policy_kwargs)
        self.replay_buffer_kwargs = dict(self.replay_buffer_kwargs)  # SB3 writes into them, and they are the user's
        super()._setup_model()
        self.policy_kwargs = given[0]
        if isinstance(self.replay_buffer, FrameReplayBuffer):
            self.replay_buffer_kwargs = given[1]  # SB3's own memories are loaded with what SB3 has written there
            self.replay_buffer_class = FrameReplayBuffer
            self._chose_memory = asked is None

    @property
    def path(self) -> str:
        """How updates are computed: "fast" or "general"."""
        return "fast" if self.fast else "general"

    def _check_switches(self) -> None:
        """Check that the switches fit each other and the policy.

        Raises:
            RequestError: they do not.
        """
        if self.actor_priorities and not self.prioritized:
            raise RequestError("actor_priorities needs prioritized=True")
        if not 0 <= self.importance_exponent <= 1:
            raise RequestError(f"importance_exponent is {self.importance_exponent}; it is from 0 to 1")
        ladder = self.epsilon_ladder
        if ladder is not None and not (len(ladder) == 2 and 0 <= ladder[0] <= 1 <= 1 + ladder[1]):
            raise RequestError(f"epsilon_ladder is {ladder}; it is a base from 0 to 1 and an exponent from 0")
        if self.dueling != (self.policy_class in POLICIES.values()):
            raise RequestError(
                f"dueling is {self.dueling}, and the policy {self.policy_class.__name__}; a model that was made with"
                f" dueling={not self.dueling} keeps it"
            )
        kept = self.replay_buffer_kwargs
        if "priority_exponent" in kept:
            raise RequestError("priority_exponent is no part of replay_buffer_kwargs; say prioritized=True beside it")
        if kept.get("n_steps", self.n_steps) != self.n_steps and self.replay_buffer_class is None:
            raise RequestError(
                f"n_steps is {self.n_steps}, and {kept['n_steps']} in replay_buffer_kwargs; leave it out there"
            )

    def _make_memory(self, n_stack: int | None) -> FrameReplayBuffer:
        """Make a memory for single pictures."""
        own = {"n_steps": self.n_steps, "gamma": self.gamma}
        wanted = {**own, "n_stack": n_stack, **self.replay_buffer_kwargs}
        if self.n_steps > 1:  # as in SB3; 1 may be the default beside a class that was asked for with its own
            wanted |= own
        if self.prioritized:
            wanted["priority_exponent"] = self.priority_exponent
        return FrameReplayBuffer(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            self.device,
            self.n_envs,
            self.optimize_memory_usage,
            **wanted,
        )

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """As SB3's; rows that waited for the priorities of actors, which are not saved, get the largest so far.

        Raises:
            RequestError: the memory has no priorities and needs them, or has some that nobody would follow.
        """
        before = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        try:
            self._check_memory()
        except RequestError:
            self.replay_buffer = before
            raise
        self.acting.clear()
        memory = self.replay_buffer
        if isinstance(memory, FrameReplayBuffer) and memory.priorities is not None:
            memory.let_go(min(memory.n_steps, memory.adds))

    def _check_memory(self) -> None:
        """Check that the replay memory, which may come from a file or from anybody, fits `prioritized`.

        Raises:
            RequestError: it does not.
        """
        memory = self.replay_buffer
        has = isinstance(memory, FrameReplayBuffer) and memory.priorities is not None
        if has != self.prioritized:
            raise RequestError(
                f"prioritized is {self.prioritized}, and the replay memory, a {type(memory).__name__}, has"
                f" {'' if has else 'no '}priorities; load one that was saved by a model with the same switch"
            )

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return actions; unless `deterministic`, each environment explores with its epsilon of the moment."""
        given: Any = observation
        if type(given) is tuple:  # of an env.reset(): SB3's policy says so
            return self.policy.predict(observation, state, episode_start, deterministic)
        if isinstance(given, list):
            observation = np.asarray(given)
        if deterministic or not self.policy.is_vectorized_observation(observation):
            return super().predict(observation, state, episode_start, deterministic)
        first = next(iter(observation.values())) if isinstance(observation, dict) else observation
        # For one environment the same draws as SB3's: one number, then one action if it explores.
        explores = np.random.rand(len(first)) < self.epsilons(len(first))
        if explores.all() and not self._keeps:
            return np.array([self.action_space.sample() for _ in explores]), state
        if self._keeps or (self.fast and self._decides_greedily()):
            actions, state = self._decide(observation, state, episode_start)
        else:
            actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        for index in np.flatnonzero(explores):
            actions[index] = self.action_space.sample()
        return actions, state

    def _decides_greedily(self) -> bool:
        """Whether the policy takes the action of the largest Q value: one of a user's own may do otherwise."""
        policy = self.policy
        return (
            getattr(policy.predict, "__func__", None) is DQNPolicy.predict
            and getattr(policy._predict, "__func__", None) is DQNPolicy._predict
            and type(self.q_net) in (QNetwork, DuelingQNetwork)
        )

    @torch.no_grad()
    def _decide(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None,
        episode_start: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return the policy's actions, (n_envs,), and keep the Q values where they are wanted."""
        self.policy.set_training_mode(False)
        tensor, _ = self.policy.obs_to_tensor(observation)
        q_values = self.q_net(self._lay_out(tensor))
        if self._keeps:
            self._q_values = q_values
        if not self._decides_greedily():
            return self.policy.predict(observation, state, episode_start, deterministic=False)
        actions: NDArray[Any] = q_values.argmax(dim=1).reshape(-1).cpu().numpy()
        return actions, state

    def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Decide on the actions of a step of the training; a callback's `predict` keeps nothing."""
        self._keeps, self._q_values = self.actor_priorities, None
        try:
            return super()._sample_action(*args, **kwargs)
        finally:
            self._keeps = False

    def epsilons(self, n_envs: int) -> NDArray[np.float64]:
        """Return with which probability each of `n_envs` environments explores now."""
        if self.epsilon_ladder is None or n_envs != self.n_envs:
            return np.full(n_envs, self.exploration_rate)
        base, exponent = self.epsilon_ladder
        first, of = self.ladder_place or (0, n_envs)
        return np.asarray(base ** (1 + exponent * np.arange(first, first + n_envs) / max(of - 1, 1)))

    def _on_step(self) -> None:
        """As SB3's; with a ladder, its mean is what is logged."""
        super()._on_step()
        if self.epsilon_ladder is not None:
            self.exploration_rate = float(self.epsilons(self.n_envs).mean())
            self.logger.record("rollout/exploration_rate", self.exploration_rate)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, train_freq: TrainFreq, *args: Any, **kwargs: Any
    ) -> RolloutReturn:
        """Play until an update is due; with several environments at least one step of the vector."""
        if train_freq.unit == TrainFrequencyUnit.STEP and self.gradient_steps >= 0:  # else a step for each transition
            train_freq = TrainFreq(max(1, train_freq.frequency // env.num_envs), train_freq.unit)
        rollout = super().collect_rollouts(env, callback, train_freq, *args, **kwargs)
        trains = rollout.continue_training and self.num_timesteps > self.learning_starts
        self._collected = rollout.episode_timesteps if trains and self.gradient_steps else None
        return rollout

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: NDArray[Any] | dict[str, NDArray[Any]],
        reward: NDArray[Any],
        dones: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep a row of transitions, and give the one whose n steps are over its priorities."""
        if self._q_values is None:  # before learning starts nobody asks the network: the largest priority, as without
            self._forget_acting()
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        if not self.actor_priorities or not isinstance(replay_buffer, FrameReplayBuffer) or self._q_values is None:
            return
        if not torch.isfinite(self._q_values).all():
            raise DivergedError(
                f"the training diverged by step {self.num_timesteps:,}: Q values are not numbers; try a smaller learning rate"
            )
        values, self._q_values = self._q_values.double().cpu().numpy(), None
        taken = np.take_along_axis(values, np.reshape(buffer_action, (-1, 1)).astype(np.int64), axis=1)[:, 0]
        self.acting.append(Acting(taken, values.max(axis=1)))
        replay_buffer.hold_back()
        if len(self.acting) > replay_buffer.n_steps:
            bests = np.array([acting.best for acting in self.acting])
            replay_buffer.release(self.acting.popleft().taken, bests, self._vec_normalize_env)

    def _forget_acting(self) -> None:
        """Let the rows that wait for the end of their n steps have the largest priority: it will not come."""
        if self.acting and isinstance(self.replay_buffer, FrameReplayBuffer):
            self.replay_buffer.let_go(len(self.acting))
        self.acting.clear()

    def _setup_learn(
        self, total_timesteps: int, callback: Any = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        """As SB3's; games that begin anew end no n steps of the ones before.

        Raises:
            RequestError: the memory has no room for the n steps that actors' priorities wait for.
        """
        if self.replay_buffer is None:  # of a run that was loaded to be looked at
            self.replay_buffer = self._make_memory(self.n_stack or 1)
        self._check_memory()
        memory = self.replay_buffer
        if self.actor_priorities and isinstance(memory, FrameReplayBuffer) and memory.buffer_size <= memory.n_steps:
            raise RequestError(
                f"buffer_size is {self.buffer_size}: with actor_priorities it is more than n_steps ({memory.n_steps}) for"
                f" each of {self.n_envs} environments"
            )
        if reset_num_timesteps or self._last_obs is None:
            self._forget_acting()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Make gradient steps, each with a batch from the replay memory."""
        memory = self.replay_buffer
        if self.prioritized and isinstance(memory, FrameReplayBuffer) and not memory.drawable:
            return  # nothing has a priority yet: n steps are not over
        waiting = gradient_steps = self._count_steps(gradient_steps)
        if gradient_steps == 0:
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        updates: list[dict[str, float]] = []
        while waiting > 0:
            # With priorities, every update changes what is drawn for the next one.
            together = self.fast and not self.prioritized and not isinstance(self.observation_space, spaces.Dict)
            most = max(1, _TOGETHER // batch_size) if together else 1
            batches = self._draw(min(waiting, most), batch_size)
            updates += [self._update(batch) for batch in batches]
            waiting -= len(batches)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in updates[0]:
            combine = np.max if name.endswith("max") else np.mean
            self.logger.record(f"train/{name}", combine([update[name] for update in updates]))

    def _count_steps(self, gradient_steps: int) -> int:
        """Return how many gradient steps are due for the transitions since the last ones."""
        collected, self._collected = self._collected, None
        train_freq: Any = self.train_freq  # SB3 has made a TrainFreq of it
        by_episode = train_freq.unit != TrainFrequencyUnit.STEP
        if collected is None or self.n_envs == 1 or self.gradient_steps < 0 or by_episode:
            return gradient_steps
        owed = self.owed + collected * gradient_steps
        steps: int = owed // train_freq.frequency
        self.owed = owed - steps * train_freq.frequency
        return steps

    @torch.no_grad()
    def _draw(self, count: int, batch_size: int) -> list[_Batch]:
        """Draw batches, with the target network's Q values of what follows: those of all batches in one pass."""
        memory = self.replay_buffer
        assert memory is not None
        found: list[tuple[Draw | None, ReplayBufferSamples]] = []
        for _ in range(count):
            if isinstance(memory, FrameReplayBuffer):
                draw = memory.draw(batch_size)
                found.append((draw, memory.fetch(draw, self._vec_normalize_env)))
            else:
                found.append((None, memory.sample(batch_size, env=self._vec_normalize_env)))
        if count == 1:
            following = [self.q_net_target(self._lay_out(found[0][1].next_observations))]
        else:
            images = torch.cat([samples.next_observations for _, samples in found])
            following = list(self.q_net_target(self._lay_out(images)).split(batch_size))
        return [_Batch(draw, samples, q) for (draw, samples), q in zip(found, following, strict=True)]

    def _update(self, batch: _Batch) -> dict[str, float]:
        """Make one gradient step; returns what is to be logged of it."""
        draw, samples, next_q = batch
        self.last_batch = samples
        with torch.no_grad():
            if self.double:
                chosen = self.q_net(self._lay_out(samples.next_observations)).argmax(dim=1, keepdim=True)
                next_values = next_q.gather(1, chosen)
            else:
                next_values = next_q.max(dim=1)[0].reshape(-1, 1)
            discounts = samples.discounts if samples.discounts is not None else self.gamma
            targets = samples.rewards + (1 - samples.dones) * discounts * next_values
        q_values = self.q_net(self._lay_out(samples.observations))
        current = torch.gather(q_values, dim=1, index=samples.actions.long())
        memory, facts = self.replay_buffer, dict[str, float]()
        if self.prioritized:
            assert isinstance(memory, FrameReplayBuffer)
            assert draw is not None
            assert draw.probabilities is not None
            exponent = 1.0 - (1.0 - self.importance_exponent) * max(self._current_progress_remaining, 0.0)
            weights = memory.weights(draw, exponent)
            scale = torch.as_tensor(weights, device=self.device).reshape(-1, 1)
            loss = (scale * functional.smooth_l1_loss(current, targets, reduction="none")).mean()
            priorities = draw.probabilities
            facts |= {"importance_weight": float(weights.mean()), "importance_exponent": exponent}
            facts["priority_spread"] = float(priorities.std() / priorities.mean())
        else:
            loss = functional.smooth_l1_loss(current, targets)
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no hints here
        self._clip_gradients()
        self.policy.optimizer.step()
        errors = (targets - current.detach()).flatten()
        if draw is not None and isinstance(memory, FrameReplayBuffer):
            facts["replay_age"] = float(memory.ages(draw).mean()) * self.n_envs
            if self.prioritized and torch.isfinite(errors).all():  # otherwise the loss says that it diverged
                memory.set_priorities(draw, errors.cpu().numpy())
        q_values = q_values.detach()
        facts |= {"q_mean": q_values.mean().item(), "q_max": q_values.max().item()}
        return {"loss": loss.item(), "td_error": errors.abs().mean().item(), **facts}

    def _clip_gradients(self) -> None:
        """Scale the gradients down to the largest norm, if theirs is larger."""
        parameters = [parameter for parameter in self.policy.parameters() if parameter.grad is not None]
        if self.fast:  # torch's own multiplies all of them in any case, most often by 1
            norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            if norm <= self.max_grad_norm:
                return
        nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)

    def _lay_out(self, images: Any) -> Any:
        """Return a batch in the layout that is computed in: channels_last where `fast` and SB3's NatureCNN take it.

        coordrl's extractors see to that themselves, and anybody's own may not take it.
        """
        if (
            self.fast
            and isinstance(images, Tensor)
            and isinstance(getattr(self.q_net, "features_extractor", None), NatureCNN)
        ):
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _excluded_save_params(self) -> list[str]:
        """Name what is no part of a saved model."""
        own = ["acting", "_q_values", "_keeps", "_collected", "_chose_memory", "last_batch"]
        # A model that is loaded chooses anew, and SB3's DQN can load it too.
        chosen = ["replay_buffer_class"] if self._chose_memory else []
        return [*super()._excluded_save_params(), *own, *chosen]


class _Batch(NamedTuple):
    """What a gradient step is made from."""

    draw: Draw | None  # None from SB3's own memories
    samples: ReplayBufferSamples
    next_q: Tensor  # (batch, actions), the target network's Q values of the next observations


def _fuse(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return `policy_kwargs` with a fused Adam, unless they ask for another optimiser or another form of it."""
    given = policy_kwargs.get("optimizer_kwargs") or {}
    is_adam = policy_kwargs.get("optimizer_class", torch.optim.Adam) is torch.optim.Adam
    if not is_adam or {"fused", "foreach"} & set(given):
        return policy_kwargs
    return {**policy_kwargs, "optimizer_kwargs": {**given, "fused": True}}


def _dueling(policy: str | type[DQNPolicy]) -> str | type[DQNPolicy]:
    """Return the dueling form of a policy.

    Raises:
        RequestError: it has none.
    """
    if policy in POLICIES.values():
        return policy
    if policy not in POLICIES:
        raise RequestError(
            f"dueling takes {', '.join(POLICIES)}, not {policy!r}; leave dueling out for a policy of your own"
        )
    return POLICIES[str(policy)]
