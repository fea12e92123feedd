"""Stable-Baselines3's PPO on the native batch, and how accurate and how cheap its agent is on new images."""

from stable_baselines3 import PPO

from prance_env import EnvSettings, make_sb3_env
from train.evaluate import evaluate

reward = {"mode": "potential", "accuracy": "mixed", "macs_weight": 0.05}
envs = make_sb3_env("Prance-Digits-v0", n_envs=256, seed=0, reward=reward)
model = PPO(
    "MlpPolicy",
    envs,
    n_steps=6,  # two episodes of three decisions
    batch_size=384,
    n_epochs=6,
    learning_rate=1.5e-3,
    gamma=1.0,
    policy_kwargs={"log_std_init": -1.2},  # actions live in [-1, 1]: begin with small noise
    seed=0,
    device="cpu",
    verbose=1,
)
model.learn(45_000, log_interval=10)

result = evaluate(model, EnvSettings.from_id("Prance-Digits-v0", split="val"))
print(result.summary())
