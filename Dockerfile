# The agent, the CNI plugin and their tools in one image; see config/kubernetes/flanpy.yaml for how a node runs it.
#
#   docker build -t flanpy:0.1.0 .
#   docker run --rm --privileged --network host -v /run/flannel:/run/flannel -v /run/flanpy:/run/flanpy -v /var/lib/flanpy:/var/lib/flanpy \
#       -v /sys/fs/bpf:/sys/fs/bpf flanpy:0.1.0 agent --etcd-endpoints http://10.0.0.1:2379

FROM python:3.11-slim-bookworm AS build
# clang compiles the BPF object; without it the image would have the userspace datapath alone.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev linux-libc-dev clang \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY csrc csrc
COPY flanpy flanpy
RUN pip wheel --no-cache-dir --wheel-dir /wheels . \
    && python -m zipfile --list /wheels/flanpy-*.whl | grep -q overlay.bpf.o

FROM python:3.11-slim-bookworm
# nft and iptables keep the masquerade and forward rules; iproute2 and ping are for whoever looks for a fault inside.
RUN apt-get update \
    && apt-get install -y --no-install-recommends nftables iptables iproute2 iputils-ping \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels flanpy && rm -rf /wheels
# Whom flanpy-datapath runs as. Hosts and their containers share numbers, so it is one that no system gives out by itself.
RUN groupadd --gid 65520 flanpy && useradd --uid 65520 --gid 65520 --no-create-home --home-dir / --shell /usr/sbin/nologin flanpy
ENTRYPOINT ["flanpy"]
CMD ["agent"]
