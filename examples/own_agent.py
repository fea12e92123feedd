"""An agent of your own needs no framework: a rule that spends little where the network is already sure."""

import gymnasium as gym
import numpy as np

import prance_env

envs = gym.make_vec("Prance-Digits-v0", num_envs=256, autoreset_mode="SAME_STEP", split="val")
layout = prance_env.observation_layout(envs.unwrapped.config, "cls")


class ConfidenceRule:
    """Full widths; keeps all patches unless the early exit is more confident than `threshold`."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        sure = observation[:, layout["max_prob"]][:, 0] > self.threshold
        actions = np.ones((len(observation), *envs.single_action_space.shape), dtype=np.float32)
        actions[sure, -1] = -0.5  # a = (action + 1) / 2 = 0.25 of the way from the smallest keep rate to 1
        return actions, state


for threshold in (1.0, 0.8, 0.5, 0.2, 0.0):
    agent = ConfidenceRule(threshold)
    observations, infos = envs.reset(seed=0)
    correct, macs = [], []
    while len(correct) < 1024:
        actions, _ = agent.predict(observations)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        if terminated.any():  # what the ended episodes came to is in final_info
            correct += infos["final_info"]["is_success"][terminated].tolist()
            macs += infos["final_info"]["macs_fraction"][terminated].tolist()
    print(
        {"threshold": threshold, "accuracy": round(float(np.mean(correct)), 4), "macs": round(float(np.mean(macs)), 4)}
    )
