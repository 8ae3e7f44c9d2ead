# docker build --tag openvla-oft .          CUDA comes with torch; the host needs the NVIDIA driver and container toolkit
# docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu --tag openvla-oft .
FROM python:3.11-slim-bookworm

# libosmesa6 and libegl1 render simulators; the compiler is for torch.compile. Debian's stable release is their pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential libegl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
ARG TORCH_INDEX_URL=
ARG EXTRAS=rlds,lerobot,serve,quant,metaworld,aloha
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".[$EXTRAS]"

# Containers run as a user without rights over the host; folders that are mounted must be theirs to write (--user "$(id -u)" takes yours).
RUN useradd --create-home --uid 1000 policy && mkdir -p runs && chown policy:policy runs
USER 1000

EXPOSE 8777
# Of openvla-deploy; where nothing listens on the port, as while a model loads or in a training container, there is nothing to say.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=2 CMD ["python", "-m", "prismatic.serving.healthcheck"]

CMD ["openvla-doctor"]
