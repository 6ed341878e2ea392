// Package overlayfs mounts overlays, and the EROFS images that may be layers of them, on every kernel from Linux 4.18
// on, and finds out what the kernel it runs on can do. It knows nothing of images and containers: a [Spec] says which
// folders make an overlay.
//
// # Two ways to mount
//
// With the mount API of Linux 5.2 (fsopen(2), fsconfig(2), fsmount(2), move_mount(2)) overlayfs takes its layers one by
// one, in any number, from Linux 6.8 on. With mount(2) all options are one line of less than a page.
//
// A kernel can't be told by its version, for distributions change theirs, nor by the existence of a call: before
// overlayfs had parameters of its own (Linux 6.5) fsconfig(2) took any string for it and judged none of them before the
// file system was made. So a cheap question may only rule a way out. What rules it in is a tiny real mount. A [Kernel]
// asks once, at its first mount.
//
// # Content in data-only layers
//
// A file of a lower layer may be metadata alone: with the attributes [XattrMetacopy] and [XattrRedirect] its content is
// looked for in the data-only layers, which show no names of their own (Linux 6.5). Some kernels take such layers only
// in overlays that have the option metacopy on (before Linux 6.15 or so). An overlay with an upper folder must not have
// it, for a change of a file's mode would leave a file without content there. On such kernels a read-only overlay with
// metacopy joins metadata and content, and other overlays stand on it: [Stacked].
//
// # Older kernels
//
// A [Lack] takes something away from a kernel, so that tests can run on one what happens on another.
package overlayfs

// Extended attributes by which overlayfs is instructed, as in the kernel's Documentation/filesystems/overlayfs.rst. An
// overlay that is mounted with the option userxattr has those that begin with [XattrUserPrefix] instead.
const (
	XattrPrefix     = "trusted.overlay."
	XattrUserPrefix = "user.overlay."
	XattrOpaque     = XattrPrefix + "opaque"   // "y": what lies below a folder is not shown
	XattrRedirect   = XattrPrefix + "redirect" // where a folder's lower layers, or a file's content, are found
	XattrMetacopy   = XattrPrefix + "metacopy" // the file is metadata alone
)
