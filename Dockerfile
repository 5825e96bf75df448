# docker build -t salver .
# docker run --read-only --tmpfs /tmp -p 8000:8000 -v ./models:/models:ro salver
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
# What is served beside ONNX and Python: any of the extras in pyproject.toml, torch among them.
ARG EXTRAS=sklearn,xgboost,lightgbm,image
# Wheels of PyTorch for processors only; another index has those for graphics cards.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/salver
RUN case ",${EXTRAS}," in *,torch,*) \
      /opt/salver/bin/pip install --index-url "${TORCH_INDEX}" torch ;; \
    esac
COPY . .
# The libraries' own tests and the installer are not needed to serve.
RUN /opt/salver/bin/pip install ".${EXTRAS:+[${EXTRAS}]}" \
 && /opt/salver/bin/pip uninstall --yes setuptools pip \
 && find /opt/salver -type d -name tests -prune -exec rm -r {} +

FROM ${PYTHON_IMAGE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin \
 && useradd --uid 1000 --no-create-home --home-dir /tmp salver \
 && install --directory --owner=salver /models
COPY --from=builder /opt/salver /opt/salver
ENV PATH=/opt/salver/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 SALVER_HOST=0.0.0.0
USER 1000
VOLUME /models
EXPOSE 8000
HEALTHCHECK --timeout=6s --start-period=60s CMD ["python", "-c", "\
import http.client, os; \
server = http.client.HTTPConnection('127.0.0.1', os.environ.get('SALVER_PORT', 8000), 5); \
server.request('GET', '/v2/health/live'); \
raise SystemExit(server.getresponse().status != 200)"]
ENTRYPOINT ["salver"]
CMD ["serve", "/models"]
