// Package engine runs a Docker engine of its own beside whatever the machine has, for tests and the demonstration, and
// leaves the machine as it was.
//
// The tools are the engine's programs (dockerd, containerd, runc, docker): Debian's packages unpacked into a cache
// folder, or those of an engine that is installed. Beside them the cache may hold newer engines, and programs for
// tests: of Debian, or built from Go modules where Debian has none.
//
// The keeper is the calling program started once more as process 1 of a PID and a mount namespace; see [Main]. The
// engine and all it starts live in these: when the keeper goes, the kernel ends the processes and drops the mounts,
// whatever state they are in. In the namespace /etc, /opt and /run are overlays over the machine's, so that nothing the
// engine writes there (its key, sockets of plugins, state of containers) reaches the machine or meets another engine's.
//
// A [Stack] is an engine whose images are in the image store of a containerd, which runs in the same namespaces, as do
// what other [Service]s a test adds. Elsewhere the engine starts a containerd by itself.
//
// An engine has one folder: its data, its daemon.json, its socket, its log, and those of its containerd.
package engine
