//go:build guest

package kubernetes

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/test/debian"
	"cvmfs-graphdriver/test/engine"
)

// address is that of the node and all its services.
const address = "10.88.0.1"

// unitFile is a service of the node's.
const unitFile = `[Service]
Environment=PATH=/srv/programs/containerd:/srv/programs/kubernetes:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=%s
Restart=on-failure
RestartSec=1
KillMode=process
Delegate=yes
LimitNOFILE=1048576
`

const kubeconfig = `apiVersion: v1
kind: Config
clusters:
  - name: test
    cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}
users:
  - name: admin
    user: {token: secret}
contexts:
  - name: test
    context: {cluster: test, user: admin}
current-context: test
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
evictionHard: {memory.available: 1Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
syncFrequency: 5s
`

// A file of version 3, as kubeadm's hosts have it, with a comment that has to stay. The image of pods' namespaces
// is an ordinary one, and limits that the machine doesn't let containerd lower stay.
const containerdConfig = `version = 3 # the administrator's
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %q
`

// services are those of the cluster, in the order in which they are started.
var services = []struct{ name, command string }{
	{"etcd", "/srv/programs/kubernetes/server --data-dir /var/lib/etcd --unsafe-no-fsync " +
		"--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379"},
	{"apiserver", "/srv/programs/kubernetes/kube-apiserver --etcd-servers http://127.0.0.1:2379 " +
		"--cert-dir /var/lib/apiserver --token-auth-file /srv/test/tokens.csv --authorization-mode RBAC " +
		"--advertise-address " + address + " --service-cluster-ip-range 10.96.0.0/16 --allow-privileged " +
		"--kubelet-preferred-address-types InternalIP " + // that of its name is loopback, which it doesn't relay to
		"--service-account-issuer https://kubernetes.default.svc --service-account-key-file /srv/test/sa.key " +
		"--service-account-signing-key-file /srv/test/sa.key"},
	{"controllers", "/srv/programs/kubernetes/kube-controller-manager --kubeconfig /srv/test/kubeconfig " +
		"--leader-elect=false --service-account-private-key-file /srv/test/sa.key"},
	{"scheduler", "/srv/programs/kubernetes/kube-scheduler --kubeconfig /srv/test/kubeconfig --leader-elect=false"},
	{"kubelet", "/srv/programs/kubernetes/kubelet --kubeconfig /srv/test/kubeconfig --config /srv/test/kubelet.yaml " +
		"--hostname-override node --node-ip " + address},
}

// startNode boots a node with containerd; pause is the image of pods' namespaces.
func startNode(t *testing.T, pause string) *node {
	t.Helper()
	cache, err := engine.CacheDir()
	must(t, err)
	tree, err := debian.Root(cache, debian.Booted)
	must(t, err)
	programs, err := engine.KubernetesPrograms(cache)
	must(t, err)
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"address", "replace", address + "/32", "dev", "lo"},
		{"route", "replace", "default", "dev", "lo", "src", address},
	} {
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	n := bootNode(t, tree, programs)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := n.try(context.WithoutCancel(t.Context()), "for unit in kubelet apiserver containerd cvmfs-snapshotter cvmfs-node; "+
				"do journalctl --no-pager --quiet --output cat --unit $unit | grep -v 'loading plugin' | tail -40 | cut -c 1-300 || true; done")
			t.Logf("%v\n%s", err, out)
		}
	})
	n.write(t, "/etc/containerd/config.toml", fmt.Sprintf(containerdConfig, pause))
	// A network of pods is what kubelet wants to see; the tests' pods have the node's.
	n.write(t, "/etc/cni/net.d/10-none.conflist", `{"cniVersion":"0.4.0","name":"none","plugins":[{"type":"loopback"}]}`)
	n.write(t, "/etc/systemd/system/containerd.service.d/version.conf",
		"[Service]\nEnvironment=PATH=/srv/programs/containerd:/usr/sbin:/usr/bin:/sbin:/bin\nExecStartPre=\nExecStart=\n"+
			"ExecStart=/srv/programs/containerd/containerd\n")
	n.sh(t, "systemctl daemon-reload; systemctl restart containerd")
	return n
}

// startCluster boots a node and starts a cluster on it.
func startCluster(t *testing.T, pause string) *node {
	t.Helper()
	n := startNode(t, pause)
	n.write(t, "/srv/test/kubeconfig", kubeconfig)
	n.write(t, "/srv/test/kubelet.yaml", kubeletConfig)
	n.write(t, "/srv/test/tokens.csv", "secret,admin,admin,system:masters\n")
	n.write(t, "/srv/test/sa.key", newKey(t))
	for _, s := range services {
		n.write(t, "/etc/systemd/system/"+s.name+".service", fmt.Sprintf(unitFile, s.command))
	}
	n.sh(t, "systemctl daemon-reload")
	for _, s := range services {
		n.sh(t, "systemctl start "+s.name)
	}
	n.until(t, 5*time.Minute, "kubectl wait --for=condition=Ready node/node --timeout=5s >/dev/null && "+
		"kubectl --namespace default get serviceaccount default --output name", "serviceaccount/default")
	return n
}

// up brings up the network, which is ours alone.
func up(t *testing.T) {
	t.Helper()
	if links := output(t, "ip", "-oneline", "link"); strings.Count(links, "\n") > 1 && !strings.Contains(links, "NOARP") {
		t.Fatal("this is not a network of our own: make test-kubernetes")
	}
	output(t, "ip", "link", "set", "lo", "up")
	output(t, "ip", "address", "replace", address+"/32", "dev", "lo")
	output(t, "ip", "route", "replace", "default", "dev", "lo", "src", address)
}

// output runs a program and gives what it prints.
func output(t *testing.T, argv ...string) string {
	t.Helper()
	var errOut strings.Builder
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, &errOut)
	}
	return string(out)
}

// newKey returns a key that tokens of service accounts are signed by.
func newKey(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}
