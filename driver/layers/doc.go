// Package layers keeps the layers of images and containers on disk and says what to mount for each of them; it mounts
// nothing itself.
//
// The words:
//
//   - A layer is a folder layers/<id>/ with what it adds to its parent (its diff), a scratch folder of overlayfs (work/) and a
//     record, an extended attribute of the folder. Its content follows overlayfs' conventions: character device 0/0 is a whiteout, the extended attribute
//     trusted.overlay.opaque=y hides what lies below a folder.
//   - A read-only layer gets its content by one ApplyDiff. It counts once its record says that it is committed; what
//     isn't when the engine initialises the driver was cut short and is removed.
//   - A read-write layer is written to through its mount: that of a container, or a step of a build. Engines make the latter as
//     if it were read-only and never apply a diff to it; a layer whose parent's view is asked for before it has content is
//     therefore taken for read-write from then on.
//   - A thin layer is a read-only one whose only file is a thin image descriptor (package thin). It and everything below it are
//     replaced by a composed image (package images).
//   - The chain of a layer is its ancestors, from its parent down. A mount stacks the ordinary layers above the topmost thin one
//     and then, if there is one, the composed image with the data it names.
//   - An open layer has been asked for by Get more often than given back by Put. A mount hangs on the FUSE mount behind it, the
//     generation; a mount of another generation has lost what it reads from. Init, with which an engine's life begins, detaches
//     those, and lets the others count for one Get: that of the container which outlived the former engine.
//   - An idle layer is one that nobody uses any more and that stays mounted for a moment.
//   - A stranded layer is an open one of a former generation, until the engine's Init or its last Put: a container lives in it that
//     can't know. What its image lacks is fetched in the background.
//   - A project is what quotas of a file system count by. A container of a size (storage option size) is one.
//
// On disk, below Config.Root, which the engine sees:
//
//	layout                   version of all this
//	store/objects/…          objects (package objects); store/ is the first data-only lower layer of thin mounts
//	fresh/objects/…          fresh links (likewise), another of them
//	layers/<id>/             layers, with graph/<id>/diff and work; records are attributes of it, trusted.cvmfs-graphdriver.*
//	layers/.<what>-*         something unfinished, removed by Open
//	mnt/<id>                 where layers are mounted
//	state/init.json          the engine's arguments to Init
//	state/backing-device     the block device all this is on, for quotactl(2)
//
// Files of ordinary layers below a thin one are in the composed image, and their content is found as
// /graph/<id>/diff/<path>, in the same name space as objects, /objects/<xx>/<name>: so no layer can put a file where an
// object is looked for. The layers are not in store/, for overlayfs refuses a lower layer inside another one (ELOOP),
// and those above the thin one are lower layers.
//
// Everything that counts is complete or absent after a crash or power loss: it is made under another name, synced, and
// renamed. A new layer, which is empty, isn't synced: folders, their attributes and their renaming reach the disk in
// the order in which they were made. Whatever syncs later, a container's own database, takes it along. Records of open
// layers aren't synced either: they mean nothing after a reboot.
//
// Locks. Who holds several has taken them in this order, which the tests of this package check:
//
//  1. the locks of layers, one for each id: a layer's before those of its ancestors, upwards. What changes a layer, its
//     record or its mount holds its lock.
//  2. images: held while an image comes to be named by a layer or to be removed, and while a composer takes over.
//  3. all others, held for a few lines that call nothing.
//
// A Composer, a Mounter and the FUSE mount have locks of their own, and call nothing of a Store while they hold them.
//
// A composed image stays as long as the record of a layer names it, or that of a mounted one. All others are swept when
// a composer takes over, as at the start, and when the last composing under way ends; never while one is, for an image
// has no name yet when it has just been made.
//
// Incoming archives are hostile; package layertar unpacks them. Digests, which the engine checks, tell whether an
// archive is whole, with one exception: engines repeat a request whose connection broke with the rest of a body they
// have partly sent, and what the lost attempt took counts for the digest. So an attempt is noted in the layer's folder
// before its first byte is read, and a layer takes content once, from the process that answered its Create
// (docs/adr/0007).
package layers
