import json

import numpy as np
from flashvad.runtime import OnnxStreamingVadModel

rng = np.random.default_rng(0)
stream = OnnxStreamingVadModel.load_bundled().new_stream()
probabilities = []
for loud in (0.01, 0.3, 0.01, 0.5):
    found, _ = stream.push((loud * rng.standard_normal(4000)).astype(np.float32))
    probabilities += found.tolist()
print(json.dumps(probabilities))
