import json

from g2p_id.lstm import LSTM

lstm = LSTM()
print(json.dumps([lstm.predict(word) for word in ("mengembangkannya", "merdeka", "perang", "tebel", "apel")]))
