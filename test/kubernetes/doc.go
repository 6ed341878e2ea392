// Package kubernetes runs what a cluster is given, the chart and the manifests, in a cluster of one node: etcd, API
// server, controllers, scheduler, kubelet and containerd as services of a Debian that is booted with systemd in
// namespaces, as containers are. It takes no virtual machine, and leaves the machine as it was. Its tests want a
// network of their own: make test-kubernetes.
package kubernetes
