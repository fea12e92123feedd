"""Stable-Baselines3's DQN: a decision is one of twelve preset sizes."""

from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy

from prance_env import make_sb3_env
from prance_env.wrappers import VectorDiscreteActions

reward = {"mode": "potential", "accuracy": "mixed", "macs_weight": 0.05}
wrappers = [VectorDiscreteActions]
envs = make_sb3_env("Prance-Digits-v0", n_envs=64, seed=0, wrappers=wrappers, reward=reward)
model = DQN(
    "MlpPolicy",
    envs,
    buffer_size=50_000,
    learning_starts=2_000,
    train_freq=1,
    gradient_steps=4,  # per step of all 64 lanes
    batch_size=256,
    gamma=1.0,
    target_update_interval=640,
    exploration_fraction=0.5,
    seed=0,
    device="cpu",
)
model.learn(40_000)

test = make_sb3_env("Prance-Digits-v0", n_envs=256, seed=1, wrappers=wrappers, reward=reward, split="val")
mean, std = evaluate_policy(model, test, n_eval_episodes=2048)
print({"return": round(float(mean), 4), "std": round(float(std), 4)})
