"""Stable-Baselines3's SAC, off-policy: every episode is used many times."""

from stable_baselines3 import SAC

from prance_env import EnvSettings, make_sb3_env
from train.evaluate import evaluate

reward = {"mode": "potential", "accuracy": "mixed", "macs_weight": 0.05}
envs = make_sb3_env("Prance-Digits-v0", n_envs=64, seed=0, reward=reward)
model = SAC(
    "MlpPolicy",
    envs,
    buffer_size=50_000,
    learning_starts=2_000,
    train_freq=1,
    gradient_steps=4,  # per step of all 64 lanes
    batch_size=256,
    gamma=1.0,
    ent_coef=0.001,  # rewards are small, and an entropy bonus would outweigh them
    policy_kwargs={"net_arch": [64, 64]},
    seed=0,
    device="cpu",
)
model.learn(16_000)

result = evaluate(model, EnvSettings.from_id("Prance-Digits-v0", split="val"))
print(result.summary())
