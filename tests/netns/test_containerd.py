"""A real container runtime with our plugin: containerd's ctr attaches a container, another node reaches it, and all of it goes again."""

import http.client
from pathlib import Path

from tests.support import runc
from tests.support.clusters import eventually
from tests.support.cni import cni_cluster
from tests.support.containerd import containerd


def test_a_container_of_containerd_is_a_pod_of_the_overlay(tmp_path: Path) -> None:
    with cni_cluster(tmp_path, flags=("--pod-registry",)) as (cluster, (host1, host2)):
        runc.prepare(cluster.sandbox)
        assert host2.add("client").status == 0
        with containerd(host1, tmp_path) as daemon:
            container = daemon.run("web", "mkdir -p /tmp/w; ip route >/tmp/w/page; exec httpd -f -p 8080 -h /tmp/w")
            try:
                (address,) = eventually(host1.addresses, 20, "the container has an address")

                def page() -> str:
                    with cluster.sandbox.enter("client"):
                        connection = http.client.HTTPConnection(address, 8080, timeout=5)
                        connection.request("GET", "/page")
                        text = connection.getresponse().read().decode()
                        connection.close()
                        return text

                gateway = cluster.subnet("host1").replace(".0/24", ".1")
                assert f"default via {gateway} dev eth0" in eventually(page, 20, "the client on the other node gets the page")
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
