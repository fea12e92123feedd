"""RLlib's PPO on the native batch; needs `pip install "ray[rllib]"`."""

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

config = (
    PPOConfig()
    .environment(
        "prance_env:Prance-Digits-v0",  # with the module in front, remote workers find the id as well
        env_config={"reward": {"mode": "potential", "accuracy": "mixed", "macs_weight": 0.05}},
    )
    .env_runners(
        num_env_runners=0,  # 1 or more: that many processes
        num_envs_per_env_runner=256,
        gym_env_vectorize_mode="vector_entry_point",  # the native batch; RLlib needs NEXT_STEP, its default here
    )
    .training(
        train_batch_size_per_learner=1536, minibatch_size=384, num_epochs=6, lr=1.5e-3, gamma=1.0, vf_clip_param=10.0
    )
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False))
    .debugging(seed=0)
)
algorithm = config.build_algo()
for iteration in range(1, 31):
    result = algorithm.train()["env_runners"]
    if iteration % 10 == 0:
        print(f"return: {result['episode_return_mean']:.3f}, decisions: {result['episode_len_mean']:.1f}")
algorithm.stop()
