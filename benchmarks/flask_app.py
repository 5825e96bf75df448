"""The usual Flask and ONNX Runtime server of a tutorial: `python flask_app.py MODEL PORT`."""

import sys

import numpy as np
import onnxruntime as ort
from flask import Flask, jsonify, request

app = Flask(__name__)
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
options.intra_op_num_threads = 4
session = ort.InferenceSession(
    sys.argv[1], sess_options=options, providers=["CPUExecutionProvider"]
)
model_input = session.get_inputs()[0]
warmup = np.zeros((1, *model_input.shape[1:]), dtype=np.float32)
for _ in range(10):
    session.run(None, {model_input.name: warmup})


@app.route("/predict", methods=["POST"])
def predict():
    tensor = np.array(request.json["input"], dtype=np.float32)
    result = session.run(None, {model_input.name: tensor})
    return jsonify({"prediction": result[0].tolist(), "model_version": "v1.0"})


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[2]), threaded=True)
