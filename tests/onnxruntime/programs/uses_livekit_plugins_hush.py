import json

import numpy as np
from livekit.plugins.hush._hush_model import HushModel, HushSession

rng = np.random.default_rng(0)
session = HushSession(HushModel())
frames = (0.1 * rng.standard_normal((40, 160))).astype(np.float32)
print(json.dumps([session.process_frame(frame).ravel()[::10].tolist() for frame in frames]))
