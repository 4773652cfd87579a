"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971) with the constants of HAQ: an
actor picks a number in 0..1 for each state, a critic rates it."""

from __future__ import annotations

import copy
import math
from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsq.core.seeding import global_rng_of

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
BATCH = 64
# Share of the trained networks that the slow ones take over after each step.
TAKEN_OVER = 0.01
# Share that the mean reward keeps of what it was.
KEPT = 0.5
WARM_UP = 20
FIRST_NOISE, NOISE_KEPT = 0.5, 0.99
EPISODES_REMEMBERED = 128
# What is remembered of an action: state, number, reward of the episode, state after it, whether one follows.
Step = tuple[Tensor, float, float, Tensor, bool]


class Agent:
    """Learns from episodes of `length` actions; on the CPU, and random only by `generator`."""

    def __init__(self, num_features: int, length: int, generator: torch.Generator) -> None:
        """Fresh networks."""
        self._generator = generator
        with global_rng_of(generator):
            self._actor = nn.Sequential(_network(num_features), nn.Sigmoid())
            self._critic = _network(num_features + 1)
        self._slow_actor, self._slow_critic = copy.deepcopy(self._actor), copy.deepcopy(self._critic)
        self._actor_steps = torch.optim.Adam(self._actor.parameters(), ACTOR_RATE)
        self._critic_steps = torch.optim.Adam(self._critic.parameters(), CRITIC_RATE)
        self._memory: deque[Step] = deque(maxlen=EPISODES_REMEMBERED * length)
        self._mean_reward: float | None = None
        self._episode = 0

    @torch.no_grad()
    def choose(self, state_F: Tensor) -> float:
        """A number in 0..1: at random in the first episodes, then the actor's with noise that fades."""
        drawn = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        if self._episode < WARM_UP:
            return drawn
        noise = FIRST_NOISE * NOISE_KEPT ** (self._episode - WARM_UP)
        return truncated_normal(drawn, self._actor(state_F).item(), noise)

    def learn(self, states_TF: Tensor, actions_T: list[float], reward: float) -> None:
        """Remember an episode, whose every action gets its reward; past the first ones, a step for each."""
        last = len(actions_T) - 1
        for index, action in enumerate(actions_T):
            after = states_TF[min(index + 1, last)]
            self._memory.append((states_TF[index], action, reward, after, index < last))
        if self._episode >= WARM_UP:
            for _ in actions_T:
                self._step()
        self._episode += 1

    def _step(self) -> None:
        index = torch.randint(len(self._memory), (BATCH,), generator=self._generator)
        states, actions, rewards, after, follows = zip(*(self._memory[i] for i in index), strict=True)
        state, next_state = torch.stack(states), torch.stack(after)
        action, reward, more = (torch.tensor(each)[:, None].float() for each in (actions, rewards, follows))
        mean = reward.mean().item()
        before = mean if self._mean_reward is None else self._mean_reward
        self._mean_reward = KEPT * before + (1 - KEPT) * mean
        with torch.no_grad():
            later = _rated(self._slow_critic, next_state, self._slow_actor(next_state))
            target = reward - self._mean_reward + more * later
        _descend(self._critic_steps, F.mse_loss(_rated(self._critic, state, action), target))
        _descend(self._actor_steps, -_rated(self._critic, state, self._actor(state)).mean())
        _follow(self._slow_actor, self._actor)
        _follow(self._slow_critic, self._critic)


def truncated_normal(uniform: float, mean: float, std: float) -> float:
    """The value in 0..1 below which a share `uniform` of a normal distribution inside 0..1 lies."""

    def below(value: float) -> float:
        return 0.5 * (1 + math.erf((value - mean) / (std * math.sqrt(2))))

    low, high = below(0.0), below(1.0)
    share = torch.tensor(2 * (low + uniform * (high - low)) - 1, dtype=torch.float64)
    value = mean + std * math.sqrt(2) * torch.erfinv(share).item()
    return min(max(value, 0.0), 1.0)


def _network(num_inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
    )


def _rated(critic: nn.Module, state_NF: Tensor, action_N1: Tensor) -> Tensor:
    found: Tensor = critic(torch.cat([state_NF, action_N1], 1))
    return found


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def _follow(slow: nn.Module, fast: nn.Module) -> None:
    for own, new in zip(slow.parameters(), fast.parameters(), strict=True):
        own.lerp_(new, TAKEN_OVER)
