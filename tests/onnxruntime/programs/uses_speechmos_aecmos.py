import json

import numpy as np
from speechmos import aecmos

rng = np.random.default_rng(0)
t = np.arange(64000) / 16000
far = (0.3 * np.sin(2 * np.pi * 180 * t) * np.abs(np.sin(5 * t))).astype(np.float32)
near = (0.2 * np.sin(2 * np.pi * 240 * t) * np.abs(np.cos(3 * t)) + 0.02 * rng.standard_normal(t.size)).astype(
    np.float32
)
found = aecmos.run({"lpb": far, "mic": 0.5 * far + near, "enh": near}, sr=16000, talk_type="dt")
print(json.dumps({name: float(v) for name, v in found.items() if name.endswith("mos")}))
