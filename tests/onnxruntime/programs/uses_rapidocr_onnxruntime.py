import json

import numpy as np
from PIL import Image, ImageDraw
from rapidocr_onnxruntime import RapidOCR

image = Image.new("RGB", (400, 160), "white")
draw = ImageDraw.Draw(image)
for row, text in enumerate(("The quick brown fox", "jumps over 12 dogs")):
    draw.text((20, 20 + 60 * row), text, fill="black", font_size=34)
found, _ = RapidOCR()(np.asarray(image))
print(json.dumps([[np.asarray(box).tolist(), text, float(score)] for box, text, score in found]))
