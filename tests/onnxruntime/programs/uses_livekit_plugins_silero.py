import json
import wave

import numpy as np
from livekit.plugins.silero.onnx_model import OnnxModel, new_inference_session

with wave.open("models/speech.wav") as file:
    sound = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
model = OnnxModel(onnx_session=new_inference_session(force_cpu=True), sample_rate=16000)
print(json.dumps([model(sound[i : i + 512]) for i in range(0, len(sound) - 511, 512)]))
