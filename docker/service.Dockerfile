# The HTTP service: the service, models and what pyproject.toml's extra names; never PyTorch.
#   docker build -f docker/service.Dockerfile -t recserve-service:cpu .
#   docker build -f docker/service.Dockerfile -t recserve-service:gpu --build-arg EXTRA=service-gpu .
# CUDA and cuDNN come as wheels with the gpu extra, so that both images have one base; the host needs NVIDIA's driver
# and container toolkit. Python is the version the tests run on.
FROM python:3.11-slim AS build
ARG EXTRA=service-cpu
WORKDIR /build
COPY pyproject.toml constraints.txt requirements.py ./
RUN python -m venv /venv \
    && python requirements.py ${EXTRA} > requirements.txt \
    && /venv/bin/python -m pip install --quiet --no-cache-dir --only-binary :all: -c constraints.txt -r requirements.txt

FROM python:3.11-slim
LABEL org.opencontainers.image.title="recserve service" \
      org.opencontainers.image.description="Takes events, answers with recommendations from the promoted bundle" \
      org.opencontainers.image.licenses="Apache-2.0"
# The root file system may be read-only: bytecode is compiled here, and nothing is written but /artifacts, /keys and /tmp.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RECSERVE_ARTIFACTS=/artifacts \
    RECSERVE_KEYS=/keys
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin recserve \
    && install -d -o recserve -g recserve /artifacts \
    && install -d -o recserve -g recserve -m 700 /keys
COPY --from=build /venv /venv
WORKDIR /app
COPY LICENSE ./
COPY models models
COPY service service
RUN python -m compileall -q models service
USER 10001:10001
VOLUME /artifacts /keys
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ.get(\"RECSERVE_PORT\", 8000)}/healthz', timeout=2)"]
# A store and leave to listen beyond the container are for whoever runs it to give: RECSERVE_REDIS, and either keys in
# /keys (--entrypoint python IMAGE -m service keys create --help) or RECSERVE_TRUSTED_NETWORK=true.
ENTRYPOINT ["python", "-m", "service", "serve", "--host", "0.0.0.0"]
