// Package convert turns container images into thin images: their layers go into a CernVM-FS repository, and a
// descriptor that names them becomes an image of its own.
//
// The words used here:
//
//   - A conversion reads one image (package source), puts those of its layers into a sink (package sink) that aren't
//     there yet, all in one transaction, and writes the thin image (package thinimage). Where anything fails, nothing
//     is published.
//   - The layout says at which path of the repository a layer lies: "/layers/DIGEST", or that of the DUCC tool. The
//     digest is that of the layer's blob, hex. A layer that is there is never touched again.
//   - The state of an image, "/.metadata/REGISTRY/REPOSITORY:TAG/docker2cvmfs.json", says what it was converted from
//     and which layers it needs; manifest.json beside it says so to DUCC's garbage collector. Both are published with
//     the layers.
//   - An image is unchanged if its manifest has the digest the state names, and its thin image is where it should be.
//   - A wish list (package wish) names many images. One that fails doesn't stop the others.
//   - A layer is unused if no image's state names it. The collection removes it after a grace period.
//
// An image that holds thin layers is flattened: the layers its descriptors name take their place, wherever they lie.
package convert
