"""A picture model that counts and times its own calls, as monitoring tutorials have it."""

import time

from prometheus_client import Counter, Gauge, Histogram

import salver

REQUEST_COUNT = Counter("inference_requests_total", "Requests by result", ["model", "status"])
REQUEST_LATENCY = Histogram("inference_duration_seconds", "Seconds per request", ["model"])
GPU_MEMORY = Gauge("gpu_memory_usage_bytes", "Memory in use on a device", ["device"])


def monitor_inference(model_name):
    def decorator(func):
        def wrapper(*args, **kwargs):
            start_time = time.time()
            status = "success"
            try:
                return func(*args, **kwargs)
            except Exception:
                status = "error"
                raise
            finally:
                REQUEST_COUNT.labels(model=model_name, status=status).inc()
                REQUEST_LATENCY.labels(model=model_name).observe(time.time() - start_time)

        return wrapper

    return decorator


@monitor_inference("resnet50")
def predict_image(image_data):
    if image_data.min() < 0:
        raise ValueError("a pixel is darker than black")
    return image_data.mean(axis=(1, 2))


class ResNet50:
    """Mean brightness of each colour: what it predicts does not matter here."""

    def predict(self, image: salver.Array["float32", 3, None, None]) -> salver.Array["float32", 3]:
        return predict_image(image)
