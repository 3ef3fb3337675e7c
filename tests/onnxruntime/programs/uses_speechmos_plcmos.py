import json

import numpy as np
from speechmos import plcmos

np.random.seed(0)  # plcmos adds noise of its own
rng = np.random.default_rng(0)
t = np.arange(48000) / 16000
sound = (0.3 * np.sin(2 * np.pi * 180 * t) * np.abs(np.sin(5 * t)) + 0.02 * rng.standard_normal(t.size)).clip(-1, 1)
print(json.dumps(float(plcmos.run(sound, sr=16000)["plcmos"])))
