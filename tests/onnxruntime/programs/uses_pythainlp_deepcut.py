import json

from pythainlp.tokenize import word_tokenize

texts = ["ทดสอบการตัดคำภาษาไทยด้วยโครงข่ายประสาท", "วันนี้อากาศดีมาก 25 องศา", "ตากลม"]
print(json.dumps([word_tokenize(text, engine="deepcut") for text in texts]))
