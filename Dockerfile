# onebase serve on a CPU. The workspace and the cache are volumes. API keys are needed, because the
# port is reached from outside the container:
#
#   docker build -t onebase .
#   docker run --rm -v ./workspace:/workspace -v onebase-cache:/cache onebase keys new
#   docker run -d --stop-timeout 45 -p 8000:8000 -v ./workspace:/workspace -v onebase-cache:/cache onebase
#
# See docs/deployment.md for more.
FROM python:3.12-slim AS build
WORKDIR /src
# On x86, the default torch wheel includes 3 GB of CUDA libraries. To use PyTorch's index of CPU wheels:
# --build-arg TORCH_PIP_OPTIONS="--index-url URL"
ARG TORCH_PIP_OPTIONS=""
COPY requirements/constraints.txt requirements/
RUN python -m venv /opt/onebase \
    && /opt/onebase/bin/pip install --no-cache-dir -c requirements/constraints.txt \
       $TORCH_PIP_OPTIONS torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/onebase/bin/pip install --no-cache-dir -c requirements/constraints.txt .

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 onebase \
    && install -d -o onebase -g onebase /workspace /cache
COPY --from=build /opt/onebase /opt/onebase
ENV PATH=/opt/onebase/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ONEBASE_WORKSPACE=/workspace \
    ONEBASE_CACHE=/cache
USER onebase
VOLUME ["/workspace", "/cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["onebase"]
CMD ["serve", "--host", "0.0.0.0"]
