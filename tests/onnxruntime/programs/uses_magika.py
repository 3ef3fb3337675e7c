import json

from magika import Magika

magika = Magika()
contents = [
    b"import os\n\ndef f(x):\n    return os.path.join(x, 'a')\n" * 5,
    b"<html><body><p>hello</p></body></html>" * 9,
    bytes(range(256)) * 8,
]
found = [magika.identify_bytes(content) for content in contents]
print(json.dumps([[result.output.label, float(result.score)] for result in found]))
