package snapshotter

import (
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
)

// containerd gives names as NAMESPACE/NUMBER/NAME. A name of its client's has no slash.

// ofImage reports whether a snapshot of this key is committed as a layer of an image, by the name it gets: it was
// unpacked, or has a chain ID. BuildKit commits the steps of a build under words of its own, and makes an image's layer
// of one by comparing it with the step before: a descriptor that was added is to be there as a file then.
func ofImage(key, name string) bool {
	return strings.HasPrefix(own(key), snapshots.UnpackKeyPrefix+"-") || digest.Digest(own(name)).Validate() == nil
}

// readsLowers reports whether the mounts of a snapshot may be given to containerd's library for looking up users in
// /etc/passwd. From 2.3 on that mounts no overlay but reads its lower layers itself, by none of the rules of data-only
// layers: the mount point of a composed image has the files, and not what is in them. Docker and BuildKit mount.
func readsLowers(key string) bool {
	namespace, _, named := strings.Cut(key, "/")
	return named && namespace != "moby" && !strings.HasPrefix(namespace, "moby-") && namespace != "buildkit"
}

func own(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }
