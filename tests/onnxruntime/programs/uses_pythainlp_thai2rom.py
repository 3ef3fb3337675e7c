import json

from pythainlp.transliterate import romanize

words = ["สามารถ", "ภาพยนตร์", "ประเทศไทย", "มหาวิทยาลัย", "สวัสดี"]
print(json.dumps([romanize(word, engine="thai2rom_onnx") for word in words]))
