"""Optuna searches two hyper-parameters of Stable-Baselines3's PPO; `prance tune` does it for all, and resumes."""

import optuna

from agents import make_sb3
from prance_env import make_sb3_env
from train.policies.tune import validation_return

reward = {"mode": "potential", "accuracy": "mixed", "macs_weight": 0.05}


def objective(trial: optuna.Trial) -> float:
    """Mean return on the validation images after a short training."""
    envs = make_sb3_env("Prance-Digits-v0", n_envs=256, seed=0, reward=reward)
    model = make_sb3(
        "ppo",
        envs,
        seed=0,
        learning_rate=trial.suggest_float("learning_rate", 3e-4, 5e-3, log=True),
        policy_kwargs={"log_std_init": trial.suggest_float("log_std_init", -2.0, -0.5)},
    )
    for step in (1, 2):
        model.learn(4_608, reset_num_timesteps=False)
        value, accuracy, macs_fraction = validation_return(model, "Prance-Digits-v0", {"reward": reward})
        trial.report(value, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("accuracy", accuracy)
    trial.set_user_attr("macs_fraction", macs_fraction)
    return value


study = optuna.create_study(
    direction="maximize",
    sampler=optuna.samplers.TPESampler(seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
)
study.optimize(objective, n_trials=3)
print("best:", study.best_params)
print("return:", round(study.best_value, 4), study.best_trial.user_attrs)
