import json
import wave

import numpy as np
from pysilero import SileroVAD

with wave.open("models/speech.wav") as file:
    sound = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
found = []
for version in ("v4", "v5"):
    vad = SileroVAD(version=version)
    found.append([float(vad(frame, 16000)[0][0]) for _, _, frame in vad.add_chunk(sound, True)])
print(json.dumps(found))
