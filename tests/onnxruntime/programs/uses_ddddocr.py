import io
import json

from ddddocr import DdddOcr
from PIL import Image, ImageDraw

ocr = DdddOcr(beta=True, show_ad=False)
found = []
for text in ("A7KQ", "x3mN9", "2468 word"):
    image, png = Image.new("RGB", (170, 60), "white"), io.BytesIO()
    ImageDraw.Draw(image).text((15, 20), text, fill="black", font_size=30)
    image.save(png, "PNG")
    found += [ocr.classification(png.getvalue()), ocr.classification(png.getvalue(), probability=True)]
print(json.dumps(found))
