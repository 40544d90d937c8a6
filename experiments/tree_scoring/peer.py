"""treelite in an environment of its own: reads lines of numbers of documents, answers each with seconds and a digest.

python peer.py MODEL.json FEATURES.npy; needs treelite and numpy alone.
"""

import hashlib
import json
import sys
import time

import numpy as np
import treelite

model = treelite.frontend.load_xgboost_model(sys.argv[1])
features = np.load(sys.argv[2])
for line in sys.stdin:
    first, n_documents, n_calls = json.loads(line)
    rows = [features[first + i * n_documents :][:n_documents] for i in range(n_calls)]
    started = time.thread_time()
    for block in rows:
        scores = treelite.gtil.predict(model, block, nthread=1)
    seconds = time.thread_time() - started
    digest = hashlib.sha256(np.asarray(scores, np.float32).tobytes()).hexdigest()
    print(json.dumps([seconds / n_calls, digest]), flush=True)
