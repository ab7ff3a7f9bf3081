# Batch jobs: training, evaluation, export, retraining. PyTorch is the CPU build.
#   docker build -f docker/training.Dockerfile -t recserve-training .
# TORCH_INDEX names another index of PyTorch wheels, a mirror or CUDA builds; without it uv takes PyTorch's CPU index.
FROM python:3.11-slim AS build
ARG TORCH_INDEX=
WORKDIR /build
COPY pyproject.toml constraints.txt requirements.py ./
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --quiet --no-cache-dir --only-binary :all: -c constraints.txt uv \
    && torch=$(grep '^torch==' constraints.txt) \
    && if [ -n "${TORCH_INDEX}" ]; then set -- --index-url "${TORCH_INDEX}"; else set -- --torch-backend cpu; fi \
    && /venv/bin/uv pip install --quiet --no-cache --python /venv/bin/python --no-deps "$@" "${torch}" \
    && python requirements.py training service-cpu > requirements.txt \
    && /venv/bin/python -m pip install --quiet --no-cache-dir --only-binary :all: -c constraints.txt -r requirements.txt \
    && /venv/bin/python -m pip uninstall --quiet --yes uv

FROM python:3.11-slim
LABEL org.opencontainers.image.title="recserve training" \
      org.opencontainers.image.description="Trains, evaluates, exports and promotes bundles" \
      org.opencontainers.image.licenses="Apache-2.0"
# The code is read-only under /app; a job works in /work, where its data and runs folders go.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/app \
    MPLCONFIGDIR=/tmp
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin recserve \
    && install -d -o recserve -g recserve /artifacts /work
COPY --from=build /venv /venv
COPY LICENSE /app/
COPY models /app/models
COPY training /app/training
RUN python -m compileall -q /app
WORKDIR /work
USER 10001:10001
VOLUME /artifacts
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
