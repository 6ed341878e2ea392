// Package layers keeps the layers of images and containers on disk: it makes, fills, compares, packs and removes them,
// and says what shows one. It mounts nothing, and knows of nobody who does.
//
// The words:
//
//   - A layer is a folder, named by the layer's id, with what it adds to its parent (its diff), a scratch folder of
//     overlayfs (work/) and a record, an extended attribute of the folder. Its content follows overlayfs' conventions:
//     character device 0/0 is a whiteout, the extended attribute trusted.overlay.opaque=y hides what lies below a
//     folder.
//   - A read-only layer gets its content by one archive. It is committed, and counts, once its record says so.
//   - A read-write layer is written to where it is mounted: that of a container, or a step of a build. Engines make the
//     latter as if it were read-only and never send an archive for it; a layer that is used before it has content is
//     therefore settled: taken for read-write from then on.
//   - A read-write layer may be sealed: what was written to it is then the content of a read-only one.
//   - A note is what a face keeps with a layer: bytes that this package doesn't read. A layer that has one is synced
//     when it is made, for whoever keeps notes answers for what it has made.
//   - A thin layer is a read-only one whose only file is a thin image descriptor (package thin). It and everything
//     below it are shown by a composed image, of which this package knows the key.
//   - The chain of a layer is its ancestors, from its parent down.
//   - The stack of a layer is what an overlay that shows it is made of: its upper folder, the ordinary layers above the
//     topmost thin one, that thin layer, and the layers below it whose files the composed image has.
//   - A project is what quotas of a file system count by. A container of a size is one.
//
// On disk, below Config.Dir:
//
//	<id>/                    a layer, with graph/<id>/diff and work; records are attributes of it, trusted.cvmfs-graphdriver.*
//	<id>/applying            its archive is on its way, or broke off
//	<id>/note                its note
//	.<what>-*                something unfinished, removed by Open
//
// Files of ordinary layers below a thin one are in the composed image, and their content is found as
// /graph/<id>/diff/<path> in the layer's folder, which is a data-only layer of the mount: in the same name space as
// objects, /objects/<xx>/<name>, so no layer can put a file where an object is looked for.
//
// Everything that counts is complete or absent after a crash or power loss: it is made under another name, synced, and
// renamed. A new layer, which is empty, isn't synced: folders, their attributes and their renaming reach the disk in
// the order in which they were made. Whatever syncs later, a container's own database, takes it along.
//
// Locks: what changes a layer or its record holds the layer's lock, of which nobody takes a second one; that of records
// in memory, and those of quotas and of what was made, come after it and are held for a few lines. Package lockorder
// has the order over all packages of the driver.
//
// Incoming archives are hostile; package layertar unpacks them. Digests, which the engine checks, tell whether an
// archive is whole, with one exception: engines repeat a request whose connection broke with the rest of a body they
// have partly sent, and what the lost attempt took counts for the digest. So an attempt is noted in the layer's folder
// before its first byte is read, and a layer takes content once, from the process that answered its Create
// (docs/adr/0007).
package layers
