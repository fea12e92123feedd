"""TorchRL: collector, advantages and PPO's loss on tensors of the native batch; needs `pip install torchrl`."""

import gymnasium as gym
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import prance_env  # noqa: F401  registers the ids

LANES, FRAMES = 64, 384
torch.manual_seed(0)
batch = gym.make_vec(
    "Prance-Digits-v0",
    num_envs=LANES,
    autoreset_mode="SAME_STEP",  # TorchRL refuses NEXT_STEP
    output="torch",
    reward={"mode": "potential", "accuracy": "mixed", "macs_weight": 0.05},
)
env = GymWrapper(batch, convert_actions_to_numpy=False)
inputs, outputs = batch.single_observation_space.shape[0], batch.single_action_space.shape[0]
body = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 2 * outputs), NormalParamExtractor())
actor = ProbabilisticActor(
    TensorDictModule(body, ["observation"], ["loc", "scale"]),
    in_keys=["loc", "scale"],
    distribution_class=TanhNormal,
    return_log_prob=True,
    spec=env.action_spec_unbatched,
)
critic = ValueOperator(nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1)))
advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
loss_module = ClipPPOLoss(actor, critic, entropy_coeff=0.0)
optimizer = torch.optim.Adam(loss_module.parameters(), lr=1.5e-3)

collector = Collector(env, actor, frames_per_batch=FRAMES, total_frames=60 * FRAMES)
for number, data in enumerate(collector, start=1):
    for _ in range(6):
        with torch.no_grad():
            advantage(data)
        losses = loss_module(data.reshape(-1))
        optimizer.zero_grad()
        (losses["loss_objective"] + losses["loss_critic"]).backward()
        optimizer.step()
    if number % 20 == 0:
        episodes = data["next", "done"].sum()
        print(f"return: {float(data['next', 'reward'].sum() / episodes):.3f}")
collector.shutdown()
