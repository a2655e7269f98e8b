"""A real container runtime with our plugin: containerd attaches containers by ctr, and pods by CRI as a kubelet does."""

import http.client
from pathlib import Path

from tests.support import runc
from tests.support.clusters import Cluster, eventually
from tests.support.cni import cni_cluster
from tests.support.containerd import HOME, IMAGE, containerd
from tests.support.cri import cri


def page(cluster: Cluster, address: str) -> str:
    """What a web server there says to a client on the other node."""
    with cluster.sandbox.enter("client"):
        connection = http.client.HTTPConnection(address, 8080, timeout=5)
        connection.request("GET", "/page")
        text = connection.getresponse().read().decode()
        connection.close()
        return text


def test_a_container_of_containerd_is_a_pod_of_the_overlay(tmp_path: Path) -> None:
    with cni_cluster(tmp_path, flags=("--pod-registry",)) as (cluster, (host1, host2)):
        runc.prepare(cluster.sandbox)
        assert host2.add("client").status == 0
        with containerd(host1, tmp_path) as daemon:
            container = daemon.run("web", "mkdir -p /tmp/w; ip route >/tmp/w/page; exec httpd -f -p 8080 -h /tmp/w")
            try:
                (address,) = eventually(host1.addresses, 20, "the container has an address")
                gateway = cluster.subnet("host1").replace(".0/24", ".1")
                assert f"default via {gateway} dev eth0" in eventually(
                    lambda: page(cluster, address), 20, "the client on the other node gets the page"
                )
                assert host1.kept() == ["default-web"]
                registered = eventually(lambda: cluster.get(f"pods/{address}"), 10, "the agent has registered it")
                assert '"container":"default-web"' in registered["value"]
                daemon.ctr("tasks", "kill", "--signal", "KILL", "web")
                container.wait(timeout=20)
            finally:
                if container.poll() is None:
                    container.kill()
                container.communicate()
            assert (host1.kept(), host1.addresses()) == ([], [])
            eventually(lambda: cluster.get(f"pods/{address}") is None, 10, "the agent has taken it back")


def test_a_pod_of_the_kubernetes_runtime_interface_is_a_pod_of_the_overlay(tmp_path: Path) -> None:
    with cni_cluster(tmp_path, flags=("--pod-registry",)) as (cluster, (host1, host2)):
        runc.prepare(cluster.sandbox)
        assert host2.add("client").status == 0
        with containerd(host1, tmp_path, cri=True), cri(cluster.sandbox.path(f"{HOME}/socket")) as runtime:
            eventually(runtime.network_is_ready, 20, "the runtime has found our network")
            pod = runtime.run_pod("web", "shop")
            try:
                assert host1.addresses() == [pod.address]
                served = "mkdir -p /tmp/w; hostname >/tmp/w/page; exec httpd -f -p 8080 -h /tmp/w"
                runtime.start(pod, "server", IMAGE, "sh", "-c", served)
                assert eventually(lambda: page(cluster, pod.address), 20, "a client on the other node gets the page") == "web\n"
                registered = eventually(lambda: cluster.get(f"pods/{pod.address}"), 10, "the agent has registered it")
                assert '"namespace":"shop","name":"web"' in registered["value"]
            finally:
                runtime.remove_pod(pod)
            assert (host1.kept(), host1.addresses()) == ([], [])
            eventually(lambda: cluster.get(f"pods/{pod.address}") is None, 10, "the agent has taken it back")
