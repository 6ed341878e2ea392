// Package view shows composed images as folders of a FUSE mount, for kernels that can't mount them.
//
// The words used here:
//
//   - A composed image is an EROFS image without content: each of its files names, in the extended attribute
//     trusted.overlay.redirect, where its content lies. A kernel that can mounts the image below an overlay which
//     follows these. For one that can't, this package reads the same image and follows them itself, so that both show
//     the same tree.
//   - The key of an image is its name, a SHA-256 in hex. The image is shown as the folder view/<key> of the mount,
//     which is also that of the objects (package objectfs): hand-over and generation are the same for both.
//   - A position is an inode's number in the image, its nid. A node id is made of the bit 61, the first 29 bits of the
//     key and the position. So it is the same in every life of the server, and of an image that is composed again. Of
//     two images whose keys begin with the same 29 bits the one that comes later is refused.
//   - With mapped owners an image is shown a second time, as view/<key>.<mapping>, under node ids of its own: those of
//     the digest of that name.
//   - A redirect names an object (/objects/<xx>/<object>) or a file of an ordinary layer (/graph/<id>/diff/<path>).
//     Objects are fetched when they are first read, with those ahead of them; objects in chunks only as far as they are
//     read. What is here is read from its file.
//
// Nothing in an image ever changes, so the kernel may remember everything for a day: names, that there is no such name,
// attributes, targets, listings and content. Redirects and other instructions to overlayfs are not shown.
package view
