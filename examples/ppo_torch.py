"""PPO in one file, in the manner of CleanRL; tensors stay on the device (`output="torch"`)."""

import gymnasium as gym
import torch
from torch import nn
from torch.distributions import Normal

import prance_env  # noqa: F401  registers the ids

LANES, UPDATES, EPOCHS, CLIP, DEVICE = 256, 40, 6, 0.2, "cpu"
torch.manual_seed(0)
envs = gym.make_vec(
    "Prance-Digits-v0",
    num_envs=LANES,
    autoreset_mode="SAME_STEP",
    output="torch",
    device=DEVICE,
    reward={"mode": "potential", "accuracy": "mixed", "macs_weight": 0.05},
)
inputs, outputs, T = envs.single_observation_space.shape[0], envs.single_action_space.shape[0], 3
actor = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs), nn.Tanh()).to(DEVICE)
critic = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1)).to(DEVICE)
log_std = nn.Parameter(torch.full((outputs,), -1.2, device=DEVICE))
optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters(), log_std], lr=1.5e-3)

obs, _ = envs.reset(seed=0)
for update in range(UPDATES):
    rows, correct, macs = [], [], []
    for _ in range(2 * T):
        with torch.no_grad():
            policy = Normal(actor(obs), log_std.exp())
            action = policy.sample()
        following, reward, terminated, _, info = envs.step(action)
        rows.append((obs, action, policy.log_prob(action).sum(1), reward, terminated))
        obs = following
        if "final_info" in info:
            correct.append(info["final_info"]["is_success"].float().mean())
            macs.append(info["final_info"]["macs_fraction"].mean())
    observations, actions, old_log_prob, rewards, ends = (torch.stack(column) for column in zip(*rows, strict=True))
    returns, running = torch.zeros_like(rewards), torch.zeros(LANES, device=DEVICE)
    for t in reversed(range(2 * T)):  # no discount, and what follows an end belongs to another image
        running = rewards[t] + running * ~ends[t]
        returns[t] = running
    for _ in range(EPOCHS):
        values = critic(observations)[..., 0]
        advantage = returns - values.detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = (Normal(actor(observations), log_std.exp()).log_prob(actions).sum(-1) - old_log_prob).exp()
        gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
        loss = 0.5 * (returns - values).square().mean() - gain
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if update % 10 == 9:
        print(f"update {update + 1}: accuracy {torch.stack(correct).mean():.3f}, MACs {torch.stack(macs).mean():.3f}")
