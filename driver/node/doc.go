// Package node is what one host runs, whichever engine asks for it: repositories, the object store, the FUSE tree,
// composed images and layers, opened and wired once. A face (package graphdriver) speaks an engine's protocol and keeps
// what belongs to that engine's life; it has the node mount what a stack of layers says, or takes the overlay as a
// value and has somebody else mount it.
//
// The words:
//
//   - The settings are what the engine's arguments mean. Before they are known a node knows which layers there are, can
//     remove them, and nothing more.
//   - The view is how composed images are shown: mounted by the kernel (erofs), alone or by way of a shared overlay, or
//     served by FUSE (fuse).
//   - A shared overlay is a read-only one of a composed image for the overlays of all containers to stand on.
//   - A mount hangs on the FUSE mount behind it, the generation; a mount of another generation has lost what it reads
//     from.
//   - A composed image is named by the record of a layer, or by a mount that reads from it.
//
// On disk, below Config.Root:
//
//	layout                   version of all this
//	store/objects/…          objects (package objects); store/ is the first data-only lower layer of thin mounts
//	fresh/objects/…          fresh links (likewise), another of them
//	layers/                  layers (package layers)
//	images/                  composed images (package images)
//	push-back/               archives of layers on their way to be published (package pushback)
//	state/                   the engine's arguments, marks of the object store, repositories, a node of the block device
//
// Layers are not in store/, for overlayfs refuses a lower layer inside another one (ELOOP). Below Config.Run, which is
// gone at reboot: fuse/ is the object file system; on images/<key>, shared/<key>.<view> and views/ is mounted; empty/
// is the lowest layer where an overlay needs one more.
//
// A composed image stays as long as somebody names it. All others are swept when the settings change, as at the start,
// and after a composing that came to nothing; never while one is under way, for an image has no name yet when it has
// just been made.
//
// Questions have no effects: Status, Describe and Local load, mount, index and unmount nothing.
//
// Locks: package lockorder has the order. A node's are those of thin layers that are composed, one for each layer, and
// that of naming, held while an image comes to be named by a layer or to be removed, and while a composer takes over.
// A Composer, a Kernel and the FUSE tree have locks of their own, and call nothing of a node while they hold them.
package node
