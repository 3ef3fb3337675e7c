import json

from faster_whisper.audio import decode_audio
from faster_whisper.vad import VadOptions, get_speech_timestamps, get_vad_model

sound = decode_audio("models/speech.wav")
options = VadOptions(min_silence_duration_ms=100)
print(json.dumps([get_vad_model()(sound[: len(sound) // 512 * 512]).tolist(), get_speech_timestamps(sound, options)]))
