#!/usr/bin/env bash
# Gymnasium's vector RecordEpisodeStatistics miscounts episodes with autoreset mode SAME_STEP before version 1.4: from the
# second episode on, the step that ends one and begins the next is not counted. Lengths and returns are too small by one
# step, without a warning. NEXT_STEP is right in both versions.
#
# Seen with numpy 2.3.5, Python 3.11, for an environment whose episodes all have three steps:
#   gymnasium 1.2.3 SAME_STEP [3, 2, 2, 2]
#   gymnasium 1.2.3 NEXT_STEP [3, 3, 3]
#   gymnasium 1.4.0 SAME_STEP [3, 3, 3, 3]
#   gymnasium 1.4.0 NEXT_STEP [3, 3, 3]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/count.py" <<'PYTHON'
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics


class ThreeSteps(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == 3, False, {}


for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
    envs = RecordEpisodeStatistics(SyncVectorEnv([ThreeSteps], autoreset_mode=mode))
    envs.reset(seed=0)
    lengths = []
    for _ in range(12):
        _, _, terminated, _, infos = envs.step(np.zeros(1, int))
        if terminated.any():
            final = infos.get("final_info", {})
            lengths.append(int((final if "episode" in final else infos)["episode"]["l"][0]))
    print("gymnasium", gym.__version__, mode.name, lengths)
PYTHON
for version in 1.2.3 1.4.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet "gymnasium==$version" numpy==2.3.5
    "$folder/$version/bin/python" "$folder/count.py"
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "the behaviour has changed" >&2; exit 1; }
gymnasium 1.2.3 SAME_STEP [3, 2, 2, 2]
gymnasium 1.2.3 NEXT_STEP [3, 3, 3]
gymnasium 1.4.0 SAME_STEP [3, 3, 3, 3]
gymnasium 1.4.0 NEXT_STEP [3, 3, 3]
SEEN
