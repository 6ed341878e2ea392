// Package snapshotter is containerd's face of a node: the service containerd.services.snapshots.v1, by which containerd
// and all on top of it (Docker's image store, nerdctl, Kubernetes' CRI) keep the layers of images and containers. A
// [Server] speaks gRPC, a [Snapshotter] does what it is asked with what package node offers.
//
// The words:
//
//   - A snapshot is a layer with a name, labels and times. It is active, to be written to; a view, to be read; or
//     committed, the parent of others. A committed one has another name than the active one had that it was made of.
//   - Mounts are what shows a snapshot, as values: containerd, its shim, dockerd and BuildKit mount by themselves, each
//     where it likes, several at once, and tell nobody when they unmount.
//
// A snapshot is a layer of package layers, whose id is a number: mounts are spelled in a page, which wants short names.
// No number is used twice. What only containerd knows of it, the record, is the layer's note. A record also holds what
// its snapshot is to become when it is committed; whether it has become so is what the layer says, so a commit is
// complete at one moment, or not at all. All records are in memory, since nothing is asked as often as what a snapshot
// is.
//
// Mounts, by what shows a snapshot:
//
//	no parent, to be written           a bind mount of the layer's content, as containerd applies archives to it
//	one folder, to be read             a bind mount of that: one layer, or a shared overlay
//	else, nothing thin                 an overlay of the layers' contents
//	else, where the kernel takes it    an overlay whose lowest layer is the composed image, with data-only layers
//	else, and where the options would  an overlay whose lowest layer is the shared overlay of the composed image,
//	be longer than a page              which is mounted here
//
// Where containerd asks for owners to be mapped, by labels, the lower layers are mounts of the layers' folder and of
// the composed image with mapped owners (package node), and everything above is the same. What is written has the
// owners that the host sees, in the upper folder and once it is committed, as with containerd's own snapshotter;
// archives have those that the container sees.
//
// containerd's library, from 2.3 on, looks up users for a container in the lower layers of an overlay, without mounting
// it. So data-only layers are for Docker's and BuildKit's snapshots alone.
//
// What is mounted here must be seen by all who mount what is returned. Every lower layer is a folder inside of its
// mount, so where it isn't seen, or was taken off, a mount fails; a container never runs without its image's files.
//
// The same socket answers containerd.services.diff.v1 ([Differ]): the archive of what a container has changed is that
// of its snapshot's own folder.
//
// Nobody says which snapshots are in use: active snapshots and views count as mounted as long as there are any. What is
// mounted for images that none of them needs is taken off by Cleanup.
//
// Locks: a snapshot's lock, by the layer's id, is held while it is committed, changed or removed; that of records in
// memory comes after it (package lockorder).
package snapshotter
