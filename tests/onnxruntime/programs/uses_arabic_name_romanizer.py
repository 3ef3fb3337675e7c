import json

from arabic_name_romanizer import transliterate

names = ["زغردانلي", "قشمرخوني", "عبد الطمرشاني بن حسنوف", "بشنقلوري", "محمد"]
print(json.dumps([[(c.text, c.score) for c in transliterate(name, top_k=3)] for name in names]))
