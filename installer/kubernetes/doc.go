// Package kubernetes puts the snapshotter on a node of Kubernetes and takes it away, from the pod of a DaemonSet.
//
// The snapshotter is a service of the host, for it has to outlive every pod, that of its own included. So the pod
// brings programs and settings into a folder that it shares with the host, the shared folder, and has systemd run one
// of them there, as a transient unit: the work is done among the host's files, mounts and processes, and goes on if the
// pod ends. The pod waits for its end and shows what it says.
//
// What is done is idempotent: each pod that starts brings its node to what its settings say. The state "installed" has
// the snapshotter run and containerd know it, the state "removed" brings back what was there before. Every file that
// is written is recorded with what stood there; see record. The snapshotter is in use as long as there are containers
// whose layers it keeps, and is not removed from below them.
package kubernetes
