import json

import numpy as np
from captcha_whisperer.recognizer import CaptchaRecognizer
from PIL import Image, ImageDraw

recognizer = CaptchaRecognizer(threads=1)
found = []
for text in ("A7KQ", "x3mN9", "2468"):
    image = Image.new("RGB", (160, 60), "white")
    ImageDraw.Draw(image).text((15, 20), text, fill="black", font_size=30)
    found.append(recognizer.recognize_arrays([np.asarray(image)])[0])
print(json.dumps(found))
