// Package images turns the layers below and including a thin layer into one composed image: a metadata-only EROFS image
// of the merged tree, and the table of the objects its files are made of.
//
// The words:
//
//   - A chain is the layers of an image, bottom to top; the topmost is thin. A thin layer stands for the folders of
//     CernVM-FS repositories that its descriptor lists; an ordinary layer is a diff folder on disk.
//   - A whiteout hides one name of the layers below, an opaque folder hides all of them. Every convention in the wild
//     is understood: ".wh.NAME" and ".wh..wh..opq" files, character device 0/0, and overlayfs' extended attributes.
//   - The record of a layer is a file beside its folder with what catalogs can't say of it (package thin). It is
//     trusted as catalogs are; one that contradicts them is an error, for nothing tells which of both is the image.
//   - The redirect of a file tells overlayfs where its content lies in the data-only lower layers: an object
//     ("/objects/<xx>/<name>") or, for files of ordinary layers, their place in package layers
//     ("/graph/<id>/diff/<path>"). Both share one name space, so no layer can put a file where an object is looked for.
//   - The key of an image is a digest over what it is made of: the catalogs that hold the layers' folders, the layers'
//     records, the ordinary layers' ids and the owner maps. Images are shared by key, and an image never changes
//     meaning: objects are named by content.
//
// Ownership is that of the catalogs: CVMFS_CLAIM_OWNERSHIP and CVMFS_WORLD_READABLE are for people who look at a
// repository, not for containers. Symbolic links keep their stored target, as the image they come from had it.
//
// An image is complete or absent: it is written under a temporary name, synced, and renamed.
package images
