# Two images from one file; both run on the CPU, both work as an ordinary user.
#
#   docker build --target build   -t mlc-bridge:build .      converts, compiles, checks
#   docker build --target runtime -t mlc-bridge:runtime .    serves a model that is built
#
#   docker run -v $PWD/models:/models mlc-bridge:build build /models/MODEL -o /models/OUT
#   docker run -p 8000:8000 -v $PWD/models:/models:ro mlc-bridge:runtime serve /models/OUT --host 0.0.0.0

FROM python:3.13-slim AS sources
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mlc_bridge ./mlc_bridge
COPY tir_schedules ./tir_schedules
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# Everything but the linker: TVM's wheel brings compiler and runtime alike. Not [structured]: xgrammar
# brings torch, and that gigabytes of CUDA.
FROM python:3.13-slim AS runtime
COPY --from=sources /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/mlc_bridge-*.whl)[tvm,serve]"
RUN useradd --create-home bridge
USER bridge
EXPOSE 8000
ENTRYPOINT ["mlc-bridge"]
CMD ["doctor"]

FROM runtime AS build
USER root
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir "$(ls /wheels/mlc_bridge-*.whl)[tvm,serve,tokenizers]"
USER bridge
